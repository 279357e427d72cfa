"""Output of a run: rows of metrics, the progress line, warnings, and stops."""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import json
import sys
import time
from typing import Any

from etils import epath
import jax
import numpy as np

from dinojax.core import errors
from dinojax.core import log
from dinojax.engine import trackers as trackers_lib
from dinojax.engine import trainable as trainable_lib
from dinojax.parallel import processes

LOG = 'metrics.jsonl'  # in the workdir, of the first process
EVENTS = 'events.jsonl'  # beside it: what happened, of all starts
EVALUATION_S = 'time/evaluation_s'  # of rows that are evaluations, alone


class NonFinite(errors.UserError):
  """Several steps in a row had no finite gradient.

  Attributes:
    first: the first of these steps.
  """

  def __init__(self, first: int, text: str):
    super().__init__(text)
    self.first = first


@dataclasses.dataclass(frozen=True)
class Options:
  """Options of the log, and limits at which a run stops.

  Attributes:
    batch_size: images of a step.
    every_steps: steps between logged rows.
    tensorboard: True writes rows for TensorBoard too.
    trackers: other trackers, see trackers.names.
    config: values that trackers show beside the numbers.
    max_nonfinite_steps: non-finite steps in a row at which the run stops.
    max_bad_fraction: share of unreadable images above which the run stops.
    line: makes the parts of the progress line behind loss and images a second
      from a row and the last evaluation, the most important first.
  """

  batch_size: int
  every_steps: int = 10
  tensorboard: bool = False
  trackers: tuple[str, ...] = ()
  config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  max_nonfinite_steps: int = 3
  max_bad_fraction: float = 0.1
  line: Callable[[Mapping[str, float], Mapping[str, float]], dict[str, str]] = (
      lambda row, evaluation: waited(row))


def waited(row: Mapping[str, float]) -> dict[str, str]:
  """The part of the progress line about waiting for images."""
  return {'data wait': f'{row["time/data_wait_pct"]:.0f}%'}


class Report:
  """The log of one start of a run; only the first process writes metrics.

  Attributes:
    waited: seconds that devices were idle for want of data since the last
      row, at most.
    rested: seconds spent on other things than training since the last row.
    is_finite: True if the last step that was read was finite.
  """

  def __init__(self, trainable: trainable_lib.Trainable, options: Options,
               workdir: epath.Path, *, total_steps: int, start: int):
    self._trainable, self._options = trainable, options
    self._workdir, self._total = workdir, total_steps
    self._first = processes.is_first()
    self._progress = log.Progress(total_steps, start)
    self._evaluation: Mapping[str, float] = {}
    self._has_ended = start >= total_steps
    self.waited = self.rested = self._measures_since = 0.0
    self.is_finite = True
    self._logged = (start, time.monotonic())
    name = 'bad_images.jsonl' if self._first else (
        f'bad_images.{jax.process_index()}.jsonl')
    self._bad_images = log.JsonLines(workdir / name)
    self._bad_names = {(row.get('source'), row.get('name'))
                       for row in log.rows(workdir / name)}
    if self._first:
      self._metrics = log.JsonLines(workdir / LOG, cut_after=start)
      self._events = log.JsonLines(workdir / EVENTS)
      self._board = log.TensorBoard(
          workdir / 'tensorboard', step=start,
          enabled=options.tensorboard)
      self._trackers = trackers_lib.Trackers(
          options.trackers, workdir, options.config)

  def say(self, text: str):
    """One line to the user, from the first process."""
    if self._first:
      self._progress.say(text)

  def event(self, text: str, *, silent: bool = False):
    """A line to the user that the report of the run tells, too."""
    if self._first:
      self._events.write({'time': time.strftime(
          '%Y-%m-%dT%H:%M:%SZ', time.gmtime()), 'text': text})
      if not silent:
        self._progress.say(text)

  def starts(self, mesh: jax.sharding.Mesh, info: Mapping[str, Any]):
    """Notes what this start trains on."""
    count = jax.process_count()
    parts = '1 process' if count == 1 else f'{count} processes'
    self.event(
        f'trains from step {self._logged[0]} on {mesh.size} × '
        f'{mesh.devices.flat[0].device_kind}, {parts}, dinojax '
        f'{info.get("dinojax", "")}, jax {jax.__version__}', silent=True)

  def begin(self, step: int):
    """Starts the clock: what came before, such as compiling, is no step."""
    self._logged = (step, time.monotonic())
    self.waited = self.rested = 0.0

  def tick(self, step: int):
    """Moves the line of a terminal, after every step."""
    if self._first:
      self._progress.tick(step)

  def problems(self, problems: Iterable[Mapping[str, str]]):
    """Writes down images that could not be read, each once."""
    for problem in problems:
      name = (problem['source'], problem['name'])
      if name not in self._bad_names:
        self._bad_names.add(name)
        self._bad_images.write(problem)

  def read(self, step: int, metrics: Mapping[str, jax.Array], *,
           seconds: float):
    """Checks the metrics of a step, and logs them when it is time.

    Args:
      step: number of the step that gave the metrics.
      metrics: scalars on the devices; fetched whole only when needed.
      seconds: seconds of training so far.

    Raises:
      UserError: non-finite gradients in a row, too many unreadable images.
    """
    due = step % self._options.every_steps == 0 or step == self._total
    watched = ('nonfinite_in_row', 'bad_images')
    values = jax.device_get(
        metrics if due else {k: metrics[k] for k in watched})
    self.is_finite = not values['nonfinite_in_row']
    if not self.is_finite:
      values = jax.device_get(metrics)
      self._check_finite(step, values)
    self._check_images(step, int(values['bad_images']))
    if due and self._first:
      self._write(step, values, seconds)

  def measures(self, step: int):
    """Says that an evaluation begins, and starts its clock."""
    self._measures_since = time.monotonic()
    self.say(f'measuring at step {step} …')

  def evaluated(self, step: int, numbers: Mapping[str, float]):
    """Logs the evaluation that ends."""
    seconds = time.monotonic() - self._measures_since
    self.rested += seconds
    self._evaluation = numbers
    if self._first:
      self._metrics.write({'step': step, **numbers,
                           EVALUATION_S: seconds})
      self._board.write(step, numbers)
      self._trackers.write(step, numbers)
      self.say(f'step {step}: ' + ' · '.join(
          f'{name} {value:.2f}' for name, value in numbers.items()))

  def ended(self, step: int):
    """Notes the last step of the run."""
    self.event(f'ended at step {step}', silent=True)
    self._has_ended = True

  def close(self, *, failed: bool = False):
    """Ends pending writes."""
    self._bad_images.close()
    if self._first:
      self._metrics.close()
      self._events.close()
      self._board.close()
      self._trackers.close('failed' if failed else 'finished' if (
          self._has_ended) else 'stopped')

  def _check_finite(self, step: int, values: Mapping[str, np.ndarray]):
    """Stops after several non-finite steps in a row."""
    first = int(values['first_bad_leaf'])
    where = (f'the gradient of {self._trainable.leaf(first)}' if first >= 0
             else 'the loss')
    terms = [name for name, value in values.items()
             if 'loss/' in name and not np.isfinite(value)]
    count = int(values['nonfinite_in_row'])
    text = (f'step {step}: {where} is not finite'
            + (f' ({", ".join(terms)})' if terms else '')
            + f'; the update was skipped ({count} in a row)')
    if count >= self._options.max_nonfinite_steps:
      self.event(f'{text}: stopped', silent=True)
      raise NonFinite(step - count + 1, f'{text}: stopped')
    self.event(f'warning: {text}')

  def _check_images(self, step: int, bad: int):
    """Stops when too many images could not be read."""
    seen = step * self._options.batch_size
    limit = self._options.max_bad_fraction
    # Ten images of the first thousand are noise whatever the fraction.
    if bad > limit * max(seen, 1000):
      self.event(f'step {step}: {bad} of {seen} images could not be read: '
                 'stopped', silent=True)
      raise errors.UserError(
          f'{bad} of {seen} images that were drawn could not be read, more '
          f'than data.max_bad_fraction={limit}: '
          f'{self._workdir / "bad_images.jsonl"} lists each file once, and '
          'why; repair them or raise data.max_bad_fraction')

  def _write(self, step: int, values: Mapping[str, np.ndarray],
             seconds: float):
    """One row of metrics, the progress line, and warnings of collapse."""
    values = {name: float(value) for name, value in values.items()}
    since, then = self._logged
    now = time.monotonic()
    steps = max(step - since, 1)
    step_s = max(now - then - self.rested, 1e-9) / steps
    row = {'step': step, **values,
           'time/step_ms': 1e3 * step_s,
           'time/images_per_s': self._options.batch_size / step_s,
           'time/data_wait_pct': 100 * self.waited / steps / step_s,
           'time/seconds': seconds, **memory()}
    self._logged, self.waited, self.rested = (step, now), 0.0, 0.0
    self._metrics.write(row)
    self._board.write(step, row)
    self._trackers.write(step, row)
    self._progress.show(step, self._line(row))
    warning = self._trainable.watch(row)
    if warning:
      self.event(f'warning: step {step}: {warning}')

  def _line(self, row: Mapping[str, float]) -> dict[str, str]:
    """The parts of the progress line, the most important first."""
    parts = {'loss': f'{row["loss"]:.3f}',
             'images/s': _three_digits(row['time/images_per_s'])}
    return parts | self._options.line(row, self._evaluation)


def _three_digits(value: float) -> str:
  return f'{value:.0f}' if value >= 100 else f'{value:.3g}'


def evaluations(workdir: epath.Path) -> dict[int, dict[str, float]]:
  """Reads the logged evaluations by step.

  The first process reads and tells all: they evaluate together or not at all.
  """
  rows = {row['step']: row for row in log.rows(workdir / LOG)
          if EVALUATION_S in row and 'step' in row
          } if processes.is_first() else {}
  rows = json.loads(processes.of_first(json.dumps(list(rows.values()))))
  return {int(row['step']): {
      name: float(value) for name, value in row.items()
      if name not in ('step', EVALUATION_S)} for row in rows}


def best(scores: Mapping[int, Mapping[str, float]],
         score: Callable[[Mapping[str, float]], float] | None) -> int | None:
  """The evaluated step with the best score; the first of equal ones."""
  if score is None or not scores:
    return None
  return max(scores, key=lambda step: (score(scores[step]), -step))


def memory() -> dict[str, float]:
  """Peak memory of the device, or of the process on CPU, in GiB."""
  stats = jax.local_devices()[0].memory_stats()
  if stats and 'peak_bytes_in_use' in stats:
    return {'mem/device_peak_gib': stats['peak_bytes_in_use'] / 2**30}
  return {'mem/process_peak_gib': _process_peak_kib() / 2**20}


def _process_peak_kib() -> int:
  """Peak of this process alone.

  On Linux not getrusage: its peak survives fork and exec, so a run would show
  the memory of the program that started it.
  """
  status = epath.Path('/proc/self/status')
  if status.exists():
    for line in status.read_text().splitlines():
      if line.startswith('VmHWM'):
        return int(line.split()[1])
  import resource  # Unix only, and needed only here
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak // 1024 if sys.platform == 'darwin' else peak


def summary(result: Any) -> str:
  """Three lines on how a run ended, see loop.Result."""
  numbers = ' · '.join(
      f'{name} {value:.4g}' for name, value in result.evaluation.items())
  return (f'Result: {"finished" if result.finished else "stopped"} at step '
          f'{result.step} after {log.duration(result.seconds)} of training\n'
          f'evaluation: {numbers or "none"}\n'
          f'state, on the devices: {", ".join(result.state)}')
