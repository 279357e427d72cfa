"""ObjectNet: objects in odd places, of which 113 classes are in ImageNet.

Layout: DIR/images/FOLDER/*.png, and in DIR/mappings or DIR the files
folder_to_objectnet_label.json, objectnet_to_imagenet_1k.json,
pytorch_to_imagenet_2012_id.json and imagenet_to_label_2012_v2. The red border
is cut off, two pixels of every side. Its terms forbid to train on it.

Source: objectnet.dev; the chain of its mappings.
"""

import json

from etils import epath
import numpy as np

from dinojax.core import errors
from dinojax.core import paths
from dinojax.data import listing
from dinojax.evals.sets import imagenet
from dinojax.evals.sets import imagenet_variants

BORDER_PX = 2
_HAD = 'objectnet.dev'


def objectnet(rest: str) -> imagenet.Images:
  """Opens objectnet:DIR?classes=IMAGENET; any class of an object is right.

  Objects that ImageNet lacks are left out. A record's label is the first of
  its classes.

  Raises:
    UserError: a file is missing, or no object is one of ImageNet.
  """
  given, words = imagenet.words_of('objectnet', rest, ('classes',))
  spec, folder = f'objectnet:{rest}', epath.Path(paths.expand(given))
  if not (folder / 'images').is_dir():
    raise errors.UserError(
        f'{folder}/images is missing: unpack objectnet-1.0.zip; it is had at '
        f'{_HAD}')
  by_folder = _classes_by_folder(folder)
  classes = imagenet_variants.classes_of(spec, words)
  names, sets = [], []
  for name in sorted(path.name for path in (folder / 'images').iterdir()):
    right = by_folder.get(name)
    if not right:
      continue
    files = sorted(path.name for path in (folder / 'images' / name).iterdir()
                   if path.suffix.lower() in listing.SUFFIXES)
    names += [f'{name}/{file}' for file in files]
    sets += [right] * len(files)
  if not names:
    raise errors.UserError(
        f'{folder}/images has no folder of an object that ImageNet has: unpack '
        f'the set again; it is had at {_HAD}')
  numbers = imagenet.padded(sets)
  imagenet.in_range(numbers, classes, spec)
  return imagenet.Images(
      spec, folder / 'images', names, numbers[:, 0], classes,
      label_sets=numbers, evaluation_only=True, border_px=BORDER_PX,
      subset=np.unique(numbers[numbers >= 0]))


def _classes_by_folder(folder: epath.Path) -> dict[str, list[int]]:
  """Sorted numbers of ImageNet's classes for each folder of images."""
  label_of = json.loads(_read(folder, 'folder_to_objectnet_label.json'))
  names_of = json.loads(_read(folder, 'objectnet_to_imagenet_1k.json'))
  line_of = json.loads(_read(folder, 'pytorch_to_imagenet_2012_id.json'))
  lines = [line.strip() for line in _read(
      folder, 'imagenet_to_label_2012_v2').splitlines() if line.strip()]
  class_of_line = {int(line): int(number) for number, line in line_of.items()}
  class_of_name = {name: class_of_line[i] for i, name in enumerate(lines)
                   if i in class_of_line}
  out = {}
  for name, label in label_of.items():
    wanted = names_of.get(label, '').split('; ') if label in names_of else []
    unknown = [each for each in wanted if each.strip() not in class_of_name]
    if unknown:
      raise errors.UserError(
          f'{folder}: objectnet_to_imagenet_1k.json names {unknown[0]!r} for '
          f'{label}, which imagenet_to_label_2012_v2 lacks: unpack both again')
    out[name] = sorted(class_of_name[each.strip()] for each in wanted)
  return out


def _read(folder: epath.Path, name: str) -> str:
  """A file of the mappings, in their folder or beside the images."""
  for path in (folder / 'mappings' / name, folder / name):
    if path.is_file():
      return path.read_bytes().decode('utf-8-sig')
  raise errors.UserError(
      f'{folder}/mappings/{name} is missing: it is part of objectnet-1.0.zip, '
      f'had at {_HAD}')
