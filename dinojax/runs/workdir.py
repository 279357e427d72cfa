"""State of a run by its workdir: whether it has ended, and is whole."""

from collections.abc import Iterator, Mapping
import contextlib
import functools
import importlib.metadata
import json
from typing import Any

from etils import epath

from dinojax import __version__
from dinojax.core import atomic
from dinojax.core import config as config_lib
from dinojax.core import errors
from dinojax.core import log
from dinojax.core import output
from dinojax.core import paths
from dinojax.data import identity
from dinojax.engine import checkpoint
from dinojax.engine import report
from dinojax.parallel import processes
from dinojax.runs import models
from dinojax.train import settings as settings_lib

RESULTS = 'results.json'
LOG = report.LOG
SOURCES = 'sources.json'  # which checkpoints a run was given
VERSIONS = 'versions.json'
_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain',
             'numpy', 'pillow')


@contextlib.contextmanager
def writable(folder: epath.PathLike) -> Iterator[None]:
  """Turns what a disk refuses into a sentence."""
  try:
    yield
  except OSError as error:
    raise errors.cannot_write(f'--workdir={folder}', error) from error


def results(folder: epath.Path) -> dict | None:
  """Reads results.json; None: there is none that can be read."""
  path = folder / RESULTS
  if not path.exists():
    return None
  try:
    numbers = atomic.read_json(path, 'it is made again')
  except errors.UserError as error:
    if processes.is_first():
      output.warn(str(error))
    return None
  return numbers if 'steps' in numbers else None


def has_ended(folder: epath.Path, latest: int | None, total: int) -> bool:
  """Tells whether a run has all steps and results; the first process looks."""
  numbers = results(folder) if processes.is_first() else None
  ended = bool(numbers) and numbers['steps'] == latest == total
  return json.loads(processes.of_first(json.dumps(ended)))


def check(folder: epath.Path, latest: int | None, every: int):
  """Checks that the log and results do not tell of lost checkpoints.

  A run that is killed has logged up to two intervals more than its last
  complete checkpoint: one is being written while the next is made.

  Args:
    folder: the workdir.
    latest: step of its last checkpoint; None: there is none.
    every: steps between checkpoints, the larger of this start and the last.

  Raises:
    UserError: they tell of steps that no checkpoint has.
  """
  error = None
  if processes.is_first():
    numbers, step = results(folder) or {}, last_step(folder)
    reached = max(numbers.get('steps', 0), 0 if (
        step <= (latest or 0) + 2 * every or _has_damaged(folder)) else step)
    if reached > (latest or 0):
      have = (f'its last checkpoint is of step {latest}' if latest else
              f'{folder / checkpoint.FOLDER} holds no checkpoint')
      error = errors.UserError(
          f'{folder} tells of {reached} steps ({LOG}, {RESULTS}), but {have}: '
          'bring the checkpoints back (is a disk not mounted? were they '
          'moved?). To begin anew on purpose, remove or move '
          f'{folder / LOG} and {folder / RESULTS} too, or use another '
          '--workdir')
  processes.first_raises(error)


def _has_damaged(folder: epath.Path) -> bool:
  """Tells whether a checkpoint was set aside, so that the log may be ahead."""
  return (folder / checkpoint.DAMAGED).exists()


def last_step(folder: epath.Path) -> int:
  """Last step in the log; 0: there is none."""
  return max((row['step'] for row in log.rows(folder / LOG)
              if isinstance(row.get('step'), int)), default=0)


def open_run(workdir: str, settings: settings_lib.Settings) -> epath.Path:
  """Creates the workdir, or checks that it belongs to this config.

  Raises:
    UserError: no permission, or a field that changes the result differs.
  """
  workdir = paths.expand(workdir)
  folder = epath.Path(workdir)
  path = folder / models.CONFIG
  with writable(workdir):
    folder.mkdir(parents=True, exist_ok=True)
    if path.exists():
      old = models.read_workdir(workdir)
      lines = changes(old, settings)
      if lines:
        text = '\n  '.join(lines)
        raise errors.UserError(
            f'{workdir} holds a run of another config; these fields change '
            f'the result:\n  {text}\nUse another --workdir, or set them back')
  return folder


def changes(old: settings_lib.Settings,
            new: settings_lib.Settings) -> list[str]:
  """Lists differences that change the result; students may come and go."""
  both = old.students.keys() & new.students.keys()
  flat = [config_lib.flatten(s, results_only=True) | {
      f'students.{name}.{key}': value for name in both
      for key, value in config_lib.flatten(
          s.students[name], results_only=True).items()}
          for s in (old, new)]
  return config_lib.difference(*flat)


def write_config(folder: epath.Path, config: Any,
                 pins: Mapping[str, str] | None = None):
  """Puts the config into the workdir, which is then a run of it."""
  if processes.is_first():
    with writable(folder):
      atomic.write_text(folder / models.CONFIG, json.dumps(
          paths.expand_all(config_lib.plain(config)), indent=1))
      if pins:
        atomic.write_text(folder / SOURCES, json.dumps(pins, indent=1))
      atomic.write_text(
          folder / VERSIONS, json.dumps(versions(), indent=1))


def keep_data(folder: epath.Path, data: identity.Data):
  """Writes what the next start compares its data with."""
  if processes.is_first():
    with writable(folder):
      data.keep(folder)


def versions() -> dict[str, str]:
  """Versions of dinojax and of the packages that decide its numbers."""
  return {'dinojax': __version__} | {name: _version(name) for name in _PACKAGES}


_version = functools.cache(importlib.metadata.version)  # 5 ms each
