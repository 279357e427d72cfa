"""Files that images with captions come in, see captions.open_captions.

A reader is a function of the spec, of the place in it and of its options; it
gives the samples, and a function that reads the bytes of an image.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import functools
import glob
import importlib.util
import json
import os
import tarfile
from typing import NamedTuple

from etils import epath

from dinojax.core import errors
from dinojax.core import lists
from dinojax.core import paths
from dinojax.core import text as text_lib
from dinojax.data import folders
from dinojax.data.pools import entry as entry_lib
from dinojax.data.pools import tars

KINDS = ('csv:FILE', 'coco:FILE.json?images=DIR', 'tar:GLOB', 'parquet:GLOB',
         'img2dataset:DIR')
# Names of columns, the first that is there.
_IMAGES = ('image', 'file', 'filename', 'file_name', 'path', 'filepath')
_CAPTIONS = ('caption', 'text', 'title', 'sentence')


class Sample(NamedTuple):
  """An image with its captions.

  Attributes:
    name: stable identity within the source.
    file: file that the image lies in.
    offset: place in the file, as the reader counts.
    size: bytes, as the reader counts.
    captions: its texts.
  """

  name: str
  file: str
  offset: int
  size: int
  captions: Sequence[str]


Read = Callable[[str, int, int], bytes]
Opened = tuple[Iterable[Sample], Read]


def _csv(spec: str, place: str, options: Mapping[str, str]) -> Opened:
  """A line for each caption; images are named as seen from the file.

  Raises:
    UserError: no such file or column, no line that is asked for, or an image
      that is missing.
  """
  path, wanted = epath.Path(paths.expand(place)), dict(options)
  lines = lists.rows(path)
  image = _column(spec, lines, wanted.pop('image_column', None), _IMAGES,
                  'image_column')
  caption = _column(spec, lines, wanted.pop('caption_column', None), _CAPTIONS,
                    'caption_column')
  for name in wanted:
    _column(spec, lines, name, (), '')
  texts: dict[str, list[str]] = {}
  for line in lines:
    if all(line[name] == value for name, value in wanted.items()):
      texts.setdefault(line[image], []).append(line[caption])
  if not texts:
    raise errors.UserError(f'{spec} has no line that fits: check the values '
                           f'of {", ".join(wanted)}')
  _need(spec, path.parent, texts)
  return ([Sample(name, name, 0, -1, some) for name, some in texts.items()],
          functools.partial(_file, path.parent))


def _coco(spec: str, place: str, options: Mapping[str, str]) -> Opened:
  """The `images` and `annotations` of COCO's captions_….json.

  Raises:
    UserError: no such file; captions of no image, two images of a number, or
      images that are missing.
  """
  path = epath.Path(paths.expand(place))
  try:
    content = json.loads(lists.text(path))
    files = [(image['id'], str(image['file_name']))
             for image in content['images']]
    notes = [(note['image_id'], str(note['caption']))
             for note in content['annotations']]
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    if isinstance(error, errors.UserError):
      raise
    raise errors.UserError(
        f'{path} is no list of captions of COCO ({error!r}): give a file such '
        'as annotations/captions_val2017.json') from error
  texts: dict[object, list[str]] = {}
  for number, name in files:
    if number in texts:
      raise errors.UserError(
          f'{spec} has two images of the id {number}, one of them '
          f'{text_lib.printable(name)}: give each an id of its own')
    texts[number] = []
  for number, caption in notes:
    if number not in texts:
      raise errors.UserError(
          f'{spec} has a caption of the image {number}, which is not among '
          f'its images: {text_lib.printable(caption)[:60]}')
    texts[number].append(' '.join(caption.split()))
  folder = _coco_images(spec, path, options)
  _need(spec, folder, [name for _, name in files])
  return ([Sample(name, name, 0, -1, texts[number]) for number, name in files],
          functools.partial(_file, folder))


def _coco_images(spec: str, path: epath.Path, options: Mapping[str, str]
                 ) -> epath.Path:
  """The folder of the images: the one that is named, or where COCO has it.

  Raises:
    UserError: it is not there, or another option.
  """
  others = options.keys() - {'images'}
  if others:
    raise errors.UserError(
        f'{spec}: {", ".join(sorted(others))} is not known: it takes '
        '?images=DIR')
  split = path.name.removesuffix('.json').rpartition('_')[2]
  places = [epath.Path(paths.expand(options['images']))] if (
      'images' in options) else [
          folder / name for folder in (path.parent.parent, path.parent)
          for name in (split, 'images', f'images/{split}')]
  for folder in places:
    if folder.is_dir():
      return folder
  raise errors.UserError(
      f'{spec}: its images are not in {places[0]}: name their folder, '
      '?images=DIR')


def _tar(spec: str, place: str, options: Mapping[str, str]) -> Opened:
  """Images of tar files, with .txt or .json of the same name.

  Raises:
    UserError: no such file, a damaged one, or a caption without an image.
  """
  _no_options(spec, options)
  pool = tars.Tars(place)
  return _of_tars(spec, pool), pool.read


def _of_tars(spec: str, pool: tars.Tars) -> Iterator[Sample]:
  for file in pool.files():
    try:
      for sample in pool.samples(file):
        if sample.captions and not sample.images:
          raise errors.UserError(
              f'{spec}: {file} has a caption called '
              f'{text_lib.printable(sample.key)} and no image of that name')
        for member in sample.images:
          yield Sample(f'{file}/{member.name}', file, member.offset_data,
                       member.size, sample.captions)
    except (tarfile.TarError, EOFError) as error:
      raise errors.UserError(
          f'{spec}: {file} is cut short or damaged ({error}): get it again, or '
          'move it away') from error


def _img2dataset(spec: str, place: str, options: Mapping[str, str]) -> Opened:
  """Output of img2dataset, as tar or as Parquet files."""
  _no_options(spec, options)
  folder = paths.expand(place)
  if glob.glob(os.path.join(glob.escape(folder), '*.tar')):
    return _of_pool(spec, tars.Img2dataset(place))
  return _parquet(spec, place, {})


def _parquet(spec: str, place: str, options: Mapping[str, str]) -> Opened:
  """Rows of Parquet files, with encoded images and their captions.

  Raises:
    UserError: pyarrow or a column is missing; see parquets.Parquets.
  """
  if importlib.util.find_spec('pyarrow') is None:
    raise errors.UserError(
        f'{spec} is read with the package pyarrow: pip install '
        '"dinojax[parquet]"')
  from dinojax.data.pools import parquets
  query = '&'.join(f'{name}={value}' for name, value in options.items())
  return _of_pool(spec, parquets.Parquets(
      f'{place}?{query}' if query else place))


def _of_pool(spec: str, pool: entry_lib.Pool) -> Opened:
  """Entries of a pool; those that could not be fetched are counted."""
  def samples():
    failed = 0
    for file in pool.files():
      for entry in pool.entries(file):
        failed += bool(entry.problem)
        if not entry.problem:
          yield Sample(entry.name, entry.file, entry.offset, entry.size,
                       entry.caption.splitlines())
    if failed:
      folders.say_once(
          f'{spec}: {failed} images were not fetched, and are left out')

  return samples(), pool.read


def _column(spec: str, lines: list[lists.Row], name: str | None,
            usual: Sequence[str], option: str) -> str:
  """The column that is asked for, or the first of the usual ones.

  Raises:
    UserError: it is not there.
  """
  known = list(lines[0])
  chosen = name or next((column for column in usual if column in known), '')
  if chosen not in known:
    raise errors.UserError(
        f'{spec} has no column {chosen or " or ".join(usual)}: its columns '
        f'are {", ".join(known)}'
        + (f'; name it, ?{option}=NAME' if option else ''))
  return chosen


def _no_options(spec: str, options: Mapping[str, str]):
  if options:
    raise errors.UserError(
        f'{spec}: ?{", ".join(options)} is not known: it takes ?empty=skip '
        'alone')


def _need(spec: str, folder: epath.Path, names: Iterable[str]):
  """Looks for images, with a list of each folder that they are in.

  Raises:
    UserError: some are missing.
  """
  here: dict[epath.Path, set[str]] = {}
  missing = []
  for name in names:
    path = folder / name
    if path.parent not in here:
      here[path.parent] = {other.name for other in path.parent.iterdir()} if (
          path.parent.is_dir()) else set()
    if path.name not in here[path.parent]:
      missing.append(name)
  if missing:
    raise errors.UserError(
        f'{spec}: {len(missing)} images are missing from {folder}: '
        f'{text_lib.listed(missing)}; put them there, or remove their lines')


def _file(folder: epath.Path, file: str, offset: int, size: int) -> bytes:
  """Bytes of a file below a folder."""
  del offset, size
  return (folder / file).read_bytes()


READERS: dict[str, Callable[[str, str, Mapping[str, str]], Opened]] = {
    'csv': _csv, 'coco': _coco, 'tar': _tar, 'parquet': _parquet,
    'img2dataset': _img2dataset}
