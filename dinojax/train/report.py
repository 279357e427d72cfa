"""What a run says: rows of metrics, the progress line, warnings, and stops."""

from collections.abc import Iterable, Mapping
import json
import sys
import time

from etils import epath
import jax
import numpy as np

from dinojax.core import errors
from dinojax.core import log
from dinojax.core import tree
from dinojax.parallel import processes
from dinojax.train import monitor
from dinojax.train import recipe as recipe_lib


class Report:
  """The log of one start of a run; only the first process writes metrics.

  Attributes:
    waited: seconds that devices were idle for want of data since the last
      row, at most.
    rested: seconds spent on other things than training since the last row.
  """

  def __init__(self, recipe: recipe_lib.Recipe, workdir: epath.Path, *,
               total_steps: int, start: int):
    self._recipe, self._workdir, self._total = recipe, workdir, total_steps
    self._first = processes.is_first()
    settings = recipe.settings
    self._every = settings.log.every_steps
    self._progress = log.Progress(total_steps, start)
    self._monitors = {name: monitor.Monitor(settings.dino.num_prototypes)
                      for name in recipe.each}
    self._knn: list[float] = []  # of every student
    self.waited = self.rested = 0.0
    self._logged = (start, time.monotonic())
    name = 'bad_images.jsonl' if self._first else (
        f'bad_images.{jax.process_index()}.jsonl')
    self._bad_images = log.JsonLines(workdir / name)
    self._bad_names = _names(workdir / name)
    if self._first:
      self._metrics = log.JsonLines(
          workdir / 'metrics.jsonl', cut_after=start)
      self._board = log.TensorBoard(
          workdir / 'tensorboard', step=start,
          enabled=settings.log.tensorboard)

  def say(self, text: str):
    """One line to the user, from the first process."""
    if self._first:
      self._progress.say(text)

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
      step: whose metrics these are.
      metrics: on the devices; fetched whole only when logged.
      seconds: of training so far.

    Raises:
      UserError: non-finite gradients in a row, too many unreadable images.
    """
    due = step % self._every == 0 or step == self._total
    watched = ('nonfinite_in_row', 'bad_images')
    values = jax.device_get(
        metrics if due else {k: metrics[k] for k in watched})
    if values['nonfinite_in_row']:
      values = jax.device_get(metrics)
      self._check_finite(step, values)
    self._check_images(step, int(values['bad_images']))
    if due and self._first:
      self._write(step, values, seconds)

  def evaluated(self, step: int, numbers: Mapping[str, float], *,
                seconds: float):
    """Logs an evaluation that took `seconds`."""
    self.rested += seconds
    scores = [value for name, value in numbers.items()
              if name.endswith('knn/trained')]
    self._knn = scores or self._knn
    if self._first:
      self._metrics.write({'step': step, **numbers,
                           'time/evaluation_s': seconds})
      self._board.write(step, numbers)
      self.say(f'step {step}: ' + ' · '.join(
          f'{name} {value:.2f}' for name, value in numbers.items()))

  def close(self):
    """Ends pending writes."""
    self._progress.end()
    self._bad_images.close()
    if self._first:
      self._metrics.close()
      self._board.close()

  def _check_finite(self, step: int, values: Mapping[str, np.ndarray]):
    """Stops after several non-finite steps in a row."""
    settings = self._recipe.settings
    names = [f'{student} {name}'.strip()
             for student, one in self._recipe.each.items()
             for name in tree.names(one.student.shapes)]
    first = int(values['first_bad_leaf'])
    where = (f'the gradient of {names[first]}' if first >= 0 else 'the loss')
    terms = [name for name, value in values.items()
             if 'loss/' in name and not np.isfinite(value)]
    count, limit = int(values['nonfinite_in_row']), (
        settings.train.max_nonfinite_steps)
    text = (f'step {step}: {where} is not finite'
            + (f' ({", ".join(terms)})' if terms else '')
            + f'; the update was skipped ({count} in a row)')
    if count >= limit:
      raise errors.UserError(
          f'{text}: stopped. The weights are those before the first of '
          'these steps; try a lower schedules.lr.peak or a smaller '
          'optimizer.clip_norm')
    self.say(text)

  def _check_images(self, step: int, bad: int):
    """Stops when too many images could not be read."""
    settings = self._recipe.settings
    seen = step * settings.train.batch_size
    limit = settings.data.max_bad_fraction
    # Ten images of the first thousand are noise whatever the fraction.
    if bad > limit * max(seen, 1000):
      raise errors.UserError(
          f'{bad} of {seen} images could not be read, more than '
          f'data.max_bad_fraction={limit}: see '
          f'{self._workdir / "bad_images.jsonl"} for which and why, repair '
          'them or raise data.max_bad_fraction')

  def _write(self, step: int, values: Mapping[str, np.ndarray],
             seconds: float):
    """One row of metrics, the progress line, and warnings of collapse."""
    values = {name: float(value) for name, value in values.items()}
    since, then = self._logged
    now = time.monotonic()
    steps = max(step - since, 1)
    step_s = max(now - then - self.rested, 1e-9) / steps
    batch = self._recipe.settings.train.batch_size
    row = {'step': step, **values,
           'time/step_ms': 1e3 * step_s,
           'time/images_per_s': batch / step_s,
           'time/data_wait_pct': 100 * self.waited / steps / step_s,
           'time/seconds': seconds, **memory()}
    self._logged, self.waited, self.rested = (step, now), 0.0, 0.0
    self._metrics.write(row)
    self._board.write(step, row)
    self._progress.show(step, self._line(row))
    for name, watch in self._monitors.items():
      # What is of one student stands in the row under its name.
      warning = watch.check(row | {
          key.removeprefix(f'{name}/'): value for key, value in row.items()
          if name and key.startswith(f'{name}/')})
      if warning:
        self.say(f'step {step}: {name + ": " if name else ""}{warning}')

  def _line(self, row: Mapping[str, float]) -> dict[str, str]:
    """The parts of the progress line."""
    parts = {'loss': f'{row["loss"]:.3f}'}
    if 'dino/loss_over_log_k' in row:
      parts['loss/ln K'] = f'{row["dino/loss_over_log_k"]:.3f}'
    if self._knn:
      parts['k-NN'] = ' '.join(f'{score:.1f}%' for score in self._knn)
    return parts | {
        'images/s': f'{row["time/images_per_s"]:.1f}',
        'data wait': f'{row["time/data_wait_pct"]:.0f}%'}


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


def _names(path: epath.Path) -> set[tuple[str, str]]:
  """(source, name) of the images that an earlier start wrote down."""
  if not path.exists():
    return set()
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  return {(row['source'], row['name']) for row in rows}
