"""State of a run by its workdir: whether it has ended, and is whole."""

from collections.abc import Iterator
import contextlib
import json

from etils import epath

from dinojax.core import atomic
from dinojax.core import errors
from dinojax.core import log
from dinojax.core import output
from dinojax.engine import checkpoint
from dinojax.engine import report
from dinojax.parallel import processes

RESULTS = 'results.json'
LOG = report.LOG


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
