"""Digests of the data that a run, a table or shards were made of.

A sample is a function of its number and of the sorted list of records: one
more file moves every later record. So what decides that order is kept. A
source may state it with `order(sizes)`: lines such as the names in order, with
sizes in bytes where they are asked for. Without that, its length decides.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import gzip
import hashlib
import json
import zlib

from etils import epath

from dinojax.core import atomic
from dinojax.core import errors
from dinojax.core import text
from dinojax.data import record as record_lib

DIGESTS = 'data.json'  # in the workdir
_NAMES = 'data_names.json.gz'
# Beyond it only numbers are known of what came and went: 40 MB or so.
_MAX_NAMES = 4_000_000


def lines(source: record_lib.Source, *, sizes: bool = False) -> list[str]:
  """Lines that decide which record has which number."""
  order = getattr(source, 'order', None)
  return list(order(sizes)) if order else [str(len(source))]


def digest(text_lines: Iterable[str]) -> str:
  """Hash of lines in their order, 16 hexadecimal digits."""
  out = hashlib.sha256()
  for line in text_lines:
    raw = line.encode('utf-8', 'surrogatepass')
    out.update(b'%d:' % len(raw) + raw)
  return out.hexdigest()[:16]


class Data:
  """The sources of a run, as they are now.

  Attributes:
    summary: {spec: {'records': …, 'digest': …}}.
  """

  def __init__(self, opened: Sequence[record_lib.Source]):
    self._lines = {source.spec: lines(source) for source in opened}
    self.summary = {
        source.spec: {'records': len(source),
                      'digest': digest(self._lines[source.spec])}
        for source in opened}

  def keep(self, folder: epath.Path):
    """Writes what `changes` compares with.

    Raises:
      OSError: the folder cannot be written.
    """
    new = json.dumps(self.summary, indent=1)
    path = folder / DIGESTS
    if path.exists() and path.read_text() == new:
      return
    if sum(map(len, self._lines.values())) <= _MAX_NAMES:
      atomic.write_bytes(folder / _NAMES, gzip.compress(
          json.dumps(self._lines).encode(), 3, mtime=0))
    atomic.write_text(path, new)

  def changes(self, folder: epath.Path) -> list[str]:
    """A sentence for each source that is not as it was kept.

    Raises:
      UserError: the kept file is damaged.
    """
    path = folder / DIGESTS
    if not path.exists():
      return []
    fix = (f'delete {path} to go on with the data as they are, whatever they '
           'were')
    kept = atomic.read_json(path, fix)
    if not _is_summary(kept):
      raise errors.UserError(f'{path} is not a list of data: {fix}')
    names = _names(folder / _NAMES)
    return [self._difference(spec, kept[spec], names.get(spec))
            for spec, now in self.summary.items()
            if spec in kept and kept[spec] != now]

  def _difference(self, spec: str, kept: Mapping, names) -> str:
    now = self.summary[spec]
    head = (f'{text.printable(spec)} had {kept["records"]} records and has '
            f'{now["records"]}')
    if not isinstance(names, list) or digest(names) != kept['digest']:
      return f'{head}: the names of the records are others, or in other order'
    return f'{head}: {compared(names, self._lines[spec])}'


def count(folder: epath.Path, spec: str) -> int | None:
  """Records of a source of the run in a folder; None: not known.

  Args:
    folder: workdir.
    spec: the source as a config names it; a folder may lack its `folder:`.
  """
  path = folder / DIGESTS
  try:
    kept = atomic.read_json(path, '') if path.exists() else {}
  except errors.UserError:
    return None  # the next start of the run says what is wrong with it
  known = kept if _is_summary(kept) else {}
  return known.get(spec, known.get(f'folder:{spec}', {})).get('records')


def compared(before: Sequence[str], after: Sequence[str]) -> str:
  """How many lines came and went, with a name or two of each."""
  old, new = set(before), set(after)
  if old == new:
    return 'the same ones are in another order'
  return ', '.join(
      f'{len(some)} {word}' + (f' ({text.listed(some, 2)})' if some else '')
      for some, word in ((sorted(new - old), 'came'),
                         (sorted(old - new), 'went')))


def check(folder: epath.Path, data: Data, *, accept: bool,
          same: Callable[[str], str]) -> str:
  """Checks that a resumed run goes on with the same data.

  Args:
    folder: workdir.
    data: the data as they are now.
    accept: goes on with data that changed.
    same: takes a text, returns that of the first process.

  Returns:
    A sentence about data that changed and were accepted, or ''.

  Raises:
    UserError: data changed, or differ between the processes of the run.
  """
  mine = json.dumps(data.summary)
  if same(mine) != mine:
    raise errors.UserError(
        'the processes of this run see different data: '
        + text.listed(spec for spec in data.summary)
        + '; give all of them the same files')
  changes = json.loads(same(json.dumps(data.changes(folder))))
  if changes and not accept:
    raise errors.UserError(refusal(str(folder), changes))
  return '\n  '.join(['goes on with other data, as data.accept_changes says:',
                      *changes]) if changes else ''


def refusal(workdir: str, changes: Sequence[str]) -> str:
  """The sentence that ends a start on other data."""
  return (
      f'{workdir} was trained on other data, and would go on with other '
      'images at every step:\n  ' + '\n  '.join(changes)
      + f'\nPut the data back; or start anew from its weights with another '
      f'--workdir and --config.init.source={workdir}; or go on all the same '
      'with --config.data.accept_changes=True')


def _is_summary(kept) -> bool:
  return isinstance(kept, dict) and all(
      isinstance(entry, dict) and {'records', 'digest'} <= entry.keys()
      for entry in kept.values())


def _names(path: epath.Path) -> dict:
  """Kept names; {} where they are missing or damaged: digests decide."""
  try:
    names = json.loads(gzip.decompress(path.read_bytes()))
  except (OSError, EOFError, ValueError, RecursionError, zlib.error):
    return {}
  return names if isinstance(names, dict) else {}
