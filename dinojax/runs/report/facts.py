"""Facts of a run as rows of text: state, training, events, config, versions."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import fcntl
import json
import re

from etils import epath

from dinojax.core import atomic
from dinojax.core import config as config_lib
from dinojax.core import errors
from dinojax.core import log
from dinojax.core import text
from dinojax.data import identity
from dinojax.engine import report as log_lib
from dinojax.evals import learned
from dinojax.parallel import holder
from dinojax.runs import catalog
from dinojax.runs import workdir as workdir_lib
from dinojax.runs.report import charts
from dinojax.runs.report import curves
from dinojax.train import settings as settings_lib

Row = tuple[str, ...]
_SHOWN_IMAGES = 10
# Keys that say where a run is made, kept and measured, not what it is.
_PLACES = ('data.', 'knn.', 'mesh.', 'checkpoint.', 'log.', 'export.',
           'report.', 'init.source', 'gram.source', 'distillation.source')
_OF_STUDENT = re.compile(r'^students\.[^.]+\.')


def state(folder: epath.Path, history: curves.History,
          has_ended: bool = False) -> str:
  """A sentence on how far a run has come."""
  step = int(max(row['step'] for row in (*history.rows, *history.evaluations)))
  seconds = next((row['time/seconds'] for row in reversed(history.rows)
                  if 'time/seconds' in row), 0.0)
  spent = f'step {step} after {log.duration(seconds)} of training'
  if has_ended or workdir_lib.results(folder) is not None:
    return f'Finished at {spent}.'
  if _in_use(folder):
    return f'Still training, at {spent}.'
  return (f'Not finished: its log ends at {spent}. The same command continues '
          'from the last checkpoint.')


def _in_use(folder: epath.Path) -> bool:
  """Tells whether a run holds the folder now, on this machine."""
  path = folder / holder.NAME
  if not atomic.is_local(folder) or not path.exists():
    return False
  try:
    with open(path) as file:
      fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except BlockingIOError:
    return True
  except OSError:  # a disk without locks
    return False
  return False


def training(folder: epath.Path, history: curves.History) -> Iterator[Row]:
  """Rows on what is trained, and from what."""
  s = history.settings
  of = {name: '' if not s.students else f' of {name}' for name in s.each}
  for name, student in s.each.items():
    yield f'model{of[name]}', student.model.describe()
  yield 'images', ', '.join(
      spec + (f' ({count})' if (count := identity.count(folder, spec)) else '')
      for spec, _ in s.data.mixture)
  validation = s.knn.validation or s.data.validation
  yield 'validation', validation or 'none: k-NN is not measured'
  yield 'batch', f'{s.train.batch_size} images'
  local = (f' and {s.crops.num_local} local of {s.crops.local_px}'
           if s.crops.num_local else '')
  yield 'crops', (f'{s.crops.num_global} global of {s.crops.global_px}{local} '
                  'pixels')
  for name, student in s.each.items():
    yield f'losses{of[name]}', ', '.join(
        term for term in s.terms() if getattr(student, term).is_on)
    yield f'started from{of[name]}', student.init.source or 'random weights'
  if s.distillation.is_on:
    yield 'taught by', s.distillation.source or s.distillation.model
  last = history.rows[-1] if history.rows else {}
  for key, label in (('skipped_steps', 'updates left out'),
                     ('bad_images', 'images replaced')):
    if key in last:
      yield label, f'{float(last[key]):.0f}'


def scores(history: curves.History) -> Iterator[Row]:
  """Rows of the last k-NN of every student, with what it is compared with."""
  for key, name in learned.NAMES.items():
    for line in history.lines(key):
      yield (f'{line.name} {name}'.strip(), f'{line.values[-1]:.2f} %')


def events(folder: epath.Path) -> list[Row]:
  """Times and sentences of what happened, of all starts."""
  return [(str(row['time']).replace('T', ' ').rstrip('Z'), str(row['text']))
          for row in log.rows(folder / log_lib.EVENTS)
          if {'time', 'text'} <= row.keys()]


def bad_images(folder: epath.Path) -> tuple[int, list[Row]]:
  """How many images could not be read, and some of them with the reason."""
  rows = [row for path in sorted(folder.glob('bad_images*.jsonl'))
          for row in log.rows(path)]
  return len(rows), [
      (text.printable(str(row.get('name'))),
       text.printable(str(row.get('reason')))) for row in rows[:_SHOWN_IMAGES]]


def config(history: curves.History) -> tuple[str, list[Row]]:
  """The config of `dinojax configs` nearest to a run's, and what differs.

  Returns:
    Its name, and rows of a key, its value there and the run's.
  """
  flat = _flat(history.settings)
  known = _known()
  if not known:
    return '', []
  name = min(known, key=lambda name: len(config_lib.difference(
      known[name], flat)))
  theirs = known[name]
  return name, [
      (key, _shown(theirs, key), _shown(flat, key))
      for key in sorted(flat.keys() | theirs.keys())
      if theirs.get(key) != flat.get(key)]


def _flat(settings: settings_lib.Settings) -> dict:
  return {key: value for key, value in config_lib.flatten(settings).items()
          if not _OF_STUDENT.sub('', key).startswith(_PLACES)}


def _shown(flat: Mapping, key: str) -> str:
  return json.dumps(flat[key]) if key in flat else '—'


def _known() -> dict[str, dict]:
  """All configs of the package that can be read without arguments."""
  flat = {}
  for name in catalog.configs():
    for words in ('', ':smoke'):
      try:
        flat[name + words] = _flat(
            settings_lib.read(catalog.load(name + words)))
      except errors.UserError:
        continue  # it wants words, or a teacher that is not here
  return flat


def versions(folder: epath.Path) -> list[Row]:
  """Packages and their versions at the last start."""
  path = folder / workdir_lib.VERSIONS
  if not path.exists():
    return []
  try:
    known = atomic.read_json(path, 'it is written anew at the next start')
  except errors.UserError as error:
    return [('', str(error))]
  return [(name, str(version)) for name, version in known.items()]


def stages(results: Mapping[str, Mapping]) -> list[Row]:
  """A row for each stage of a chain that has ended."""
  rows = []
  for name, result in results.items():
    knn = ', '.join(f'{key} {charts.number(value)}' for key, value
                    in result.get('knn_top1_pct', {}).items())
    rows.append((name, str(result.get('steps', '')),
                 log.duration(result.get('seconds', 0.0)),
                 knn or 'not measured'))
  return rows


def histories(paths: Sequence[str]) -> list[curves.History]:
  """The histories of runs, each by a name of its own.

  Raises:
    UserError: one of them is no run, or has logged nothing yet.
  """
  known: dict[str, curves.History] = {}
  for path in paths:
    history = curves.read(path)
    name = history.name
    if name in known:  # of the same name in another folder
      name = path.rstrip('/')
    while name in known:  # the same run again
      name += "'"
    known[name] = dataclasses.replace(history, name=name)
  return list(known.values())
