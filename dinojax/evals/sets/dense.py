"""Images with a map of the same size: a class, or a depth, of every pixel.

A set is a list of pairs of files and a way to read the second. The plain
layout is a folder `images` beside a folder `masks`, or `depth`, with files of
the same stems; `masks:DIR` and `depth:DIR?scale=0.001`, or DIR alone.
"""

from collections.abc import Callable, Sequence
import dataclasses
import hashlib
import io
import os
from typing import Any, NamedTuple
import urllib.parse

from etils import epath
import numpy as np
from PIL import Image

from dinojax.core import errors
from dinojax.core import lists
from dinojax.core import paths
from dinojax.core import text
from dinojax.data import images
from dinojax.data import listing
from dinojax.metrics import segmentation

IGNORED = segmentation.IGNORED
MAX_CLASSES = 254  # more would not be told from IGNORED in 8 bits
_MILLIMETRES = 0.001


class Pair(NamedTuple):
  """An image and its map, as stored.

  Attributes:
    image: encoded bytes.
    truth: encoded bytes of the map.
    name: stable identity within the set.
    where: place of the map, for messages.
    read: makes the map's bytes [y, x].
    cut: part of image and map that counts, a function of (width, height) to
      (left, top, right, bottom); None: all.
  """

  image: bytes
  truth: bytes
  name: str
  where: str
  read: 'Classes | Colors | Metres'
  cut: Callable[[tuple[int, int]], tuple[int, int, int, int]] | None = None

  def map(self) -> np.ndarray:
    """[y, x] classes or metres, whole.

    Raises:
      BadImage: the map cannot be decoded.
      UserError: values that are neither classes nor depths.
    """
    with images.Decoding(len(self.truth)):
      picture = Image.open(io.BytesIO(self.truth))
      picture.load()
    try:
      return self.read(picture)
    except ValueError as error:
      raise errors.UserError(f'{self.where}: {error}') from error

  def sizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
    """(width, height) of the image, and of the map, from their headers."""
    with images.Decoding(len(self.truth)):
      truth = Image.open(io.BytesIO(self.truth)).size
    return images.open_image(self.image).size, truth

  def decoded(self) -> tuple[Image.Image, np.ndarray]:
    """Image and map, cut as `cut` says.

    Raises:
      BadImage: a file that cannot be decoded.
      UserError: a map of another size than its image, or of wrong values.
    """
    picture, truth = images.open_image(self.image).decode(), self.map()
    check_sizes(self, picture.size, truth.shape[::-1])
    if self.cut is None:
      return picture, truth
    box = self.cut(picture.size)
    left, top, right, bottom = box
    return picture.crop(box), truth[top:bottom, left:right]


def check_sizes(pair: Pair, size: Sequence[int], of_map: Sequence[int]):
  """Refuses a map of another size than its image.

  Raises:
    UserError: it has another.
  """
  if tuple(size) != tuple(of_map):
    raise errors.UserError(
        '{} has {} × {} pixels, and its image {} × {}: make them the same '
        'size, masks and depths without interpolation'.format(
            pair.where, *of_map, *size))


@dataclasses.dataclass(frozen=True)
class Classes:
  """Reads a mask whose values are ids.

  Attributes:
    num_classes: classes, from 0.
    table: class, or IGNORED, of every id from 0 to 255; (): ids are classes.
  """

  num_classes: int
  table: tuple[int, ...] = ()

  def __call__(self, picture: Image.Image) -> np.ndarray:
    """[y, x] uint8 classes; a palette's index, never its colour.

    Raises:
      ValueError: colours, or an id that is no class.
    """
    if picture.mode not in ('L', 'P', '1') and not picture.mode.startswith(
        'I'):
      raise ValueError(
          f'a mask in colours ({picture.mode}): store the number of a class '
          'in every pixel, as 8-bit PNG')
    ids = np.asarray(picture).astype(np.int32)
    if self.table and ids.max(initial=0) < len(self.table):
      ids = np.asarray(self.table, np.int32)[ids]
    wrong = ids[((ids < 0) | (ids >= self.num_classes)) & (ids != IGNORED)]
    if wrong.size:
      raise ValueError(
          f'{len(wrong)} pixels have the id {wrong[0]}, which is none of the '
          f'{self.num_classes} classes from 0 and not {IGNORED}, which is '
          'ignored: add it to classes.txt, or set such pixels to 255')
    return ids.astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Colors:
  """Reads a mask whose classes are colours.

  Attributes:
    palette: (red, green, blue) of each class.
  """

  palette: tuple[tuple[int, int, int], ...]

  def __call__(self, picture: Image.Image) -> np.ndarray:
    """[y, x] uint8 classes.

    Raises:
      ValueError: another colour.
    """
    pixels = np.asarray(picture.convert('RGB')).astype(np.int32)
    code = lambda x: (x[..., 0] << 16) | (x[..., 1] << 8) | x[..., 2]
    known = code(np.array(self.palette))
    order = np.argsort(known)
    codes = code(pixels)
    place = np.clip(np.searchsorted(known[order], codes), 0, len(known) - 1)
    wrong = known[order][place] != codes
    if wrong.any():
      color = tuple(int(x) for x in pixels[wrong][0])
      raise ValueError(f'{wrong.sum()} pixels have the colour {color}, which '
                       'no class has')
    return order[place].astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Metres:
  """Reads depths.

  Attributes:
    scale: metres of one unit; None: millimetres, of 16 bits or more.
    rotated: True: bits are rotated by three, as in SUN RGB-D.
    limit: metres beyond which a depth is not known.
  """

  scale: float | None = None
  rotated: bool = False
  limit: float | None = None

  def __call__(self, picture: Image.Image) -> np.ndarray:
    """[y, x] float32 metres, 0 where unknown.

    Raises:
      ValueError: colours, or 8 bits without a scale.
    """
    values = np.asarray(picture)
    if values.ndim != 2:
      raise ValueError(f'depths in colours ({picture.mode}): store 16-bit PNG')
    if self.scale is None and picture.mode in ('L', 'P', '1'):
      raise ValueError(
          'depths of 8 bits: store 16-bit PNG of millimetres, or give the '
          'metres of a unit, depth:DIR?scale=0.05')
    if self.rotated:
      bits = values.astype(np.uint16)
      values = (bits >> 3) | (bits << 13)
    depth = (values * (self.scale or _MILLIMETRES)).astype(np.float32)
    depth[~np.isfinite(depth) | (depth < 0)] = 0
    if self.limit is not None:
      depth[depth > self.limit] = 0
    return depth


class Set:
  """Pairs of files; a random-access sequence that travels to workers."""

  def __init__(self, spec: str, files: Sequence[tuple[str, str, str]],
               read: Classes | Colors | Metres, *,
               classes: Sequence[str] = (), cut: Any = None,
               left_out: int = 0):
    """Keeps the paths.

    Args:
      spec: how the set was asked for, for messages.
      files: (image, map, name) of each.
      read: see Pair.
      classes: their names, in order; (): depths.
      cut: see Pair.
      left_out: rows of a list that have no map, for the results.

    Raises:
      UserError: no pair.
    """
    self.spec, self.classes = spec, tuple(classes)
    self.left_out = left_out
    self._files, self._read, self._cut = tuple(files), read, cut
    if not self._files:
      raise errors.UserError(f'{spec} holds no image with its map: check it')

  def __len__(self) -> int:
    return len(self._files)

  def __getitem__(self, index: int) -> Pair:
    image, truth, name = self._files[index]
    return Pair(epath.Path(image).read_bytes(), epath.Path(truth).read_bytes(),
                name, truth, self._read, self._cut)

  def order(self, sizes: bool = False) -> list[str]:
    """Names in order, with the sizes of the files."""
    if not sizes:
      return [name for _, _, name in self._files]
    return [f'{name}\t{epath.Path(image).stat().length}'
            for image, _, name in self._files]

  @property
  def digest(self) -> str:
    """Text that differs with the classes, the files, or how they are read."""
    parts = [*self.classes, *(name for _, _, name in self._files),
             repr(self._read), repr(self._cut)]
    return hashlib.sha256('\n'.join(parts).encode()).hexdigest()[:8]


def options(spec: str, scheme: str, **defaults: str) -> tuple[str, dict]:
  """The folder of a spec, and its options after '?'.

  Args:
    spec: 'scheme:DIR?key=value', or DIR where the scheme is the plain one.
    scheme: name before the colon.
    **defaults: options that are known, with their values.

  Raises:
    UserError: an option that is not known.
  """
  rest = spec.removeprefix(f'{scheme}:')
  folder, _, query = rest.partition('?')
  given = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
  for name in given:
    if name not in defaults:
      raise errors.UserError(
          f'{spec}: {name} is no option of {scheme}: use one of '
          f'{", ".join(defaults) or "none"}')
  return paths.expand(folder), defaults | given


def need(spec: str, path: str, source: str):
  """Refuses a set that lacks a file or folder.

  Args:
    spec: the set.
    path: file or folder of it.
    source: where the set is had.

  Raises:
    UserError: it is not there.
  """
  if not epath.Path(path).exists():
    raise errors.UserError(
        f'{spec} is not complete: {path} is missing; {source}')


def pairs_by_stem(spec: str, image_folder: str, map_folder: str
                  ) -> list[tuple[str, str, str]]:
  """Images of a folder with the maps of the same stem in another, sorted.

  Raises:
    UserError: an image without a map.
  """
  files = {os.path.splitext(name)[0]: name
           for name in listing.look(map_folder).paths}
  out, lost = [], []
  for name in listing.look(image_folder).paths:
    stem = os.path.splitext(name)[0]
    if stem in files:
      out.append((f'{image_folder}/{name}', f'{map_folder}/{files[stem]}',
                  name))
    else:
      lost.append(name)
  if lost:
    raise errors.UserError(
        f'{spec}: {len(lost)} images have no file of their name in '
        f'{map_folder} ({text.listed(lost)}): add them, or move the images '
        'away')
  return out


def plain_masks(spec: str) -> Set:
  """`masks:DIR`: DIR/images, DIR/masks, and class names in classes.txt.

  classes.txt stands in DIR or above it, a name a line, the first of id 0.
  Without it, classes are numbered up to the largest id of the masks.

  Raises:
    UserError: no such folder, an image without a mask, masks in colours.
  """
  folder, given = options(spec, 'masks', ignore='')
  for part in ('images', 'masks'):
    need(spec, f'{folder}/{part}', _PLAIN.format('masks'))
  files = pairs_by_stem(spec, f'{folder}/images', f'{folder}/masks')
  ignored = [int(x) for x in given['ignore'].split(',') if x]
  names = next((lists.lines(path) for path in (
      epath.Path(folder) / 'classes.txt',
      epath.Path(folder).parent / 'classes.txt') if path.exists()), None)
  if names is None:
    names = [f'class {i}' for i in range(_largest(files, ignored) + 1)]
  if len(names) > MAX_CLASSES:
    raise errors.UserError(f'{spec} has {len(names)} classes: at most '
                           f'{MAX_CLASSES} can be told apart')
  table = list(range(256)) if ignored else []
  for value in ignored:
    table[value] = IGNORED
  return Set(spec, files, Classes(len(names), tuple(table)), classes=names)


def plain_depth(spec: str) -> Set:
  """`depth:DIR?scale=0.001`: DIR/images and DIR/depth.

  Raises:
    UserError: no such folder, or an image without depths.
  """
  folder, given = options(spec, 'depth', scale='')
  for part in ('images', 'depth'):
    need(spec, f'{folder}/{part}', _PLAIN.format('depth'))
  try:
    scale = float(given['scale']) if given['scale'] else None
  except ValueError:
    scale = -1.0
  if scale is not None and not scale > 0:
    raise errors.UserError(
        f'{spec}: scale={given["scale"]} is no number above 0: give the '
        'metres of a unit, 0.001 for millimetres')
  return Set(spec, pairs_by_stem(spec, f'{folder}/images', f'{folder}/depth'),
             Metres(scale))


_PLAIN = ('images stand in a folder images, and files of the same names in a '
          'folder {} beside it')


def _largest(files: Sequence[tuple[str, str, str]],
             ignored: Sequence[int]) -> int:
  """The largest id of all masks that is not ignored."""
  largest = 0
  for _, truth, _ in files:
    ids = np.unique(np.asarray(Image.open(io.BytesIO(
        epath.Path(truth).read_bytes()))))
    ids = ids[~np.isin(ids, [*ignored, IGNORED])]
    largest = max(largest, int(ids.max(initial=0)))
  return largest
