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
import time

from etils import epath
import jax
import numpy as np

from dinojax.core import errors
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import processes
from dinojax.train import checkpoint
from dinojax.train import program
from dinojax.train import recipe as recipe_lib
from dinojax.train import report
from dinojax.train import state as state_lib

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
    begin: puts weights into a fresh state; None: it stays random.
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
  begin: Callable[[dict], dict] | None
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
    state = job.begin(state) if job.begin else state
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
  """One start of a run: its clock and what is written while it lasts."""

  def __init__(self, job: Run, saved: checkpoint.Checkpoints, start: int,
               seconds: float):
    self.job, self.saved, self.start = job, saved, start
    self.clock = time.monotonic() - seconds
    self.report = report.Report(
        job.recipe, job.workdir, total_steps=job.total_steps, start=start)
    self.evaluation: dict[str, float] = {}
    self.running: jax.Array | None = None  # of the step in flight
    self.profiling = False

  @property
  def seconds(self) -> float:
    """Seconds of training, all starts together."""
    return time.monotonic() - self.clock

  def train(self, state: dict, stop: processes.StopSignal) -> Result:
    """The loop, in the order of the module's docstring."""
    job, step, say = self.job, self.start, self.report.say
    if step:
      say(f'resumed from step {step} of {job.workdir}')
    if step >= job.total_steps:
      self.evaluate(step, state)
      return Result(state, step, True, self.seconds, self.evaluation)
    batches = job.batches(step)
    batch = self.next_batch(batches)
    programs = _compile(job, state, batch, say)
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
      self.running = metrics['loss']
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
        say(f'stopped by a signal: saved step {step}; the same command '
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
    if self.running is None or self.running.is_ready():
      # Else the devices had work all the while, and nothing was lost.
      self.report.waited += time.monotonic() - began
    self.report.problems(batch.pop('problems', ()))
    batch.pop('label', None)
    return processes.to_devices(batch, self.job.mesh)

  def read(self, step: int, metrics: dict):
    """The metrics of a step, for the log."""
    self.report.read(step, metrics, seconds=self.seconds)

  def evaluate(self, step: int, state: dict):
    """Runs the evaluators on the EMA teacher."""
    if self.job.evaluate is None:
      return
    began = time.monotonic()
    self.evaluation = self.job.evaluate(
        step, state[state_lib.ema_part(state)])
    self.report.evaluated(
        step, self.evaluation, seconds=time.monotonic() - began)

  def profile(self, step: int):
    """Opens and closes the profiler window."""
    settings = self.job.recipe.settings.log
    if settings.profile_start is None:
      return
    if step == settings.profile_start:
      jax.profiler.start_trace(str(self.job.workdir / 'profile'))
      self.profiling = True
    elif step == settings.profile_start + settings.profile_steps:
      self.end_profile()

  def end_profile(self):
    """Writes the profile, if one is being taken."""
    if self.profiling:
      self.profiling = False
      jax.profiler.stop_trace()
      self.report.say(
          f'profile written to {self.job.workdir / "profile"}')

  def close(self):
    """Ends pending writes."""
    self.end_profile()
    self.report.close()
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
  rows = program.prepared(job.recipe.settings, batch, job.mesh)
  step = program.lower(job.recipe, state, rows).compile(
      mesh_lib.compiler_options(job.mesh))
  say(f'compiled in {time.monotonic() - began:.1f}s for '
      f'{job.mesh.size} × {mesh_lib.platform(job.mesh)}')
  return _Programs(prepare, step)
