"""Where a run writes what it sees: metrics.jsonl, a progress line, pictures.

Only the first process writes. A resumed run cuts the log back to its step, so
that the file reads as if the run had never stopped.
"""

from collections.abc import Mapping
import contextlib
import importlib.util
import json
import math
import os
import sys
import time

from etils import epath
from rich import console as rich_console
from rich import progress as rich_progress

from dinojax.core import atomic
from dinojax.core import output

_MOVE_S = 0.2  # between two looks of a line that moves


class JsonLines:
  """One JSON object a line, appended and flushed."""

  def __init__(self, path: epath.PathLike, *, cut_after: int | None = None):
    """Opens `path`; rows whose 'step' exceeds `cut_after` are removed.

    Raises:
      OSError: with the path, here and in `write`.
    """
    self.path = epath.Path(path)
    kept = [row for row in rows(self.path)
            if cut_after is None or row.get('step', 0) <= cut_after]
    self._rows = [json.dumps(row) for row in kept]
    self._file = None
    if atomic.is_local(self.path):
      text = ''.join(row + '\n' for row in self._rows)
      if not self.path.exists() or self.path.read_bytes() != text.encode():
        atomic.write_text(self.path, text)
      self._file = open(self.path, 'a')  # noqa: SIM115 (held for the run)

  def write(self, row: Mapping):
    """Appends one row; NaN and infinities become strings."""
    line = json.dumps({k: _plain(v) for k, v in row.items()})
    try:
      if self._file:
        self._file.write(line + '\n')
        self._file.flush()
      else:  # object stores have no append
        self._rows.append(line)
        atomic.write_text(
            self.path, ''.join(row + '\n' for row in self._rows))
    except OSError as error:
      raise OSError(error.errno, error.strerror, str(self.path)) from error

  def close(self):
    """Closes the file; what could not be written has been said."""
    if self._file:
      with contextlib.suppress(OSError):
        self._file.close()


def rows(path: epath.PathLike) -> list[dict]:
  """Objects of a file of JSON lines; without what is cut short or damaged.

  A killed process may leave half of the last line, a power cut zeros.
  """
  path = epath.Path(path)
  if not path.exists():
    return []
  objects = []
  for line in path.read_bytes().decode(errors='replace').splitlines():
    try:
      row = json.loads(line)
    except ValueError:
      continue
    if isinstance(row, dict):
      objects.append(row)
  return objects


def _plain(value):
  if isinstance(value, str | int | bool | type(None)):
    return value
  if isinstance(value, float):
    return value if math.isfinite(value) else str(value)
  if hasattr(value, 'item'):
    return _plain(value.item())
  return value


class TensorBoard:
  """Scalars for TensorBoard when tensorboardX is installed, else nothing.

  An extra: what it cannot write is said once, and ends nothing. Its events
  are written here and now, because the threads of its own writer fail where
  nobody can catch it.
  """

  def __init__(self, folder: epath.PathLike, *, step: int, enabled: bool):
    self._folder, self._writer = str(folder), None
    if not enabled or not importlib.util.find_spec('tensorboardX'):
      return
    from tensorboardX import event_file_writer  # an optional package
    from tensorboardX import summary
    from tensorboardX.proto import event_pb2
    self._event, self._scalar = event_pb2.Event, summary.scalar
    with self._noted():
      event_file_writer.directory_check(self._folder)
      self._writer = event_file_writer.EventsWriter(
          os.path.join(self._folder, 'events'),
          # Starts of the same second would write over each other.
          filename_suffix=f'.{step}.{os.getpid()}')
      # What an earlier start wrote of later steps is not shown.
      start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      self._writer.write_event(self._event(
          wall_time=time.time(), step=step + 1, session_log=start))

  def write(self, step: int, row: Mapping[str, float]):
    """Adds the numbers of one row."""
    if not self._writer:
      return
    with self._noted():
      for name, value in row.items():
        if isinstance(value, int | float) and name != 'step':
          self._writer.write_event(self._event(
              wall_time=time.time(), step=step,
              summary=self._scalar(name, value)))
      self._writer.flush()

  def close(self):
    """Flushes."""
    if self._writer:
      with self._noted():
        self._writer.close()

  @contextlib.contextmanager
  def _noted(self):
    try:
      yield
    except (OSError, ValueError) as error:
      self._writer = None
      output.warn(f'{self._folder} cannot be written ({error}): TensorBoard '
                  'gets no more of this run, metrics.jsonl has all')


class Progress:
  """How training goes: a line for each row, and one that moves."""

  def __init__(self, total_steps: int, start_step: int):
    self.total, self.start = total_steps, start_step
    self._first: tuple[int, float] | None = None  # of the steps that count
    self._shown, self._parts = 0.0, {}
    self.console = rich_console.Console(file=sys.stderr, highlight=False)

  def show(self, step: int, parts: Mapping[str, str]):
    """Prints a line: step, the given parts, and the time left.

    Args:
      step: number of the step that was made.
      parts: texts by name, the most important first; those that do not fit
        into the line are left out, from the end.
    """
    self._parts = dict(parts)
    self._count(step)
    self.say(self._line(step))

  def tick(self, step: int):
    """Moves the line of a terminal, after every step."""
    self._count(step)
    now = time.monotonic()
    if self.console.is_terminal and now - self._shown >= _MOVE_S:
      self._shown = now
      live = getattr(sys.stderr, 'rewrite', None)
      if live:
        live(self._line(step))

  def say(self, text: str):
    """Prints a line of its own."""
    print(text, file=sys.stderr, flush=True)

  def _count(self, step: int):
    """Starts the clock with the first step, which waited for a compiler."""
    if self._first is None:
      self._first = step, time.monotonic()

  def _line(self, step: int) -> str:
    first, began = self._first
    left = '?' if step <= first else duration(
        (time.monotonic() - began) / (step - first) * (self.total - step))
    parts = [(0, f'step {step}/{self.total}'), *(
        (rank, f'{name} {value}') for rank, (name, value)
        in enumerate(self._parts.items(), 1)), (0, f'ETA {left}')]
    return output.fitted(parts, min(self.console.width, output.COLUMNS))


class Bar:
  """How many are done, how fast, and the time left, on stderr.

  A bar on a terminal, elsewhere a line every `every_s` seconds. Use as a
  context manager.
  """

  def __init__(self, total: int, *, unit: str = 'images',
               every_s: float = 10.0):
    self._total, self._unit, self._every_s = total, unit, every_s
    self._start, self._began, self._told = 0, None, (0.0, -1)
    console = rich_console.Console(file=sys.stderr, highlight=False)
    self._progress = rich_progress.Progress(
        rich_progress.TextColumn(unit), rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn('{task.fields[pace]}'), console=console,
        disable=not console.is_terminal)
    self._task = self._progress.add_task(unit, total=total, pace='')

  def __enter__(self):
    self._progress.start()
    return self

  def __exit__(self, *_):
    self._progress.stop()

  def say(self, text: str):
    """Prints a line of its own."""
    self._progress.console.print(text, markup=False, soft_wrap=True)

  def show(self, done: int):
    """Shows how many are done; the first call is what was done before."""
    now = time.monotonic()
    if self._began is None:
      self._start, self._began, self._told = done, now, (now, done)
      self._progress.update(self._task, completed=done)
      return
    rate = (done - self._start) / max(now - self._began, 1e-9)
    left = duration((self._total - done) / max(rate, 1e-9))
    pace = f'{rate:.1f} {self._unit}/s · ETA {left}'
    self._progress.update(self._task, completed=done, pace=pace)
    told_at, told = self._told
    if self._progress.disable and done != told and (
        done == self._total or now - told_at >= self._every_s):
      self._told = now, done
      self.say(f'{self._unit} {done}/{self._total} · {pace}')


def duration(seconds: float) -> str:
  """'45s', '12m05s', '3h20m', '2d04h'."""
  seconds = int(max(seconds, 0))
  if seconds < 60:
    return f'{seconds}s'
  if seconds < 3600:
    return f'{seconds // 60}m{seconds % 60:02d}s'
  if seconds < 86400:
    return f'{seconds // 3600}h{seconds % 3600 // 60:02d}m'
  return f'{seconds // 86400}d{seconds % 86400 // 3600:02d}h'
