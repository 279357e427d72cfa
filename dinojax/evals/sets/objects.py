"""Images with boxes of objects that have classes.

`coco_boxes:FILE.json?images=DIR` reads the boxes of an annotation of COCO, and
`coco_boxes:DIR?split=val2017` a folder in its layout. `boxes:FILE.csv` reads a
box a row: image, class (or label), and corners x0,y0,x1,y1 or
xmin,ymin,xmax,ymax in pixels; a row without corners is an image without one.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import json
from typing import Any

from etils import epath
import numpy as np
from PIL import Image

from dinojax.core import errors
from dinojax.core import lists
from dinojax.data import images
from dinojax.evals.sets import boxes as boxes_lib
from dinojax.evals.sets import dense
from dinojax.evals.sets import tables

SCHEMES = ('coco_boxes', 'boxes')
EXAMPLE = ('boxes:FILE.csv with image,class,x0,y0,x1,y1 in pixels, coco_boxes:'
           'FILE.json?images=DIR, or coco_boxes: and the folder of COCO')
CLASSES = ('class', 'label', 'name')  # columns that may name the class
_SOURCE = 'get the images and annotations from cocodataset.org'
_UNNAMED = 'object'  # class of boxes that have none
_ROUNDING = 1.0  # pixels that boxes of COCO may reach beyond an image


@dataclasses.dataclass(frozen=True)
class Truth:
  """Objects of an image.

  Attributes:
    boxes: [t, 4] corners in pixels.
    kinds: [t] classes.
    crowd: [t] bool: many objects that are not told apart.
    areas: [t] pixels of the objects, by which they are small or large.
  """

  boxes: np.ndarray
  kinds: np.ndarray
  crowd: np.ndarray
  areas: np.ndarray


NOTHING = Truth(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, bool),
                np.zeros(0))


@dataclasses.dataclass(frozen=True)
class Pair:
  """An image and its objects.

  Attributes:
    image: encoded bytes.
    name: stable identity within the set.
    where: place of the boxes, for messages.
    truth: its objects.
    size: (width, height) as the annotation has them; None: it does not say.
  """

  image: bytes
  name: str
  where: str
  truth: Truth
  size: tuple[int, int] | None = None

  def header(self) -> tuple[int, int]:
    """Rows and columns of the image, from its header."""
    return images.open_image(self.image).size[::-1]

  def decoded(self) -> tuple[Image.Image, Truth]:
    """Image and objects.

    Raises:
      BadImage: an image that cannot be decoded.
      UserError: boxes of an image of another size, or outside of it.
    """
    picture = images.open_image(self.image).decode()
    if self.size and picture.size != self.size:
      raise errors.UserError(
          '{}: {} has boxes for {} × {} pixels and {} × {} of its own: give '
          'the images that were annotated'.format(
              self.where, self.name, *self.size, *picture.size))
    for box in self.truth.boxes:
      boxes_lib.check(box, picture.size, f'{self.where}: {self.name}')
    return picture, self.truth


class Set:
  """Images with objects; a random-access sequence that travels to workers."""

  def __init__(self, spec: str, items: Sequence[tuple[str, Truth, Any]],
               folder: str, where: str, *, classes: Sequence[str],
               category_ids: Sequence[int] | None = None,
               dropped: int = 0):
    """Keeps names and boxes.

    Args:
      spec: how the set was asked for, for messages.
      items: name, objects and (width, height) or None of every image.
      folder: folder of the images.
      where: place of the boxes, for messages.
      classes: names of the classes.
      category_ids: numbers of the classes in results; None: from 0.
      dropped: boxes without area that were left out.

    Raises:
      UserError: no image, or no box at all.
    """
    self.spec, self.where, self.dropped = spec, where, dropped
    self.classes = tuple(classes)
    self.category_ids = tuple(category_ids if category_ids is not None
                              else range(len(self.classes)))
    self._items, self._folder = tuple(items), folder
    if not any(len(truth.boxes) for _, truth, _ in self._items):
      raise errors.UserError(
          f'{spec} has no image with a box ({len(self._items)} images): check '
          f'{where}')

  def __len__(self) -> int:
    return len(self._items)

  def __getitem__(self, index: int) -> Pair:
    name, truth, size = self._items[index]
    return Pair((epath.Path(self._folder) / name).read_bytes(), name,
                self.where, truth, size)

  @property
  def most(self) -> int:
    """Objects of the image that has the most."""
    return max(len(truth.boxes) for _, truth, _ in self._items)

  @property
  def num_empty(self) -> int:
    """Images without an object."""
    return sum(not len(truth.boxes) for _, truth, _ in self._items)

  def order(self, sizes: bool = False) -> list[str]:
    """Names in order, with the sizes of the files."""
    names = [name for name, _, _ in self._items]
    if not sizes:
      return names
    root = epath.Path(self._folder)
    return [f'{name}\t{(root / name).stat().length}' for name in names]

  @property
  def digest(self) -> str:
    """Text that differs with the classes, the images or their boxes."""
    content = [(name, *(np.asarray(part).tolist() for part in (
        truth.boxes, truth.kinds, truth.crowd)))
               for name, truth, _ in self._items]
    return hashlib.sha256(json.dumps(
        [self.classes, content]).encode()).hexdigest()[:8]

  def with_classes(self, other: 'Set') -> 'Set':
    """The same boxes, with the classes of another set.

    Raises:
      UserError: a class that the other set does not have.
    """
    unknown = [name for name in self.classes if name not in other.classes]
    if unknown:
      raise errors.UserError(
          f'{self.spec} has objects of {", ".join(unknown[:4])}, which '
          f'{other.spec} does not have: a head knows the classes that it was '
          'trained on; give it images of these too, or leave them out here')
    number = np.array([other.classes.index(name) for name in self.classes],
                      np.int64)
    items = [(name, dataclasses.replace(truth, kinds=number[truth.kinds]),
              size) for name, truth, size in self._items]
    return Set(self.spec, items, self._folder, self.where,
               classes=other.classes, category_ids=other.category_ids,
               dropped=self.dropped)


def opened(spec: str, split: str) -> Set:
  """The set of a spec, see the module.

  Args:
    spec: see EXAMPLE.
    split: part of COCO that is read where the spec names a folder alone.

  Raises:
    UserError: another spec; files that are missing or damaged; boxes without
      area or outside of their images.
  """
  scheme = spec.partition(':')[0]
  if scheme == 'boxes':
    return _table(spec, tables.folder(spec, scheme, EXAMPLE))
  if scheme != 'coco_boxes':
    raise errors.UserError(
        f'{spec!r} is no set of images with boxes: give {EXAMPLE}')
  path, given = dense.options(spec, scheme, images='', split=split)
  if not path.endswith('.json'):
    given['images'] = given['images'] or f'{path}/{given["split"]}'
    path = f'{path}/annotations/instances_{given["split"]}.json'
  given['images'] = given['images'] or str(epath.Path(path).parent / 'images')
  dense.need(spec, path, _SOURCE)
  dense.need(spec, given['images'], f'name it by {spec}?images=DIR')
  try:
    return _coco(spec, path, given['images'], json.loads(lists.text(
        epath.Path(path), _SOURCE)))
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    if isinstance(error, errors.UserError):
      raise
    raise errors.UserError(
        f'{path} is no list of COCO with images, annotations and categories '
        f'({error!r}): {_SOURCE}') from error


def _table(spec: str, path: epath.Path) -> Set:
  """A CSV of a box a row; images are beside it."""
  rows = lists.rows(path, ('image',))
  corners = next((names for names in boxes_lib.CORNERS if names[0] in rows[0]),
                 boxes_lib.CORNERS[0])
  column = next((name for name in CLASSES if name in rows[0]), None)
  lists.rows(path, ('image', *corners))
  of: dict[str, list[tuple[np.ndarray, str]]] = {}
  sizes: dict[str, tuple[int, int]] = {}
  where = f'images are named as seen from {path.parent}'
  for line, row in enumerate(rows, 2):
    name = row['image']
    if name not in sizes:
      sizes[name] = tables.size(path.parent / name, where)
    some = of.setdefault(name, [])
    if not any(row[corner] for corner in corners):
      continue
    box = tables.numbers(row, corners, path, line)
    boxes_lib.check(box, sizes[name], f'{path}, row {line}')
    kind = row[column] if column else _UNNAMED
    if not kind:
      raise errors.UserError(
          f'{path}, row {line}: {column} is empty: name the class of the box')
    some.append((box, kind))
  classes = sorted({kind for some in of.values() for _, kind in some})
  return Set(spec, [(name, _truth(
      [box for box, _ in some], [classes.index(kind) for _, kind in some]),
                     sizes[name]) for name, some in of.items()],
             str(path.parent), str(path), classes=classes)


def _coco(spec: str, path: str, folder: str, content: Mapping) -> Set:
  """The boxes of an annotation of COCO; those without area are left out."""
  categories = sorted(content['categories'], key=lambda x: x['id'])
  ids = [int(each['id']) for each in categories]
  number = {kind: i for i, kind in enumerate(ids)}
  of: dict[int, list[Mapping]] = {int(each['id']): []
                                  for each in content['images']}
  dropped = 0
  for each in content['annotations']:
    if each['image_id'] not in of or each['category_id'] not in number:
      raise errors.UserError(
          f'{path}: annotation {each.get("id")} is of image '
          f'{each["image_id"]} and category {each["category_id"]}, and the '
          'file lists no such image or category: get it again')
    if min(each['bbox'][2:]) <= 0:
      dropped += 1
      continue
    of[int(each['image_id'])].append(each)
  items = []
  for image in content['images']:
    size = int(image['width']), int(image['height'])
    some = of[int(image['id'])]
    boxes = [_corners(each, size, path) for each in some]
    items.append((image['file_name'], _truth(
        boxes, [number[each['category_id']] for each in some],
        [bool(each.get('iscrowd', 0)) for each in some],
        [float(each['area']) if 'area' in each else None for each in some]),
                  size))
  return Set(spec, items, folder, path, classes=[
      str(each['name']) for each in categories], category_ids=ids,
             dropped=dropped)


def _corners(entry: Mapping, size: tuple[int, int], path: str) -> np.ndarray:
  """[4] corners of an annotation, cut to the image where they round beyond.

  Raises:
    UserError: a box that reaches further.
  """
  x, y, width, height = map(float, entry['bbox'])
  box = np.array([x, y, x + width, y + height])
  inside = np.clip(box, 0, np.tile(size, 2))
  if np.abs(box - inside).max() > _ROUNDING:
    boxes_lib.check(box, size, f'{path}, annotation {entry.get("id")}')
  return inside


def _truth(boxes: Sequence[np.ndarray], kinds: Sequence[int],
           crowd: Sequence[bool] = (),
           areas: Sequence[float | None] = ()) -> Truth:
  """Objects; areas are those of the boxes where they are not given."""
  stack = np.array(boxes, np.float64).reshape(-1, 4)
  whole = np.prod(stack[:, 2:] - stack[:, :2], axis=1)
  given = areas if len(areas) else [None] * len(stack)
  return Truth(
      stack, np.array(kinds, np.int64), np.array(
          crowd if len(crowd) else [False] * len(stack), bool),
      np.array([of_box if area is None else area for area, of_box in zip(
          given, whole, strict=True)], np.float64))
