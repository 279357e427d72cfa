"""PASCAL VOC 2007, the labels of its classification challenge.

Layout: VOCdevkit/VOC2007 with JPEGImages/ID.jpg and ImageSets/Main/
CLASS_SPLIT.txt, lines of an id and 1 (present), −1 (absent) or 0 (only
difficult objects: left out of that class's score).

Source: the development kit of host.robots.ox.ac.uk/pascal/VOC.
"""

from etils import epath
import numpy as np

from dinojax.core import errors
from dinojax.core import lists
from dinojax.core import paths
from dinojax.evals.sets import labels

CLASSES = (
    'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat',
    'chair', 'cow', 'diningtable', 'dog', 'horse', 'motorbike', 'person',
    'pottedplant', 'sheep', 'sofa', 'train', 'tvmonitor')
SPLITS = ('test', 'trainval', 'train', 'val')
_MEANING = {'1': labels.PRESENT, '-1': labels.ABSENT, '0': labels.LEFT_OUT}
_HAD = 'host.robots.ox.ac.uk/pascal/VOC/voc2007'


def classification(rest: str) -> labels.Several:
  """Opens voc2007:DIR[?split=SPLIT]; DIR holds VOCdevkit or is within it.

  Raises:
    UserError: a file is missing, or a line that is no id and label.
  """
  spec = f'voc2007:{rest}'
  folder, split = labels.split_of(rest, SPLITS)
  given = epath.Path(paths.expand(folder))
  root = next((given / part for part in ('', 'VOC2007', 'VOCdevkit/VOC2007')
               if (given / part / 'ImageSets').is_dir()), None)
  if root is None:
    raise errors.UserError(
        f'{given}/VOCdevkit/VOC2007/ImageSets is missing: unpack the archives '
        f'of {_HAD} into {given}')
  columns = []
  for name in CLASSES:
    path = root / 'ImageSets' / 'Main' / f'{name}_{split}.txt'
    columns.append(_read(path))
    if list(columns[-1]) != list(columns[0]):
      raise errors.UserError(
          f'{path} has other ids than {CLASSES[0]}_{split}.txt: unpack the '
          f'archives of {_HAD} again')
  ids = list(columns[0])
  first = root / 'JPEGImages' / f'{ids[0]}.jpg'
  if not first.exists():
    raise errors.UserError(
        f'{first} is missing: unpack the images of {_HAD} too')
  targets = np.array([[column[i] for column in columns] for i in ids], np.int8)
  return labels.Several(spec, root / 'JPEGImages',
                        [f'{i}.jpg' for i in ids], CLASSES, targets)


def _read(path: epath.Path) -> dict[str, int]:
  """Labels by id."""
  if not path.is_file():
    raise errors.UserError(f'{path} is missing: it is had at {_HAD}')
  out = {}
  for line in lists.lines(path):
    words = line.split()
    if not words:
      continue
    if len(words) != 2 or words[1] not in _MEANING:
      raise errors.UserError(
          f'{path}: {line!r} is no id with 1, 0 or -1: unpack it again')
    out[words[0]] = _MEANING[words[1]]
  if not out:
    raise errors.UserError(f'{path} is empty: unpack it again')
  return out
