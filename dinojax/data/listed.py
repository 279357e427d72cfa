"""Images that a CSV file lists, with their labels, or some of its lines."""

import collections
import urllib.parse

from etils import epath

from dinojax.core import errors
from dinojax.core import lists
from dinojax.core import paths
from dinojax.core import text
from dinojax.data import record

# Names of columns, the first that is there.
_IMAGES = ('image', 'file', 'filename', 'path', 'name')
_LABELS = ('class', 'label', 'group', 'category')


class Csv:
  """Images of a CSV file, paths relative to it; `class` or `label` names one.

  `csv:FILE?part=train&role=query` keeps the lines of which these columns have
  these values. Another column is asked for as `image_column` or
  `label_column`; `label_column=` has no labels.
  """

  def __init__(self, rest: str):
    """Lists the file's lines in their order.

    Args:
      rest: file and query, after the scheme.

    Raises:
      UserError: no such file or column, or no line is left.
    """
    self.spec = f'csv:{rest}'
    file, _, query = rest.partition('?')
    wanted = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
    self._path = epath.Path(paths.expand(file))
    lines = lists.rows(self._path)
    image = self._column(lines, wanted.pop('image_column', None), _IMAGES)
    label = self._column(lines, wanted.pop('label_column', None), _LABELS,
                         needed=False)
    for name in wanted:
      self._column(lines, name, ())
    kept = [line for line in lines
            if all(line[name] == value for name, value in wanted.items())]
    if not kept:
      raise errors.UserError(
          f'{self.spec} has no line that fits: {_values(lines, wanted)}')
    self._names = [line[image] for line in kept]
    labels = [line[label] if label else '' for line in kept]
    # Numbers in the order of their size, words in that of the alphabet.
    self.classes = tuple(sorted(set(labels) - {''}, key=lambda name: (
        (0, int(name), '') if name.isdecimal() else (1, 0, name))))
    index = {name: i for i, name in enumerate(self.classes)} | {'': -1}
    self._labels = [index[name] for name in labels]

  def _column(self, lines: list[dict], name: str | None,
              usual: tuple[str, ...], *, needed: bool = True) -> str | None:
    """The column that is asked for, or the first of the usual ones."""
    known = list(lines[0])
    if name is None:
      name = next((column for column in usual if column in known), None)
      if name is None and needed:
        raise errors.UserError(
            f'{self.spec} has no column of images ({", ".join(usual)}): its '
            f'columns are {", ".join(known)}; name it, ?image_column=NAME')
    elif name and name not in known:
      raise errors.UserError(
          f'{self.spec} has no column {name}: its columns are '
          f'{", ".join(known)}')
    return name or None

  def __len__(self) -> int:
    return len(self._names)

  def __getitem__(self, index: int) -> record.Record:
    name = self._names[index]
    return record.Record(
        (self._path.parent / name).read_bytes(), self._labels[index], name)

  def order(self, sizes: bool = False) -> list[str]:
    """Names and labels in order, with the sizes of the files."""
    lines = [f'{name}\t{label}' for name, label in zip(
        self._names, self._labels, strict=True)]
    if not sizes:
      return self._names
    return [f'{line}\t{self._size(name)}'
            for line, name in zip(lines, self._names, strict=True)]

  def _size(self, name: str) -> int:
    """Length of a file in bytes; -1: it cannot be looked at."""
    try:
      return (self._path.parent / name).stat().length
    except OSError:  # it is counted when it is read
      return -1

  def labels(self) -> list[int]:
    """Labels in order, -1 for none."""
    return self._labels

  def class_counts(self) -> list[int]:
    """Number of images of each class."""
    counts = collections.Counter(self._labels)
    return [counts[i] for i in range(len(self.classes))]


def _values(lines: list[dict], wanted: dict[str, str]) -> str:
  """'part has train, val': values that columns really have."""
  return '; '.join(
      f'{name} has ' + text.listed(sorted({line[name] for line in lines}))
      for name in wanted)
