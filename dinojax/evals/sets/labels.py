"""Images with several labels each, and the groups that they belong to.

A CSV file of one's own: columns `image` and `label`, a line for each label of
an image; or `labels`, several in a line with a semicolon between them. Every
other column is a group of the image, such as a region.
"""

from collections.abc import Sequence
import functools
from urllib import parse

from etils import epath
import numpy as np

from dinojax.core import errors
from dinojax.core import lists
from dinojax.core import paths
from dinojax.core import text
from dinojax.data import identity
from dinojax.data import record as record_lib

PRESENT, ABSENT, LEFT_OUT = 1, 0, -1


class Several:
  """Images with several labels; a source whose records have no label.

  Attributes:
    spec: text that opened it.
    classes: names of the labels, sorted.
    targets: [r, k] PRESENT, ABSENT, or LEFT_OUT of the score.
    groups: [r] names by column.
  """

  def __init__(self, spec: str, folder: epath.Path, names: Sequence[str],
               classes: Sequence[str], targets: np.ndarray,
               groups: dict[str, np.ndarray] | None = None):
    """Takes what a reader has read; images are not opened."""
    self.spec, self.classes = spec, tuple(classes)
    self.targets, self.groups = targets, groups or {}
    self._folder, self._names = folder, list(names)

  def __len__(self) -> int:
    return len(self._names)

  def __getitem__(self, index: int) -> record_lib.Record:
    name = self._names[index]
    return record_lib.Record((self._folder / name).read_bytes(), -1, name)

  def order(self, sizes: bool = False) -> list[str]:
    """Names in order."""
    del sizes
    return self._names

  @functools.cached_property
  def digest(self) -> str:
    """Hash of names, labels and groups."""
    lines = [*self.classes, *self._names, self.targets.tobytes().hex()]
    for name, column in self.groups.items():
      lines += [name, *map(str, column)]
    return identity.digest(lines)

  def targets_as(self, classes: Sequence[str]) -> np.ndarray:
    """[r, k] the targets of these classes; unknown ones are ABSENT."""
    out = np.full((len(self), len(classes)), ABSENT, np.int8)
    places = {name: i for i, name in enumerate(self.classes)}
    for i, name in enumerate(classes):
      if name in places:
        out[:, i] = self.targets[:, places[name]]
    return out


def from_csv(rest: str) -> Several:
  """Reads labels and groups of `labels:FILE`; paths are relative to it.

  Raises:
    UserError: no such file, no column of images or of labels, no label, an
      image that is not there, or one with two groups of a kind.
  """
  spec, path = f'labels:{rest}', epath.Path(paths.expand(rest))
  lines = lists.rows(path)
  columns = list(lines[0])
  label = next((name for name in ('label', 'labels') if name in columns), '')
  if 'image' not in columns or not label:
    raise errors.UserError(
        f'{spec} has the columns {", ".join(columns)}: it needs image, and '
        'label (a line for each) or labels (with semicolons)')
  kinds = [name for name in columns if name not in ('image', label)]
  labels: dict[str, set[str]] = {}
  groups: dict[str, tuple[str, ...]] = {}
  for line in lines:
    name, group = line['image'], tuple(line[kind] for kind in kinds)
    parts = (line[label].split(';') if label == 'labels' else [line[label]])
    labels.setdefault(name, set()).update(
        part.strip() for part in parts if part.strip())
    if groups.setdefault(name, group) != group:
      raise errors.UserError(
          f'{spec}: {text.printable(name)} is of {groups[name]} and of '
          f'{group} by its lines: give every image the same groups')
  first = next(iter(labels))
  if not (path.parent / first).exists():
    raise errors.UserError(
        f'{path.parent / first} is missing: images are relative to {path}')
  classes = sorted(set().union(*labels.values()))
  if not classes:
    raise errors.UserError(f'{spec} has no label: fill the column {label}')
  place = {name: i for i, name in enumerate(classes)}
  targets = np.zeros((len(labels), len(classes)), np.int8)
  for row, wanted in enumerate(labels.values()):
    targets[row, [place[name] for name in wanted]] = PRESENT
  return Several(
      spec, path.parent, list(labels), classes, targets,
      {kind: np.array([group[i] for group in groups.values()])
       for i, kind in enumerate(kinds)})


def split_of(rest: str, known: Sequence[str]) -> tuple[str, str]:
  """Folder and split of 'DIR?split=NAME'; the first of `known` by default.

  Raises:
    UserError: another split or another word.
  """
  folder, _, query = rest.partition('?')
  words = dict(parse.parse_qsl(query, keep_blank_values=True))
  split = words.pop('split', known[0])
  if words or split not in known:
    raise errors.UserError(
        f'{rest} asks for what is not known: use ?split= with one of '
        f'{", ".join(known)}')
  return folder, split
