"""Images with captions: what texts and images are aligned on.

A source as others are, whose records have no label; beside each record are its
captions.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import hashlib
import urllib.parse

import numpy as np

from dinojax.core import errors
from dinojax.core import text as text_lib
from dinojax.data import caption_files
from dinojax.data import folders
from dinojax.data import identity
from dinojax.data import record as record_lib

_SKIP = 'empty'  # option of every kind


class Strings(Sequence):
  """Texts in one piece of memory, which workers get by one copy."""

  def __init__(self, texts: Iterable[str]):
    data = [text.encode('utf-8', 'surrogatepass') for text in texts]
    self._ends = np.cumsum([0, *map(len, data)], dtype=np.int64)
    self._data = b''.join(data)

  def __len__(self) -> int:
    return len(self._ends) - 1

  def __getitem__(self, index: int) -> str:
    if not -len(self) <= index < len(self):
      raise IndexError(index)
    start, stop = self._ends[index % len(self):][:2]
    return self._data[start:stop].decode('utf-8', 'surrogatepass')


class Captions:
  """Images with captions, in the order of their files; picklable.

  Attributes:
    spec: text that opened it.
    classes: none.
    captions: every caption, those of an image one after the other.
    first: [images + 1] the first caption of each image, and their number.
  """

  classes = ()

  def __init__(self, spec: str, samples: Iterable[caption_files.Sample],
               read: Callable[[str, int, int], bytes]):
    """Lists the samples; images are read later.

    Args:
      spec: text that opened it, with ?empty=skip where images without a
        caption are left out.
      samples: images with captions, in an order that stays.
      read: function of file, offset and size to the bytes of an image.

    Raises:
      UserError: an empty caption, two images of a name, or no image.
    """
    self.spec, self._read = spec, read
    _, options = split(spec)
    kept = list(_checked(spec, samples, options.get(_SKIP) == 'skip'))
    if not kept:
      raise errors.UserError(
          f'{spec} holds no image with a caption: check the path')
    self._names = Strings(sample.name for sample in kept)
    self._files = Strings(sample.file for sample in kept)
    self._places = np.array(
        [(sample.offset, sample.size) for sample in kept], np.int64)
    self.first = np.cumsum(
        [0, *(len(sample.captions) for sample in kept)], dtype=np.int64)
    self.captions = Strings(
        text for sample in kept for text in sample.captions)

  def __len__(self) -> int:
    return len(self._names)

  def __getitem__(self, index: int) -> record_lib.Record:
    offset, size = map(int, self._places[index])
    return record_lib.Record(
        self._read(self._files[index], offset, size), -1, self._names[index])

  def of(self, index: int) -> list[str]:
    """The captions of an image."""
    return [self.captions[i] for i in range(
        self.first[index], self.first[index + 1])]

  def owners(self) -> np.ndarray:
    """[n] the image of every caption."""
    return np.repeat(np.arange(len(self)), np.diff(self.first))

  def order(self, sizes: bool = False) -> list[str]:
    """Names in order, each with a hash of its captions."""
    del sizes
    return [f'{self._names[i]}\t' + hashlib.sha256('\n'.join(
        self.of(i)).encode('utf-8', 'surrogatepass')).hexdigest()[:8]
            for i in range(len(self))]

  @property
  def digest(self) -> str:
    """Hash of names and captions."""
    return identity.digest(self.order())


def open_captions(spec: str) -> Captions:
  """Opens images with captions.

  Args:
    spec: csv:FILE, a line for each caption, columns image and caption (or
      ?image_column=, ?caption_column=), images beside it; coco:FILE.json, as
      COCO has them, ?images=DIR; tar:GLOB, WebDataset's, with .txt (a line
      for each caption) or .json beside the images; parquet:GLOB,
      ?image=COLUMN and ?caption=COLUMN; img2dataset:DIR. With ?empty=skip
      images without a caption are left out, else they are an error.

  Raises:
    UserError: another spec, or see Captions and caption_files.
  """
  kind = spec.partition(':')[0]
  place, options = split(spec)
  if kind not in caption_files.READERS or place == f'{kind}:':
    raise errors.UserError(
        f'{spec!r} is no set of images with captions: give '
        f'{", ".join(caption_files.KINDS)}')
  skips = options.pop(_SKIP, 'skip')
  if skips != 'skip':
    raise errors.UserError(
        f'{spec}: ?empty={skips} is not known: write ?empty=skip, or nothing')
  samples, read = caption_files.READERS[kind](
      spec, place.partition(':')[2], options)
  return Captions(spec, samples, read)


def split(spec: str) -> tuple[str, dict[str, str]]:
  """A spec without its options, and these.

  A ? that no NAME= follows stands for a letter of a file's name.
  """
  place, mark, query = spec.rpartition('?')
  if not mark or '=' not in query.partition('/')[0]:
    return spec, {}
  return place, dict(urllib.parse.parse_qsl(query, keep_blank_values=True))


def _checked(spec: str, samples: Iterable[caption_files.Sample], skips: bool
             ) -> Iterator[caption_files.Sample]:
  """Samples whose captions have words; see Captions."""
  known, left_out = set(), 0
  for sample in samples:
    texts = [text for text in sample.captions if text.strip()]
    name = text_lib.printable(sample.name)
    if sample.name in known:
      raise errors.UserError(
          f'{spec} has two images called {name}: give every image a name of '
          'its own, and its captions together')
    known.add(sample.name)
    if not skips and (not texts or len(texts) < len(sample.captions)):
      raise errors.UserError(
          f'{spec}: {"a" if texts else "the"} caption of {name} is empty: '
          'write one, or leave it out by ?empty=skip')
    left_out += not texts
    if texts:
      yield sample._replace(captions=texts)
  if left_out:
    folders.say_once(f'{spec}: {left_out} images without a caption are left '
                     'out')
