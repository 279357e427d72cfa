"""Images with boxes of objects: VOC, COCO 20k, and a CSV of one's images.

Source: `voc2007:DIR` and `voc2012:DIR` read VOCdevkit/VOC2007 and VOC2012 as
  torchvision and detectron2 describe them, all boxes of the trainval list, as
  TokenCut and LOST do; `coco20k:DIR` reads train2014 with the list of LOST.
"""

import json
import os
from typing import NamedTuple
from xml.etree import ElementTree

from etils import epath
import numpy as np

from dinojax.core import errors
from dinojax.core import lists
from dinojax.evals.sets import tables

EXAMPLE = ('boxes:FILE.csv with image,x0,y0,x1,y1 in pixels, voc2007:DIR, '
           'voc2012:DIR or coco20k:DIR')
_VOC = ('get the trainval archive of VOC from host.robots.ox.ac.uk, and name '
        'the folder that holds JPEGImages, Annotations and ImageSets')
_COCO = ('get train2014 and its instances from cocodataset.org, and '
         'coco_20k_filenames.txt from the repository of LOST, into one folder')
# Names of corners in the tables that people have.
CORNERS = (('x0', 'y0', 'x1', 'y1'), ('xmin', 'ymin', 'xmax', 'ymax'))


class Item(NamedTuple):
  """An image with its boxes [n, 4] (left, top, right, bottom)."""

  path: epath.Path
  name: str
  boxes: np.ndarray


class Boxes:
  """Images with boxes, in the order of their list."""

  def __init__(self, spec: str, items: list[Item], where: str):
    """Keeps the items.

    Args:
      spec: text that the set was opened by.
      items: images with boxes.
      where: place where missing images are had, for messages.
    """
    self.spec, self.where, self._items = spec, where, items
    if not items:
      raise errors.UserError(f'{spec} has no image with a box: {where}')
    self.digest = str(sum(len(item.boxes) for item in items))

  def __len__(self) -> int:
    return len(self._items)

  def order(self, sizes: bool = False) -> list[str]:
    """Names in order."""
    del sizes
    return [item.name for item in self._items]

  def __getitem__(self, index: int) -> Item:
    return self._items[index]


def open_set(spec: str) -> Boxes:
  """Opens a set of images with boxes.

  Args:
    spec: see EXAMPLE.

  Raises:
    UserError: another spec; files that are missing; boxes that are none.
  """
  scheme = spec.partition(':')[0]
  opens = {'boxes': _table, 'voc2007': _voc, 'voc2012': _voc,
           'coco20k': _coco}.get(scheme)
  if opens is None:
    raise errors.UserError(
        f'{spec!r} is no set of images with boxes: give {EXAMPLE}')
  return opens(spec, tables.folder(spec, scheme, EXAMPLE))


def _table(spec: str, path: epath.Path) -> Boxes:
  """A CSV of a box a row; images are beside it."""
  rows = lists.rows(path, ('image',))
  corners = next((names for names in CORNERS if names[0] in rows[0]),
                 CORNERS[0])
  rows = lists.rows(path, ('image', *corners))
  boxes: dict[str, list[np.ndarray]] = {}
  sizes: dict[str, tuple[int, int]] = {}
  where = f'images are named as seen from {path.parent}'
  for line, row in enumerate(rows, 2):
    box, name = tables.numbers(row, corners, path, line), row['image']
    if name not in sizes:
      sizes[name] = tables.size(path.parent / name, where)
    check(box, sizes[name], f'{path}, row {line}')
    boxes.setdefault(name, []).append(box)
  return Boxes(spec, [Item(path.parent / name, name, np.stack(some))
                      for name, some in boxes.items()], where)


def check(box: np.ndarray, size: tuple[int, int], place: str):
  """Refuses boxes without area or outside the image.

  Raises:
    UserError: such a box.
  """
  left, top, right, bottom = box
  if left >= right or top >= bottom:
    raise errors.UserError(
        f'{place}: the box {left:g}, {top:g}, {right:g}, {bottom:g} has no '
        'area: its corners are left, top, right, bottom')
  if left < 0 or top < 0 or right > size[0] or bottom > size[1]:
    raise errors.UserError(
        f'{place}: the box {left:g}, {top:g}, {right:g}, {bottom:g} is not '
        f'within the image of {size[0]} × {size[1]} pixels: give pixels of '
        'the file itself')


def _voc(spec: str, root: epath.Path) -> Boxes:
  """Every box of the trainval list, difficult and truncated ones too."""
  year = spec[3:7]
  for inner in (f'VOCdevkit/VOC{year}', f'VOC{year}'):
    if (root / inner).is_dir():
      root = root / inner
  names = lists.lines(root / 'ImageSets/Main/trainval.txt', _VOC)
  items = []
  for name in names:
    path = root / 'Annotations' / f'{name}.xml'
    try:
      tree = ElementTree.fromstring(lists.text(path, _VOC))
      boxes = np.array([
          [float(entry.find(f'bndbox/{corner}').text)
           for corner in ('xmin', 'ymin', 'xmax', 'ymax')]
          # Parts of a person have boxes too, further down.
          for entry in tree.findall('object')]).reshape(-1, 4)
    except (ElementTree.ParseError, AttributeError, TypeError,
            ValueError) as error:
      if isinstance(error, errors.UserError):
        raise
      raise errors.UserError(
          f'{path} is no annotation of VOC ({error}): {_VOC}') from error
    boxes[:, :2] -= 1  # counted from 1, the last pixel included
    if len(boxes):
      items.append(Item(root / 'JPEGImages' / f'{name}.jpg', name, boxes))
  if items:
    tables.size(items[0].path, _VOC)
  return Boxes(spec, items, _VOC)


def _coco(spec: str, root: epath.Path) -> Boxes:
  """The images of the list, boxes of crowds left out, corners rounded."""
  names = [os.path.basename(line) for line in lists.lines(
      root / 'coco_20k_filenames.txt', _COCO)]
  path = root / 'annotations/instances_train2014.json'
  try:
    content = json.loads(lists.text(path, _COCO))
    numbers = {image['file_name']: image['id'] for image in content['images']}
    boxes: dict[int, list] = {}
    for entry in content['annotations']:
      if not entry.get('iscrowd'):
        x, y, width, height = entry['bbox']
        boxes.setdefault(entry['image_id'], []).append(
            [round(x), round(y), round(x + width), round(y + height)])
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    if isinstance(error, errors.UserError):
      raise
    raise errors.UserError(
        f'{path} is no list of instances of COCO ({error!r}): {_COCO}'
    ) from error
  unknown = [name for name in names if name not in numbers]
  if unknown:
    raise errors.UserError(
        f'{unknown[0]} of {root}/coco_20k_filenames.txt is not in {path}: '
        f'{_COCO}')
  items = [Item(root / 'train2014' / name, name,
                np.array(boxes[numbers[name]], float))
           for name in names if numbers[name] in boxes]
  if items:
    tables.size(items[0].path, _COCO)
  return Boxes(spec, items, _COCO)
