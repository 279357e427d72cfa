"""Images with segments: objects that have masks, or every pixel in one.

`coco_instances:FILE.json?images=DIR` has masks of objects, which may overlap;
`coco_panoptic:FILE.json?images=DIR&masks=DIR` puts every pixel in one segment.
Of a folder in COCO's own layout, `coco_instances:DIR?split=val2017`.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import hashlib
import io
import json
from typing import Any, NamedTuple

from etils import epath
import numpy as np
from PIL import Image

from dinojax.core import errors
from dinojax.core import lists
from dinojax.data import images
from dinojax.evals.sets import dense

SCHEMES = ('coco_panoptic', 'coco_instances')
EXAMPLE = ('coco_panoptic:FILE.json?images=DIR&masks=DIR, coco_instances:'
           'FILE.json?images=DIR, or the folder of COCO in place of the file')
_SOURCE = 'get the images and annotations from cocodataset.org'
_NEEDS = ('masks of objects as polygons or run lengths need pycocotools: pip '
          'install "dinojax[coco]"')


@dataclasses.dataclass(frozen=True)
class Segments:
  """Segments of an image, numbered from 1.

  Attributes:
    layers: [l, y, x] int32: number of the segment of every pixel, 0 of none.
      Segments that overlap lie in different layers.
    kinds: [t] classes of the segments.
    crowd: [t] bool: many objects that are not told apart.
  """

  layers: np.ndarray
  kinds: np.ndarray
  crowd: np.ndarray

  @property
  def masks(self) -> np.ndarray:
    """[t, y, x] bool."""
    numbers = np.arange(1, len(self.kinds) + 1)
    return np.any(self.layers[None] == numbers[:, None, None, None], axis=1)

  def panoptic(self, num_classes: int) -> np.ndarray:
    """[y, x, 2] int32 class and number of every pixel; num_classes, −1."""
    number, = self.layers
    kinds = np.concatenate([[num_classes], self.kinds])
    return np.stack([kinds[number], number - 1], axis=-1).astype(np.int32)


class Drawn(NamedTuple):
  """An object in an annotation: its class, its outline or run lengths."""

  kind: int
  crowd: bool
  shape: Any


@dataclasses.dataclass(frozen=True)
class Pair:
  """An image and its segments, as stored.

  Attributes:
    image: encoded bytes.
    name: stable identity within the set.
    where: place of the segments, for messages.
    size: (width, height) as the annotation has them.
    read: gives the segments.
  """

  image: bytes
  name: str
  where: str
  size: tuple[int, int]
  read: Callable[[], Segments]

  def header(self) -> tuple[int, int]:
    """Rows and columns of the image, from its header."""
    return images.open_image(self.image).size[::-1]

  def decoded(self) -> tuple[Image.Image, Segments]:
    """Image and segments.

    Raises:
      BadImage: an image that cannot be decoded.
      UserError: segments of another size, or that are damaged.
    """
    picture, segments = images.open_image(self.image).decode(), self.read()
    of_map = segments.layers.shape[:0:-1] if len(segments.layers) else self.size
    if picture.size != tuple(of_map):
      raise errors.UserError(
          '{}: {} has segments of {} × {} pixels and {} × {} of its own: give '
          'the images that were annotated'.format(
              self.where, self.name, *of_map, *picture.size))
    return picture, segments


class Set:
  """Images with segments; a random-access sequence that travels to workers."""

  def __init__(self, spec: str, items: Sequence[tuple[str, tuple[int, int]]],
               folder: str, read: Callable[[int], Segments], where: str, *,
               categories: Mapping[int, tuple[str, bool]], content: str):
    """Keeps names and annotations.

    Args:
      spec: how the set was asked for, for messages.
      items: name and (width, height) of every image.
      folder: folder of the images.
      read: segments of an item.
      where: place of the annotations, for messages.
      categories: name, and whether it is of things, of classes by their id.
      content: text that differs where annotations do.

    Raises:
      UserError: no image.
    """
    self.spec, self.where = spec, where
    self.classes = tuple(name for name, _ in categories.values())
    self.category_ids = tuple(categories)
    self.stuff = tuple(i for i, (_, thing) in enumerate(categories.values())
                       if not thing)
    self.is_panoptic = spec.startswith('coco_panoptic')
    self._items, self._folder, self._read = tuple(items), folder, read
    self._content = content
    if not self._items:
      raise errors.UserError(f'{spec} has no image: check {where}')

  def __len__(self) -> int:
    return len(self._items)

  def __getitem__(self, index: int) -> Pair:
    name, size = self._items[index]
    return Pair(epath.Path(f'{self._folder}/{name}').read_bytes(), name,
                self.where, size, _Reading(self._read, index))

  def order(self, sizes: bool = False) -> list[str]:
    """Names in order, with the sizes of the images."""
    return ['\t'.join([name, *(map(str, size) if sizes else ())])
            for name, size in self._items]

  @property
  def digest(self) -> str:
    """Text that differs with the classes, the images or the annotations."""
    return hashlib.sha256('\n'.join([
        *self.classes, *self.order(), self._content]).encode()).hexdigest()[:8]


@dataclasses.dataclass(frozen=True)
class _Reading:
  """Reads the segments of an item."""

  read: Callable[[int], Segments]
  index: int

  def __call__(self) -> Segments:
    return self.read(self.index)


def opened(spec: str, split: str) -> Set:
  """The set of a spec, see the module.

  Args:
    spec: see EXAMPLE.
    split: part of COCO that is read where the spec names a folder alone.

  Raises:
    UserError: another spec; files that are missing or damaged.
  """
  scheme = spec.partition(':')[0]
  if scheme not in SCHEMES:
    raise errors.UserError(
        f'{spec!r} is no set of images with segments: give {EXAMPLE}')
  given = {'images': '', 'split': split}
  if scheme == 'coco_panoptic':
    given['masks'] = ''
  path, given = dense.options(spec, scheme, **given)
  kind, part = scheme.removeprefix('coco_'), given['split']
  if not path.endswith('.json'):
    given['images'] = given['images'] or f'{path}/{part}'
    path = f'{path}/annotations/{kind}_{part}.json'
  folder = epath.Path(path).parent
  for name in ('images', 'masks'):
    if name in given and not given[name]:
      given[name] = str(folder / (name if name == 'images' else epath.Path(
          path).stem))
  dense.need(spec, path, _SOURCE)
  dense.need(spec, given['images'], f'name it by {spec}?images=DIR')
  content = _content(path)
  make = _panoptic if scheme == 'coco_panoptic' else _instances
  try:
    return make(spec, path, given, content)
  except (KeyError, TypeError, AttributeError, ValueError) as error:
    if isinstance(error, errors.UserError):
      raise
    raise errors.UserError(
        f'{path} is no list of COCO with images, annotations and categories '
        f'({error!r}): {_SOURCE}') from error


def _content(path: str) -> dict:
  try:
    content = json.loads(lists.text(epath.Path(path), _SOURCE))
  except ValueError as error:
    raise errors.UserError(
        f'{path} is no JSON ({error}): get it again') from error
  return content


def _categories(content: Mapping) -> dict[int, tuple[str, bool]]:
  """Name of every class by its id, and whether it is of things."""
  return {int(each['id']): (str(each['name']), bool(each.get('isthing', 1)))
          for each in sorted(content['categories'], key=lambda x: x['id'])}


def _instances(spec: str, path: str, given: Mapping, content: Mapping) -> Set:
  """A set of objects."""
  try:
    import pycocotools.mask  # noqa: F401
  except ImportError as error:
    raise errors.UserError(f'{spec}: {_NEEDS}') from error
  categories = _categories(content)
  index = {number: i for i, number in enumerate(categories)}
  of: dict[int, list[Drawn]] = {int(each['id']): []
                                for each in content['images']}
  for each in content['annotations']:
    if each['image_id'] not in of or each['category_id'] not in index:
      raise errors.UserError(
          f'{path}: annotation {each.get("id")} is of image '
          f'{each["image_id"]} and category {each["category_id"]}, and the '
          'file lists one of them nowhere: mend the annotation')
    of[int(each['image_id'])].append(Drawn(
        index[each['category_id']], bool(each.get('iscrowd', 0)),
        each['segmentation']))
  rows = content['images']
  items = [(each['file_name'], (int(each['width']), int(each['height'])))
           for each in rows]
  drawn = [tuple(of[int(each['id'])]) for each in rows]
  return Set(spec, items, given['images'], Objects(tuple(drawn), tuple(
      size for _, size in items), path), path, categories=categories,
             content=json.dumps(content['annotations'], sort_keys=True))


@dataclasses.dataclass(frozen=True)
class Objects:
  """Segments of objects that are drawn.

  Attributes:
    drawn: objects of every image.
    sizes: (width, height) of every image.
    where: place of the annotations, for messages.
  """

  drawn: tuple[tuple[Drawn, ...], ...]
  sizes: tuple[tuple[int, int], ...]
  where: str

  def __call__(self, index: int) -> Segments:
    width, height = self.sizes[index]
    try:
      masks = [mask_of(each.shape, height, width)
               for each in self.drawn[index]]
    except (ValueError, TypeError, KeyError, IndexError) as error:
      raise errors.UserError(
          f'{self.where}: an object of image {index} has no polygons and no '
          f'run lengths ({error!r}): mend the annotation') from error
    return Segments(
        layered(masks, (height, width)),
        np.array([each.kind for each in self.drawn[index]], np.int32),
        np.array([each.crowd for each in self.drawn[index]], bool))


def mask_of(shape: Any, height: int, width: int) -> np.ndarray:
  """[y, x] bool of polygons [[x, y, x, y, …], …] or of run lengths.

  Raises:
    ValueError: it is neither, or of another size.
  """
  from pycocotools import mask as coco
  if isinstance(shape, list):
    if not shape:
      return np.zeros((height, width), bool)
    runs = coco.merge(coco.frPyObjects(shape, height, width))
  else:
    if tuple(shape['size']) != (height, width):
      raise ValueError(f'run lengths of {shape["size"]}, and the image has '
                       f'{height} rows and {width} columns')
    runs = shape if not isinstance(shape['counts'], list) else (
        coco.frPyObjects(shape, height, width))
  return coco.decode(runs).astype(bool)


def layered(masks: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
  """[l, y, x] numbers of masks, in the first layer that has room for each."""
  layers: list[np.ndarray] = []
  for number, mask in enumerate(masks, 1):
    free = next((layer for layer in layers if not layer[mask].any()), None)
    if free is None:
      free = np.zeros(size, np.int32)
      layers.append(free)
    free[mask] = number
  return np.stack(layers) if layers else np.zeros((1, *size), np.int32)


def _panoptic(spec: str, path: str, given: Mapping, content: Mapping) -> Set:
  """A set whose every pixel is in a segment."""
  dense.need(spec, given['masks'], f'name it by {spec}?masks=DIR')
  categories = _categories(content)
  index = {number: i for i, number in enumerate(categories)}
  names = {int(each['id']): each for each in content['images']}
  items, maps = [], []
  for each in content['annotations']:
    image = names[int(each['image_id'])]
    items.append((image['file_name'], (
        int(image['width']), int(image['height']))))
    maps.append((each['file_name'], tuple(
        (int(x['id']), index[x['category_id']], bool(x.get('iscrowd', 0)))
        for x in each['segments_info'])))
  return Set(spec, items, given['images'], Colors(given['masks'], tuple(maps)),
             path, categories=categories, content=json.dumps(
                 content['annotations'], sort_keys=True))


@dataclasses.dataclass(frozen=True)
class Colors:
  """Segments whose numbers are colours: red + 256 · green + 65536 · blue.

  Attributes:
    folder: folder of the PNG files.
    maps: file, and id, class and crowd of its segments, of every image.
  """

  folder: str
  maps: tuple[tuple[str, tuple[tuple[int, int, bool], ...]], ...]

  def __call__(self, index: int) -> Segments:
    name, known = self.maps[index]
    path = epath.Path(f'{self.folder}/{name}')
    data = path.read_bytes()
    with images.Decoding(len(data)):
      pixels = np.asarray(Image.open(io.BytesIO(data)).convert('RGB')).astype(
          np.int32)
    ids = pixels[..., 0] + 256 * pixels[..., 1] + 65536 * pixels[..., 2]
    seen, place = np.unique(ids, return_inverse=True)
    number_of = {each[0]: i for i, each in enumerate(known, 1)}
    lost = [int(x) for x in seen if x and int(x) not in number_of]
    if lost:
      raise errors.UserError(
          f'{path} has pixels of segment {lost[0]}, which its annotation does '
          'not list: get both from one place')
    numbers = np.array([number_of.get(int(x), 0) for x in seen], np.int32)
    return Segments(numbers[place.reshape(ids.shape)][None], np.array(
        [each[1] for each in known], np.int32), np.array(
            [each[2] for each in known], bool))
