"""Cityscapes, fine annotations: 19 classes of its ids.

Source: leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip, and the table
  of ids in cityscapesScripts; maps of the 19 classes are not in the archives.
"""

from etils import epath

from dinojax.core import errors
from dinojax.data import listing
from dinojax.evals.sets import dense

CLASSES = (
    'road', 'sidewalk', 'building', 'wall', 'fence', 'pole', 'traffic light',
    'traffic sign', 'vegetation', 'terrain', 'sky', 'person', 'rider', 'car',
    'truck', 'bus', 'train', 'motorcycle', 'bicycle')
_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32,
        33)
_SOURCE = ('unpack leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip of '
           'https://www.cityscapes-dataset.com into one folder')


def opened(spec: str, split: str) -> dense.Set:
  """`cityscapes:DIR?split=train`, or val.

  Raises:
    UserError: files that are missing.
  """
  folder, given = dense.options(spec, 'cityscapes', split=split)
  part = given['split']
  if part not in ('train', 'val'):
    raise errors.UserError(
        f'{spec}: split={part} has no labels: use train or val')
  images, truth = f'{folder}/leftImg8bit/{part}', f'{folder}/gtFine/{part}'
  for path in (images, truth):
    dense.need(spec, path, _SOURCE)
  files = []
  for name in listing.look(images).paths:
    stem = name.removesuffix('_leftImg8bit.png')
    if stem == name:
      continue
    label = f'{truth}/{stem}_gtFine_labelIds.png'
    if not epath.Path(label).exists():
      raise errors.UserError(
          f'{spec} is not complete: {label} is missing; {_SOURCE}')
    files.append((f'{images}/{name}', label, name))
  table = [dense.IGNORED] * 256
  for number, value in enumerate(_IDS):
    table[value] = number
  return dense.Set(
      f'cityscapes:{folder}?split={part}', files,
      dense.Classes(len(CLASSES), tuple(table)), classes=CLASSES)
