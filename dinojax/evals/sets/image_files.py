"""Images of a set by a list of their names, some of them cut to a box."""

from collections.abc import Sequence
import hashlib
import io

from etils import epath
import numpy as np
from PIL import Image

from dinojax.core import errors
from dinojax.core import paths
from dinojax.core import text
from dinojax.data import identity
from dinojax.data import images
from dinojax.data import record as record_lib

_JPEG, _END = b'\xff\xd8', b'\xff\xd9'  # first and last bytes
_LAST = 64  # bytes in which the end is looked for


class Files:
  """Images below a folder, in the order of a list.

  Attributes:
    spec: name of the set.
    classes: none; `labels` are numbers of groups.
  """

  classes = ()

  def __init__(self, spec: str, folder: str, names: Sequence[str], *,
               labels: Sequence[int] | None = None,
               boxes: Sequence[Sequence[float] | None] | None = None,
               mends: bool = False):
    """Lists the files, which are not looked at.

    Args:
      spec: name of the set.
      folder: folder that the names are relative to.
      names: paths with '/'.
      labels: group of each; None: there are no groups.
      boxes: (left, top, right, bottom) that an image is cut to, in pixels as
        stored; None: nothing is cut.
      mends: reads JPEG files that are cut short, as the set's own code does.
    """
    self.spec = spec
    self._folder = epath.Path(paths.expand(folder))
    self._names, self._labels = list(names), labels
    self._boxes, self._mends = boxes, mends

  def __len__(self) -> int:
    return len(self._names)

  def __getitem__(self, index: int) -> record_lib.Record:
    name = self._names[index]
    data = (self._folder / name).read_bytes()
    if self._mends and is_cut_short(data):
      data += _END
    box = self._boxes[index] if self._boxes else None
    if box is not None:
      data = cut(data, box, name)
    return record_lib.Record(
        data, -1 if self._labels is None else int(self._labels[index]), name)

  def order(self, sizes: bool = False) -> list[str]:
    """Lines that decide which record has which number, see data.identity."""
    lines_ = [self._line(i, sizes) for i in range(len(self))]
    return [*lines_, f'mends={self._mends}'] if self._mends else lines_

  def _line(self, index: int, sizes: bool) -> str:
    name = self._names[index]
    box = self._boxes[index] if self._boxes else None
    line = name if box is None else f'{name} {tuple(box)}'
    if not sizes:
      return line
    path = self._folder / name
    return f'{line}\t{path.stat().length if path.exists() else -1}'

  def cut_short(self) -> int:
    """Number of JPEG files that have no end; each is opened."""
    count = 0
    for name in self._names:
      with (self._folder / name).open('rb') as file:
        start = file.read(2)
        file.seek(0, 2)
        file.seek(max(file.tell() - _LAST, 0))
        count += is_cut_short(start + file.read())
    return count


class Joined:
  """Several sources, one after the other."""

  def __init__(self, spec: str, sources: Sequence[record_lib.Source]):
    """Joins them; labels stay as each source numbers them."""
    self.spec, self.classes = spec, ()
    self._sources = tuple(sources)
    self._ends = np.cumsum([len(source) for source in sources])

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, index: int) -> record_lib.Record:
    which = int(np.searchsorted(self._ends, index, side='right'))
    first = self._ends[which - 1] if which else 0
    return self._sources[which][int(index - first)]

  def order(self, sizes: bool = False) -> list[str]:
    """Lines that decide which record has which number, see data.identity."""
    return [line for source in self._sources
            for line in (source.spec, *identity.lines(source, sizes=sizes))]

  def parts(self) -> list[np.ndarray]:
    """Places of the images of each source."""
    return np.split(np.arange(len(self)), self._ends[:-1])


def need(folder: str, names: Sequence[str], had: str) -> epath.Path:
  """The folder, in which everything is that a reader needs.

  Args:
    folder: path of the set.
    names: files and folders within; the first that is missing is told.
    had: where the set is had.

  Raises:
    UserError: something is not there.
  """
  root = epath.Path(paths.expand(folder))
  for name in ('', *names):
    if not (root / name if name else root).exists():
      raise errors.UserError(
          f'{text.printable(root / name if name else root)} is missing: {had}')
  return root


def digest(*parts: object) -> str:
  """A text that differs where the lists of two sets do."""
  return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def is_cut_short(data: bytes) -> bool:
  """Tells whether a JPEG file has no end, with whatever padding behind it."""
  return data.startswith(_JPEG) and _END not in data[-_LAST:]


def cut(data: bytes, box: Sequence[float], name: str) -> bytes:
  """A part of an image as PNG.

  Args:
    data: encoded image.
    box: (left, top, right, bottom) in pixels as stored, not turned by EXIF.
    name: its name, for messages.

  Raises:
    BadImage: it cannot be decoded.
    UserError: the box has no pixel of the image.
  """
  images.open_image(data)  # refuses what is no image
  picture = Image.open(io.BytesIO(data)).convert('RGB')
  inside = within(box, picture.size, name)
  out = io.BytesIO()
  picture.crop(inside).save(out, 'PNG', compress_level=1)
  return out.getvalue()


def within(box: Sequence[float], size: tuple[int, int],
           name: str) -> tuple[int, int, int, int]:
  """The part of a box that lies in an image of (width, height), in pixels.

  Raises:
    UserError: there is none.
  """
  left, top, right, bottom = (int(round(x)) for x in box)
  inside = (max(left, 0), max(top, 0), min(right, size[0]),
            min(bottom, size[1]))
  if inside[0] >= inside[2] or inside[1] >= inside[3]:
    raise errors.UserError(
        f'the box {tuple(box)} of {name} lies outside its {size[0]} × '
        f'{size[1]} pixels: the ground truth is of other images')
  return inside
