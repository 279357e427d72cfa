"""Where a run writes what it sees: metrics.jsonl, a progress line, pictures.

Only the first process writes. A resumed run cuts the log back to its step, so
that the file reads as if the run had never stopped.
"""

from collections.abc import Mapping
import importlib.util
import json
import math
import sys
import time

from etils import epath
from rich import console as rich_console
from rich import progress as rich_progress


class JsonLines:
  """One JSON object a line, appended and flushed."""

  def __init__(self, path: epath.PathLike, *, cut_after: int | None = None):
    """Opens `path`; rows whose 'step' exceeds `cut_after` are removed."""
    self.path = epath.Path(path)
    self._rows = []
    if self.path.exists():
      self._rows = _complete_lines(self.path.read_text())
      if cut_after is not None:
        self._rows = [
            row for row in self._rows
            if json.loads(row).get('step', 0) <= cut_after]
    self._file = None
    if _is_local(self.path):
      temporary = self.path.with_suffix('.tmp')
      temporary.write_text(''.join(row + '\n' for row in self._rows))
      temporary.replace(self.path)
      self._file = open(self.path, 'a')  # noqa: SIM115 (held for the run)

  def write(self, row: Mapping):
    """Appends one row; NaN and infinities become strings."""
    line = json.dumps({k: _plain(v) for k, v in row.items()})
    if self._file:
      self._file.write(line + '\n')
      self._file.flush()
    else:  # object stores have no append
      self._rows.append(line)
      self.path.write_text(''.join(row + '\n' for row in self._rows))

  def close(self):
    """Closes the file."""
    if self._file:
      self._file.close()


def _complete_lines(text: str) -> list[str]:
  """Lines that parse: a killed process may leave half of the last one."""
  lines = []
  for line in text.splitlines():
    try:
      json.loads(line)
    except json.JSONDecodeError:
      continue
    lines.append(line)
  return lines


def _is_local(path: epath.Path) -> bool:
  return '://' not in str(path)


def _plain(value):
  if isinstance(value, str | int | bool | type(None)):
    return value
  if isinstance(value, float):
    return value if math.isfinite(value) else str(value)
  if hasattr(value, 'item'):
    return _plain(value.item())
  return value


class TensorBoard:
  """Scalars for TensorBoard when tensorboardX is installed, else nothing."""

  def __init__(self, folder: epath.PathLike, *, step: int, enabled: bool):
    self._writer = None
    if enabled and importlib.util.find_spec('tensorboardX'):
      import tensorboardX  # an optional package
      self._writer = tensorboardX.SummaryWriter(
          str(folder), purge_step=step + 1)

  def write(self, step: int, row: Mapping[str, float]):
    """Adds the numbers of one row."""
    if self._writer:
      for name, value in row.items():
        if isinstance(value, int | float) and name != 'step':
          self._writer.add_scalar(name, value, step)

  def close(self):
    """Flushes."""
    if self._writer:
      self._writer.close()


class Progress:
  """One line that says how training goes; rewritten on a terminal."""

  def __init__(self, total_steps: int, start_step: int):
    self.total, self.start = total_steps, start_step
    self.began = time.monotonic()
    self.console = rich_console.Console(file=sys.stderr, highlight=False)

  def show(self, step: int, parts: Mapping[str, str]):
    """Shows step, the given parts, and the time left."""
    done = step - self.start
    elapsed = time.monotonic() - self.began
    left = elapsed / max(done, 1) * (self.total - step)
    text = ' · '.join(
        [f'step {step}/{self.total}',
         *(f'{name} {value}' for name, value in parts.items()),
         f'ETA {duration(left)}'])
    if self.console.is_terminal:
      width = self.console.width
      self.console.file.write('\r\x1b[2K' + text[:width - 1])
      self.console.file.flush()
    else:
      print(text, file=self.console.file, flush=True)

  def say(self, text: str):
    """Prints a line of its own."""
    if self.console.is_terminal:
      self.console.file.write('\r\x1b[2K')
    print(text, file=self.console.file, flush=True)

  def end(self):
    """Leaves the last line standing."""
    if self.console.is_terminal:
      self.console.file.write('\n')


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
