"""Sets of ImageNet's classes that test robustness: V2, A, R, Sketch and C.

Layouts: V2 in folders 0 … 999, numbers and not words; A, R and Sketch in
folders of wnids, A and R of 200 classes among which answers are taken; C in
CORRUPTION/LEVEL/WNID.

Source: github.com/modestyachts/ImageNetV2, hendrycks/natural-adv-examples,
  hendrycks/imagenet-r, HaohanWang/ImageNet-Sketch, zenodo.org/records/2235448.
"""

from etils import epath
import numpy as np

from dinojax.core import errors
from dinojax.core import paths
from dinojax.data import folders
from dinojax.data import listing
from dinojax.evals.sets import imagenet
from dinojax.metrics import corruption

_LEVELS = range(1, 6)


def v2(rest: str) -> imagenet.Images:
  """Opens imagenet-v2:DIR?classes=IMAGENET; its folders number the classes.

  Raises:
    UserError: no numbered folder, no wnids, or more folders than wnids.
  """
  folder, words = imagenet.words_of('imagenet-v2', rest, ('classes',))
  spec, place = f'imagenet-v2:{rest}', epath.Path(paths.expand(folder))
  if not place.is_dir():
    raise errors.UserError(
        f'{place} is missing: it is had at huggingface.co/datasets/vaishaal/'
        'ImageNetV2')
  numbers = sorted(int(path.name) for path in place.iterdir()
                   if path.name.isdecimal() and path.is_dir())
  if not numbers:
    raise errors.UserError(
        f'{place}/0 is missing: give the folder imagenetv2-…-format-val, which '
        'holds 0 to 999')
  classes = classes_of(spec, words)
  imagenet.in_range(np.array(numbers), classes, spec)
  names, labels = [], []
  for number in numbers:  # not in the order of their names: 10 before 2
    files = sorted(path.name for path in (place / str(number)).iterdir()
                   if path.suffix.lower() in listing.SUFFIXES)
    names += [f'{number}/{file}' for file in files]
    labels += [number] * len(files)
  return imagenet.Images(spec, place, names, labels, classes)


def a(rest: str) -> imagenet.Images:
  """Opens imagenet-a:DIR.

  Raises:
    UserError: no folders of wnids.
  """
  return _wnids('imagenet-a', rest, 'github.com/hendrycks/'
                'natural-adv-examples', among_its_own=True)


def r(rest: str) -> imagenet.Images:
  """Opens imagenet-r:DIR.

  Raises:
    UserError: no folders of wnids.
  """
  return _wnids('imagenet-r', rest, 'github.com/hendrycks/imagenet-r',
                among_its_own=True)


def sketch(rest: str) -> imagenet.Images:
  """Opens imagenet-sketch:DIR, whose answers are taken among all classes.

  Raises:
    UserError: no folders of wnids.
  """
  return _wnids('imagenet-sketch', rest,
                'github.com/HaohanWang/ImageNet-Sketch', among_its_own=False)


def c(rest: str) -> imagenet.Images:
  """Opens imagenet-c:DIR, all corruptions and levels that are there.

  Columns `corruption`, numbers of corruption.ALEXNET, and `level`, 1 to 5.
  Images are 224 pixels already: evaluate them with data.resize_px=224.

  Raises:
    UserError: no corruption is there.
  """
  folder, _ = imagenet.words_of('imagenet-c', rest, ())
  spec, place = f'imagenet-c:{rest}', epath.Path(paths.expand(folder))
  parts, missing = [], []
  for number, name in enumerate(corruption.ALEXNET):
    if not (place / name).is_dir():
      continue
    for level in _LEVELS:
      if (place / name / str(level)).is_dir():
        parts.append((number, level, f'{name}/{level}', imagenet.by_wnid(
            place / name / str(level), 'zenodo.org/records/2235448')))
      else:
        missing.append(f'{name}/{level}')
  if not parts:
    raise errors.UserError(
        f'{place}/gaussian_noise or any other corruption is missing: unpack '
        'the archives of zenodo.org/records/2235448 there')
  if missing:
    folders.say_once(f'{spec} lacks {", ".join(missing)}: errors are means of '
                     'the levels that are there')
  classes = tuple(sorted({wnid for *_, content in parts
                          for wnid in content[2]}))
  index = {wnid: i for i, wnid in enumerate(classes)}
  names, labels, columns = [], [], {'corruption': [], 'level': []}
  for number, level, below, (files, ours, wnids) in parts:
    names += [f'{below}/{file}' for file in files]
    labels += [index[wnids[label]] for label in ours]
    columns['corruption'] += [number] * len(files)
    columns['level'] += [level] * len(files)
  return imagenet.Images(
      spec, place, names, labels, classes,
      columns={name: np.array(column) for name, column in columns.items()})


def classes_of(spec: str, words: dict[str, str]) -> tuple[str, ...]:
  """The wnids that numbers stand for.

  Raises:
    UserError: nobody says where they are.
  """
  if 'classes' not in words:
    raise errors.UserError(
        f'{spec} numbers its classes and has no wnids: add ?classes=DIR, the '
        'folder of ImageNet, or a file with a wnid a line')
  return imagenet.wnids(epath.Path(paths.expand(words['classes'])))


def _wnids(scheme: str, rest: str, had: str, *,
           among_its_own: bool) -> imagenet.Images:
  folder, _ = imagenet.words_of(scheme, rest, ())
  place = epath.Path(paths.expand(folder))
  names, labels, classes = imagenet.by_wnid(place, had)
  return imagenet.Images(
      f'{scheme}:{rest}', place, names, labels, classes,
      subset=np.arange(len(classes)) if among_its_own else None)
