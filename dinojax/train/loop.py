"""The training loop. Its order is fixed:

  save → next batch → step → metrics of the previous step → evaluate →
  preemption check; at the end, a save and an evaluation of the last step.

Everything that a resumed run needs follows from the last complete checkpoint:
the data and all random keys are functions of (seed, step).
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import functools
import json
import math
import time

from etils import epath
import jax
import numpy as np

from dinojax.core import errors
from dinojax.core import log
from dinojax.core import tree
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import processes
from dinojax.parallel import sharding
from dinojax.train import checkpoint
from dinojax.train import monitor
from dinojax.train import recipe as recipe_lib
from dinojax.train import state as state_lib
from dinojax.train import step as step_lib

# What an evaluator is: (step, teacher parameters) to named numbers.
Evaluator = Callable[[int, dict], dict[str, float]]
# Batches of this process from a step on.
Batches = Callable[[int], Iterator[dict]]


@dataclasses.dataclass(frozen=True)
class Run:
  """What the entry point hands to the loop.

  Attributes:
    recipe: what is trained.
    mesh: the devices.
    workdir: the state of the run; the same command resumes from it.
    total_steps: length of training.
    checkpoint_steps: between checkpoints.
    archive_steps: multiples that are kept for ever, or None.
    evaluation_steps: between evaluations, or None for the end only.
    batches: numpy batches from a step on.
    evaluate: k-NN and what else is measured; None to leave out.
    info: facts saved beside the checkpoints and metrics.
  """

  recipe: recipe_lib.Recipe
  mesh: jax.sharding.Mesh
  workdir: epath.Path
  total_steps: int
  checkpoint_steps: int
  archive_steps: int | None
  evaluation_steps: int | None
  batches: Batches
  evaluate: Evaluator | None
  info: dict


@dataclasses.dataclass(frozen=True)
class Result:
  """How a run ended.

  Attributes:
    state: at the last step.
    step: the last step.
    finished: False after a preemption.
    seconds: of training, all starts together.
    evaluation: of the last step, empty after a preemption.
  """

  state: dict
  step: int
  finished: bool
  seconds: float
  evaluation: dict[str, float]


def run(job: Run) -> Result:
  """Trains from the last checkpoint in the workdir, or from scratch.

  Raises:
    UserError: non-finite gradients in a row, too many unreadable images,
      a disk that is full.
  """
  settings = job.recipe.settings
  saved = checkpoint.Checkpoints(
      job.workdir, keep=settings.checkpoint.keep,
      archive_every=job.archive_steps)
  start = saved.latest()
  if start is None:
    state = state_lib.create(job.recipe, job.mesh, settings.seed)
    seconds, start = 0.0, 0
  else:
    state = saved.restore(state_lib.abstract(job.recipe, job.mesh))
    seconds = saved.info().get('seconds', 0.0)
  with processes.StopSignal() as stop:
    try:
      with contextlib.closing(
          _Session(job, saved, start, seconds)) as session:
        return session.train(state, stop)
    except OSError as error:
      raise errors.UserError(
          f'{job.workdir} could not be written: '
          f'{error.strerror or checkpoint.first_line(error)}; free space or '
          'fix the permissions, and start the same command again: it resumes '
          f'from step {saved.latest() or 0}') from error


class _Session:
  """One start of a run: its log, clock and compiled programs."""

  def __init__(self, job: Run, saved: checkpoint.Checkpoints, start: int,
               seconds: float):
    self.job, self.saved, self.start = job, saved, start
    self.clock = time.monotonic() - seconds
    self.first = processes.is_first()
    settings = job.recipe.settings
    self.every = settings.log.every_steps
    self.progress = log.Progress(job.total_steps, start)
    self.monitor = monitor.Monitor(settings.dino.num_prototypes)
    self.evaluation: dict[str, float] = {}
    self.waited = self.rested = 0.0
    self.logged = (start, time.monotonic())
    name = 'bad_images.jsonl' if self.first else (
        f'bad_images.{jax.process_index()}.jsonl')
    self.bad_images = log.JsonLines(job.workdir / name)
    self.bad_names = _bad_names(job.workdir / name)
    if self.first:
      self.metrics = log.JsonLines(
          job.workdir / 'metrics.jsonl', cut_after=start)
      self.board = log.TensorBoard(
          job.workdir / 'tensorboard', step=start,
          enabled=settings.log.tensorboard)

  @property
  def seconds(self) -> float:
    """Seconds of training, all starts together."""
    return time.monotonic() - self.clock

  def say(self, text: str):
    """One line to the user, from the first process."""
    if self.first:
      self.progress.say(text)

  def train(self, state: dict, stop: processes.StopSignal) -> Result:
    """The loop, in the order of the module's docstring."""
    job, step = self.job, self.start
    if step:
      self.say(f'resumed from step {step} of {job.workdir}')
    if step >= job.total_steps:
      self.evaluate(step, state)
      return Result(state, step, True, self.seconds, self.evaluation)
    batches = job.batches(step)
    batch = self.next_batch(batches)
    programs = _compile(job, state, batch, self.say)
    previous = None
    while True:
      if step % job.checkpoint_steps == 0 and step > self.start:
        # First the log: a resumed run never writes this step again.
        self.read(step, previous)
        previous = None
        self.saved.save(step, state, self.info())
      if step == job.total_steps:
        break
      if step > self.start:
        batch = self.next_batch(batches)
      self.profile(step)
      with jax.profiler.StepTraceAnnotation('train', step_num=step):
        state, metrics = programs.step(
            state, programs.prepare(batch, np.int32(step)))
      step += 1
      if previous is not None:
        self.read(step - 1, previous)
      previous = metrics
      if (job.evaluation_steps and step % job.evaluation_steps == 0
          and step < job.total_steps):
        self.evaluate(step, state)
      if stop.reached(step) and step < job.total_steps:
        self.read(step, previous)
        self.saved.save(step, state, self.info())
        self.saved.wait()
        self.say(f'stopped by a signal: saved step {step}; the same command '
                 'continues')
        return Result(state, step, False, self.seconds, {})
    if previous is not None:
      self.read(step, previous)
    self.saved.save(step, state, self.info())
    self.evaluate(step, state)
    self.saved.wait()
    return Result(state, step, True, self.seconds, self.evaluation)

  def info(self) -> dict:
    """What is saved beside a checkpoint."""
    return self.job.info | {'seconds': self.seconds}

  def next_batch(self, batches: Iterator[dict]) -> dict:
    """The next batch on the devices; bad images are written down."""
    began = time.monotonic()
    batch = dict(next(batches))
    self.waited += time.monotonic() - began
    for problem in batch.pop('problems', ()):
      name = (problem['source'], problem['name'])
      if name not in self.bad_names:
        self.bad_names.add(name)
        self.bad_images.write(problem)
    batch.pop('label', None)
    return processes.to_devices(batch, self.job.mesh)

  def read(self, step: int, metrics: dict):
    """Checks the metrics of a step, and logs them when it is time."""
    due = step % self.every == 0 or step == self.job.total_steps
    watched = ('nonfinite_in_row', 'bad_images')
    values = jax.device_get(
        metrics if due else {k: metrics[k] for k in watched})
    if values['nonfinite_in_row']:
      values = jax.device_get(metrics)
      self.check_finite(step, values)
    self.check_images(step, int(values['bad_images']))
    if due:
      self.write(step, values)

  def check_finite(self, step: int, values: dict):
    """Stops after several non-finite steps in a row."""
    settings = self.job.recipe.settings
    names = tree.names(self.job.recipe.student.shapes)
    first = int(values['first_bad_leaf'])
    where = (f'the gradient of {names[first]}' if first >= 0 else 'the loss')
    terms = [name for name, value in values.items()
             if name.startswith('loss/') and not np.isfinite(value)]
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

  def check_images(self, step: int, bad: int):
    """Stops when too many images could not be read."""
    settings = self.job.recipe.settings
    seen = step * settings.train.batch_size
    limit = settings.data.max_bad_fraction
    # Ten images of the first thousand are noise whatever the fraction.
    if bad > limit * max(seen, 1000):
      raise errors.UserError(
          f'{bad} of {seen} images could not be read, more than '
          f'data.max_bad_fraction={limit}: see '
          f'{self.job.workdir / "bad_images.jsonl"} for which and why, repair '
          'them or raise data.max_bad_fraction')

  def write(self, step: int, values: dict):
    """One row of metrics, the progress line, and warnings of collapse."""
    if not self.first:
      return
    values = {name: float(value) for name, value in values.items()}
    since, then = self.logged
    now = time.monotonic()
    steps = max(step - since, 1)
    step_s = max(now - then - self.rested, 1e-9) / steps
    batch = self.job.recipe.settings.train.batch_size
    row = {'step': step, **values,
           'time/step_ms': 1e3 * step_s,
           'time/images_per_s': batch / step_s,
           'time/data_wait_pct': 100 * self.waited / steps / step_s,
           'time/seconds': self.seconds, **memory()}
    self.logged, self.waited, self.rested = (step, now), 0.0, 0.0
    self.metrics.write(row)
    self.board.write(step, row)
    self.progress.show(step, self.line(row))
    warning = self.monitor.check(row)
    if warning:
      self.say(f'step {step}: {warning}')

  def line(self, row: dict) -> dict[str, str]:
    """The parts of the progress line."""
    prototypes = self.job.recipe.settings.dino.num_prototypes
    parts = {'loss': f'{row["loss"]:.3f}'}
    if 'loss/dino_global' in row:
      parts['loss/ln K'] = (
          f'{row["loss/dino_global"] / math.log(prototypes):.3f}')
    if 'knn/trained' in self.evaluation:
      parts['k-NN'] = f'{self.evaluation["knn/trained"]:.1f}%'
    return parts | {
        'images/s': f'{row["time/images_per_s"]:.1f}',
        'data wait': f'{row["time/data_wait_pct"]:.0f}%'}

  def evaluate(self, step: int, state: dict):
    """Runs the evaluators on the EMA teacher."""
    if self.job.evaluate is None:
      return
    began = time.monotonic()
    self.evaluation = self.job.evaluate(step, state['teacher'])
    seconds = time.monotonic() - began
    self.rested += seconds
    if self.first:
      self.metrics.write({'step': step, **self.evaluation,
                          'time/evaluation_s': seconds})
      self.board.write(step, self.evaluation)
      text = ' · '.join(f'{name} {value:.2f}'
                        for name, value in self.evaluation.items())
      self.say(f'step {step}: {text}')

  def profile(self, step: int):
    """Opens and closes the profiler window."""
    settings = self.job.recipe.settings.log
    if settings.profile_start is None:
      return
    if step == settings.profile_start:
      jax.profiler.start_trace(str(self.job.workdir / 'profile'))
    elif step == settings.profile_start + settings.profile_steps:
      jax.profiler.stop_trace()
      self.say(f'profile written to {self.job.workdir / "profile"}')

  def close(self):
    """Ends pending writes."""
    self.progress.end()
    self.bad_images.close()
    if self.first:
      self.metrics.close()
      self.board.close()
    self.saved.close()


@dataclasses.dataclass(frozen=True)
class _Programs:
  """The compiled programs of a stage."""

  prepare: Callable[[dict, np.int32], dict]
  step: Callable[[dict, dict], tuple[dict, dict]]


def _compile(job: Run, state: dict, batch: dict,
             say: Callable[[str], None]) -> _Programs:
  """Compiles all programs before the first step; says how long it took."""
  began = time.monotonic()
  prepare = jax.jit(functools.partial(
      recipe_lib.prepare, job.recipe.settings))
  prepare = prepare.lower(batch, np.int32(0)).compile()
  rows = sharding.abstract_rows(jax.eval_shape(functools.partial(
      recipe_lib.prepare, job.recipe.settings), batch, np.int32(0)), job.mesh)
  keep = jax.tree.map(lambda x: x.sharding, state)
  step = jax.jit(
      functools.partial(step_lib.train_step, recipe=job.recipe),
      donate_argnums=0, out_shardings=(keep, None))
  step = step.lower(state, rows).compile()
  say(f'compiled in {time.monotonic() - began:.1f}s for '
      f'{job.mesh.size} × {mesh_lib.platform(job.mesh)}')
  return _Programs(prepare, step)


def memory() -> dict[str, float]:
  """Peak memory of the device, or of the process on CPU, in GiB."""
  stats = jax.local_devices()[0].memory_stats()
  if stats and 'peak_bytes_in_use' in stats:
    return {'mem/device_peak_gib': stats['peak_bytes_in_use'] / 2**30}
  import resource  # Unix only, and needed only here
  peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return {'mem/process_peak_gib': peak_kib / 2**20}


def _bad_names(path: epath.Path) -> set[tuple[str, str]]:
  if not path.exists():
    return set()
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  return {(row['source'], row['name']) for row in rows}
