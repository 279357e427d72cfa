"""ImageNet-1k: train, validation in folders or flat, and its ReaL labels.

Classes are wnids such as n01440764, in sorted order, as every published head
numbers them; the devkit numbers them otherwise.

Layout: DIR/train/WNID/*.JPEG; DIR/val/WNID/*.JPEG, or DIR/val/ILSVRC2012_
val_00000001.JPEG … with DIR/ILSVRC2012_devkit_t12/data/meta.mat and
ILSVRC2012_validation_ground_truth.txt; DIR/real.json.

Source: image-net.org; github.com/google-research/reassessed-imagenet.
"""

from collections.abc import Sequence
import csv
import functools
import io
import json
import re
from urllib import parse

from etils import epath
import numpy as np

from dinojax.core import errors
from dinojax.core import lists
from dinojax.core import paths
from dinojax.core import text
from dinojax.data import identity
from dinojax.data import listing
from dinojax.data import record as record_lib

WNID = re.compile(r'n\d{8}')
SPLITS = ('val', 'train')
_HAD = 'image-net.org, after registration'
_DEVKIT = 'ILSVRC2012_devkit_t12/data'
_NUMBER = re.compile(r'ILSVRC2012_val_(\d{8})', re.IGNORECASE)
NONE = -1


class Images:
  """Labelled images of ImageNet's classes, with what a score needs of them.

  Attributes:
    spec: text that opened it.
    classes: wnids; labels number them.
    subset: numbers of the classes among which an answer is taken; None: all
      that a head has.
    label_sets: [r, n] classes that are right, padded with −1; None: the label.
    columns: [r] values by name, such as corruption and level.
    evaluation_only: terms allow no training on it.
  """

  def __init__(self, spec: str, folder: epath.Path, names: Sequence[str],
               labels: Sequence[int], classes: Sequence[str], *,
               subset: np.ndarray | None = None,
               label_sets: np.ndarray | None = None,
               columns: dict[str, np.ndarray] | None = None,
               evaluation_only: bool = False, border_px: int = 0):
    """Takes what a reader has listed; images are not opened."""
    self.spec, self.classes = spec, tuple(classes)
    self.subset, self.label_sets = subset, label_sets
    self.columns = columns or {}
    self.evaluation_only = evaluation_only
    self._folder, self._names = folder, list(names)
    self._labels = [int(label) for label in labels]
    self._border_px = border_px

  def __len__(self) -> int:
    return len(self._names)

  def __getitem__(self, index: int) -> record_lib.Record:
    name = self._names[index]
    data = (self._folder / name).read_bytes()
    if self._border_px:
      data = without_border(data, self._border_px)
    return record_lib.Record(data, self._labels[index], name)

  def order(self, sizes: bool = False) -> list[str]:
    """Names in order."""
    del sizes
    return self._names

  def labels(self) -> list[int]:
    """Labels in order, −1 for none."""
    return self._labels

  @functools.cached_property
  def digest(self) -> str:
    """Hash of names, labels and what is right."""
    lines = [f'{name}\t{label}' for name, label in zip(
        self._names, self._labels, strict=True)]
    if self.label_sets is not None:
      lines.append(self.label_sets.astype(np.int32).tobytes().hex())
    return identity.digest([*self.classes, *lines])


def without_border(data: bytes, border_px: int) -> bytes:
  """The image as PNG without so many pixels at every side."""
  from PIL import Image
  with Image.open(io.BytesIO(data)) as image:
    width, height = image.size
    inner = image.crop(
        (border_px, border_px, width - border_px, height - border_px))
    out = io.BytesIO()
    inner.save(out, 'PNG', compress_level=1)
  return out.getvalue()


def validation_or_train(rest: str) -> Images:
  """Opens imagenet:DIR[?split=train].

  Raises:
    UserError: a file or folder is missing.
  """
  given, words = words_of('imagenet', rest, ('split',))
  folder, split = epath.Path(paths.expand(given)), words.get('split', 'val')
  if split not in SPLITS:
    raise errors.UserError(
        f'imagenet:{rest} asks for split={split}: use val or train')
  spec = f'imagenet:{rest}'
  if split == 'val' and not wnid_folders(folder / split):
    names, labels, classes = _flat(folder)
    return Images(spec, folder / 'val', names, labels, classes)
  names, labels, classes = by_wnid(folder / split, _HAD)
  if split == 'val' and (folder / 'train').is_dir():
    every = wnids(folder)  # so that numbers are those of all classes
    place = {name: i for i, name in enumerate(every)}
    if set(classes) <= place.keys():
      labels = [place[classes[label]] for label in labels]
      classes = every
  return Images(spec, folder / split, names, labels, classes)


def real(rest: str) -> Images:
  """Opens imagenet-real:DIR[?labels=FILE], real.json of DIR without it.

  Labels belong to the numbers in the names of files. An image whose list is
  empty has no right answer, and is left out of means.

  Raises:
    UserError: a file is missing, or has other numbers of images or classes.
  """
  given, words = words_of('imagenet-real', rest, ('labels',))
  images = validation_or_train(given)
  path = epath.Path(paths.expand(words.get('labels', f'{given}/real.json')))
  if not path.is_file():
    raise errors.UserError(
        f'{path} is missing: it is had at '
        'github.com/google-research/reassessed-imagenet')
  lists = json.loads(path.read_text())
  numbers = [_NUMBER.search(name) for name in images.order()]
  wrong = [name for name, number in zip(
      images.order(), numbers, strict=True) if not number or not
           1 <= int(number[1]) <= len(lists)]
  if wrong:
    raise errors.UserError(
        f'{images.spec}: {text.printable(wrong[0])} has no number from 1 to '
        f'{len(lists)} of {path.name}: use the names of ILSVRC2012')
  sets = padded([lists[int(number[1]) - 1] for number in numbers])
  in_range(sets, images.classes, path.name)
  return Images(f'imagenet-real:{rest}', images._folder, images.order(),
                images.labels(), images.classes, label_sets=sets)


def words_of(scheme: str, rest: str, known: Sequence[str]
             ) -> tuple[str, dict[str, str]]:
  """The folder of a spec, and its words behind a question mark.

  Raises:
    UserError: a word that is not known.
  """
  folder, _, query = rest.partition('?')
  words = dict(parse.parse_qsl(query, keep_blank_values=True))
  if set(words) - set(known):
    raise errors.UserError(
        f'{scheme}:{rest} has the words {", ".join(words)}: it knows '
        f'{", ".join(known) or "none"}')
  return folder.rstrip('/'), words


def wnids(place: epath.Path) -> tuple[str, ...]:
  """Sorted wnids of ImageNet: of its folder, or a file with one a line.

  Raises:
    UserError: none is there.
  """
  if place.is_file():
    names = [row[0].split()[0] for row in csv.reader(
        lists.lines(place)) if row]
    names = [name for name in names if WNID.fullmatch(name)]
  else:
    names = (wnid_folders(place / 'train') or (
        wnids(place / 'labels.txt') if (place / 'labels.txt').is_file()
        else wnid_folders(place / 'val')))
    if not names and (place / _DEVKIT / 'meta.mat').is_file():
      names = list(_devkit(place).values())
  if not names:
    raise errors.UserError(
        f'{place} has no train/, val/ or labels.txt with wnids such as '
        'n01440764: give the folder of ImageNet, or a file with a wnid a line')
  return tuple(sorted(set(names)))


def wnid_folders(folder: epath.Path) -> list[str]:
  """Sorted names of folders that are wnids; a README beside them is none."""
  if not folder.is_dir():
    return []
  return sorted(path.name for path in folder.iterdir()
                if WNID.fullmatch(path.name) and path.is_dir())


def by_wnid(folder: epath.Path, had: str
            ) -> tuple[list[str], list[int], tuple[str, ...]]:
  """Names, labels and classes of folder/WNID/*.

  Raises:
    UserError: no such folders, or no image in them.
  """
  classes = wnid_folders(folder)
  if not classes:
    raise errors.UserError(
        f'{folder}/n01440764 or any other folder of a wnid is missing: unpack '
        f'the set there; it is had at {had}')
  names, labels = [], []
  for label, wnid in enumerate(classes):
    files = sorted(path.name for path in (folder / wnid).iterdir()
                   if path.suffix.lower() in listing.SUFFIXES)
    names += [f'{wnid}/{file}' for file in files]
    labels += [label] * len(files)
  if not names:
    raise errors.UserError(
        f'{folder}/{classes[0]} holds no image: unpack the set again; it is '
        f'had at {had}')
  return names, labels, tuple(classes)


def padded(lists: Sequence[Sequence[int]]) -> np.ndarray:
  """[r, n] numbers, filled with −1."""
  out = np.full((len(lists), max(map(len, lists), default=0) or 1), NONE)
  for row, numbers in zip(out, lists, strict=True):
    row[:len(numbers)] = numbers
  return out


def in_range(numbers: np.ndarray, classes: Sequence[str], name: str):
  """Refuses numbers that are no classes.

  Raises:
    UserError: more classes than are known.
  """
  if numbers.max(initial=NONE) >= len(classes):
    raise errors.UserError(
        f'{name} has class {numbers.max()}, and {len(classes)} classes are '
        'known: give the folder of the whole ImageNet, of 1,000 wnids')


def _flat(folder: epath.Path
          ) -> tuple[list[str], list[int], tuple[str, ...]]:
  """The validation images beside each other, labelled by the devkit."""
  for part in ('val', f'{_DEVKIT}/meta.mat',
               f'{_DEVKIT}/ILSVRC2012_validation_ground_truth.txt'):
    if not (folder / part).exists():
      raise errors.UserError(f'{folder / part} is missing: it is had at {_HAD}')
  by_number = _devkit(folder)
  classes = tuple(sorted(by_number.values()))
  path = folder / _DEVKIT / 'ILSVRC2012_validation_ground_truth.txt'
  truth = [int(line) for line in path.read_bytes().decode(
      'utf-8-sig').splitlines() if line.strip()]
  names = sorted(path.name for path in (folder / 'val').iterdir()
                 if _NUMBER.match(path.name))
  numbers = [int(_NUMBER.match(name)[1]) for name in names]
  if not names or max(numbers) > len(truth):
    raise errors.UserError(
        f'{folder}/val has {len(names)} images ILSVRC2012_val_…, and '
        f'{path.name} {len(truth)} lines: unpack both again')
  place = {name: i for i, name in enumerate(classes)}
  return names, [place[by_number[truth[number - 1]]]
                 for number in numbers], classes


def _devkit(folder: epath.Path) -> dict[int, str]:
  """Wnids by the numbers of the devkit, of synsets that have no children."""
  from scipy import io as scipy_io  # a quarter second
  content = scipy_io.loadmat(
      io.BytesIO((folder / _DEVKIT / 'meta.mat').read_bytes()),
      squeeze_me=True, struct_as_record=False)
  return {int(each.ILSVRC2012_ID): str(each.WNID)
          for each in np.atleast_1d(content['synsets'])
          if int(each.num_children) == 0}
