"""The training loop. Its order is fixed:

  save → next batch → step → metrics of the previous step → evaluate →
  preemption check; at the end, a save and an evaluation of the last step.

Everything that a resumed run needs follows from the last complete checkpoint:
the data and all random keys are functions of (seed, step).
"""

from collections.abc import Callable, Hashable, Iterator, Mapping
import contextlib
import dataclasses
import time

from etils import epath
import jax
import numpy as np

from dinojax.core import errors
from dinojax.core import output
from dinojax.core import tree
from dinojax.engine import checkpoint
from dinojax.engine import items
from dinojax.engine import profiling
from dinojax.engine import program
from dinojax.engine import report
from dinojax.engine import rescue
from dinojax.engine import trainable as trainable_lib
from dinojax.parallel import processes

# What an evaluator is: (step, what is evaluated by name, whether to stop) to
# named numbers; Stopped: it has none, and the next start asks again.
Evaluator = Callable[
    [int, dict[str, tree.Tree], Callable[[], bool]], dict[str, float]]
# Batches of this process from a step on.
Batches = Callable[[int], Iterator[dict]]


@dataclasses.dataclass(frozen=True)
class Job:
  """Everything that the entry point hands to the loop.

  Attributes:
    trainable: training method with its networks.
    mesh: devices that train.
    workdir: folder of the run; the same command resumes from it.
    seed: seed of all random numbers.
    total_steps: length of training.
    checkpoint_steps: steps between checkpoints.
    batches: numpy batches from a step on.
    log: options of the log, and limits at which the run stops.
    info: facts saved beside the checkpoints.
    keep: number of the latest checkpoints that are kept.
    archive_steps: steps whose multiples are kept for ever, or None.
    evaluate: k-NN and what else is measured; None to leave out.
    evaluation_steps: steps between evaluations, or None for the end only.
    profile: first step and number of steps that are profiled, or None.
    deterministic: see mesh.compiler_options.
    layout: gives the layout of a checkpoint by its info; None: `current`.
    advice: words for errors of the input pipeline and of gradients.
    score: number of an evaluation by which a checkpoint is the best, which is
      then kept; None: none is. Evaluations are then at steps that are saved.
    is_lost: tells whether the workdir was removed or replaced meanwhile;
      asked at each save, on the first process.
  """

  trainable: trainable_lib.Trainable
  mesh: jax.sharding.Mesh
  workdir: epath.Path
  seed: int
  total_steps: int
  checkpoint_steps: int
  batches: Batches
  log: report.Options
  info: dict
  keep: int = 2
  archive_steps: int | None = None
  evaluate: Evaluator | None = None
  evaluation_steps: int | None = None
  profile: tuple[int, int] | None = None
  deterministic: bool = False
  layout: Callable[[dict], items.Layout] | None = None
  advice: rescue.Advice = rescue.NoAdvice()
  score: Callable[[Mapping[str, float]], float] | None = None
  is_lost: Callable[[], bool] = lambda: False

  @property
  def current(self) -> items.Layout:
    """The layout in which checkpoints are written."""
    return items.Current(self.trainable.named)


@dataclasses.dataclass(frozen=True)
class Result:
  """How a run ended.

  Attributes:
    state: state at the last step.
    step: the last step.
    finished: False after a preemption.
    stopped: True if a signal was seen, at the very end too.
    seconds: seconds of training, all starts together.
    evaluation: numbers measured at the last step, empty after a preemption.
  """

  state: dict
  step: int
  finished: bool
  stopped: bool
  seconds: float
  evaluation: dict[str, float]

  def __repr__(self) -> str:
    return report.summary(self)


def run(job: Job) -> Result:
  """Trains from the last checkpoint in the workdir, or from scratch.

  Raises:
    UserError: non-finite gradients in a row, too many unreadable images,
      a disk that is full.
  """
  saved = checkpoint.Checkpoints(
      job.workdir, keep=job.keep, archive_every=job.archive_steps, writes=True)
  start, state = _resumed(job, saved)
  seconds = saved.info(start).get('seconds', 0.0) if start else 0.0
  try:
    with _Session(job, saved, start, seconds) as session:
      state = session.begin(state)
      if start >= job.total_steps:
        return session.ended(state)
      batch = session.next_batch()
      session.report.starts(job.mesh, job.info)
      programs = program.compile_all(
          job.trainable, job.mesh, state, start, job.total_steps,
          session.report.say, deterministic=job.deterministic)
      return session.train(state, batch, programs)
  except OSError as error:
    raise rescue.disk(error, job.workdir, saved.latest()) from error


def ended(job: Job) -> Result:
  """The end of a run that has its results; nothing is written.

  Raises:
    UserError: its last checkpoint is damaged.
  """
  with contextlib.closing(checkpoint.Checkpoints(job.workdir)) as saved:
    step = saved.latest()
    try:
      state = _restored(job, saved, step)
    except checkpoint.Damaged as error:
      raise errors.UserError(
          f'{error}. The run has ended, and its results are kept; without '
          f'{job.workdir / "results.json"}, the same command falls back to '
          'the last step that is whole, and trains on from there') from error
    return Result(
        job.trainable.enter(state, job.trainable.variant(step)), step, True,
        False,
        saved.info().get('seconds', 0.0),
        report.evaluations(job.workdir).get(step, {}))


def _resumed(job: Job, saved: checkpoint.Checkpoints) -> tuple[int, dict]:
  """The last whole checkpoint, and its step; or the start.

  Raises:
    UserError: there are checkpoints, and none is whole.
  """
  reasons: dict[int, str] = {}
  for step in reversed(saved.steps()):
    try:
      state = _restored(job, saved, step)
    except checkpoint.Damaged as error:
      reasons[step] = str(error)
    else:
      break
  else:
    if reasons:
      raise errors.UserError('\n  '.join([
          f'no checkpoint of {job.workdir} is whole:', *reasons.values(),
          'Bring the folder back from a copy, or begin anew in another '
          '--workdir']))
    return 0, job.trainable.create(jax.random.key(job.seed))
  for bad, reason in reasons.items():
    place = saved.set_aside(bad)
    if processes.is_first():
      output.warn(f'{reason}. It is kept as {place}, and the run goes on from '
                  f'step {step}, which is whole')
  return step, state


def _restored(job: Job, saved: checkpoint.Checkpoints, step: int) -> dict:
  """The saved state, which `enter` completes."""
  info = saved.info(step)
  layout = job.layout(info) if job.layout else job.current
  wanted = layout.split(job.trainable.saved({'step': step} | info))
  return layout.join(saved.restore(wanted, step))


class _Session:
  """One start of a run: its clock and what is written while it lasts."""

  def __init__(self, job: Job, saved: checkpoint.Checkpoints, start: int,
               seconds: float):
    self.job, self.saved, self.start = job, saved, start
    self.clock = time.monotonic() - seconds
    self.report = report.Report(
        job.trainable, job.log, job.workdir, total_steps=job.total_steps,
        start=start)
    self.evaluation: dict[str, float] = {}
    known = report.evaluations(job.workdir) if job.score else {}
    self.scores = {  # a step that was not saved cannot be kept
        step: known[step] for step in saved.steps() if step in known}
    saved.best = report.best(self.scores, job.score)
    self.measured: int | None = None  # step of `evaluation`
    self.batches: Iterator[dict] = iter(())
    self.running: jax.Array | None = None  # of the step in flight
    self.profile = profiling.Window(
        job.profile, job.total_steps, str(job.workdir / 'profile'))

  @property
  def seconds(self) -> float:
    """Seconds of training, all starts together."""
    return time.monotonic() - self.clock

  def begin(self, state: dict) -> dict:
    """The state with what its next step needs; batches begin to be made."""
    if self.start:
      self.report.event(
          f'resumed from step {self.start} of {self.job.workdir}')
    state = self.enter(self.start, state)
    if self.start < self.job.total_steps:
      self.batches = self.job.batches(self.start)
    return state

  def ended(self, state: dict) -> Result:
    """The result of a run that has no step left."""
    self.evaluate_missing(self.start, state)
    return Result(
        state, self.start, True, False, self.seconds, self.evaluation)

  def train(self, state: dict, batch: dict,
            programs: Mapping[Hashable, program.Programs]) -> Result:
    """Trains, where all is ready; errors as of `run`."""
    self.report.begin(self.start)
    try:
      # Until here, a signal ends the program at once: nothing is lost.
      with processes.StopSignal() as stop:
        return self.steps(state, batch, programs, stop)
    except report.NonFinite as error:
      self.saved.wait()
      raise self.job.advice.nonfinite(
          error, self.job.workdir, self.saved.steps()) from error

  def steps(self, state: dict, batch: dict,
            programs: Mapping[Hashable, program.Programs],
            stop: processes.StopSignal) -> Result:
    """The loop, in the order of the module's docstring."""
    job, step, previous = self.job, self.start, None
    if step and self.is_evaluated(step):  # unless a stop left it out
      self.evaluate_missing(step, state, stop.reached)
    while True:
      if step % job.checkpoint_steps == 0 and step > self.start:
        # First the log: a resumed run never writes this step again.
        self.report.read(step, previous, seconds=self.seconds)
        previous = None
        if self.report.is_finite:  # else it would push out a good one
          self.save(step, state)
      if step == job.total_steps:
        break
      if step > self.start:
        batch = self.next_batch()
      self.profile.begin(step)
      run = programs[job.trainable.variant(step)]
      with jax.profiler.StepTraceAnnotation('train', step_num=step):
        state, metrics = run.step(state, run.prepare(batch, np.int32(step)))
      self.running = metrics['loss']
      step += 1
      state = self.enter(step, state)
      if previous is not None:
        self.report.read(step - 1, previous, seconds=self.seconds)
      previous = metrics
      self.report.tick(step)
      self.end_profile(step)  # which holds no evaluation
      if self.is_evaluated(step) and step < job.total_steps:
        self.evaluate(step, state, stop.reached)
      if stop.reached() and step < job.total_steps:
        self.report.read(step, previous, seconds=self.seconds)
        self.save(step, state)
        self.saved.wait()
        self.report.event(
            f'stopped by a signal: saved step {step}; the same command '
            'continues')
        return Result(state, step, False, True, self.seconds, {})
    if previous is not None:
      self.report.read(step, previous, seconds=self.seconds)
    self.save(step, state)
    is_measured = self.evaluate_missing(step, state, stop.reached)
    self.saved.wait()
    if is_measured:
      self.report.ended(step)
    return Result(state, step, is_measured, stop.seen, self.seconds,
                  self.evaluation)

  def enter(self, step: int, state: dict) -> dict:
    """The state with what the program of its next step needs."""
    trainable = self.job.trainable
    after = trainable.enter(state, trainable.variant(step))
    for name in after.keys() - state.keys() - {trainable_lib.FROZEN}:
      self.report.event(f'step {step}: {trainable.words[name]} begins')
    return after

  def save(self, step: int, state: dict):
    """Starts writing a checkpoint, if the workdir is still there."""
    processes.first_raises(errors.UserError(
        f'{self.job.workdir} was removed or replaced while the run used it: '
        f'stopped at step {step}, because its log, its config and its '
        'checkpoints are gone. Bring the folder back from a copy and start '
        'the same command again, or begin anew in another --workdir'
    ) if processes.is_first() and self.job.is_lost() else None)
    if step == self.measured:
      self.scores[step] = self.evaluation
      self.saved.best = report.best(self.scores, self.job.score)
    named = self.job.trainable.named
    self.saved.save(
        step, self.job.current.split(state), self.job.info | {
            'seconds': self.seconds, named: list(state[named])})

  def next_batch(self) -> dict:
    """The next batch on the devices; bad images are written down.

    Raises:
      UserError: the pipeline failed.
    """
    began = time.monotonic()
    try:
      batch = dict(next(self.batches))
    except (OSError, RuntimeError) as error:
      known = self.job.advice.batches(error)
      if known is None:
        raise
      raise known from error
    if self.running is None or self.running.is_ready():
      # Else the devices had work all the while, and nothing was lost.
      self.report.waited += time.monotonic() - began
    self.report.problems(batch.pop('problems', ()))
    batch.pop('label', None)
    return processes.to_devices(batch, self.job.mesh)

  def evaluate(self, step: int, state: dict,
               stop: Callable[[], bool] = lambda: False) -> bool:
    """Runs the evaluators; False: they were dropped, as the run stops."""
    if self.job.evaluate is None:
      return True
    jax.block_until_ready(state)  # a step in flight is no evaluation
    self.report.measures(step)
    try:
      self.evaluation = self.job.evaluate(
          step, self.job.trainable.evaluated(state), stop)
    except errors.Stopped:
      self.report.event(f'step {step} is evaluated by the next start')
      return False
    self.report.evaluated(step, self.evaluation)
    self.measured = step
    return True

  def is_evaluated(self, step: int) -> bool:
    """Tells whether a step before the last has an evaluation."""
    every = self.job.evaluation_steps
    return bool(every) and step % every == 0

  def evaluate_missing(self, step: int, state: dict,
                       stop: Callable[[], bool] = lambda: False) -> bool:
    """Evaluates a step, unless an earlier start has; see `evaluate`."""
    known = report.evaluations(self.job.workdir).get(step)
    if known is None:
      return self.evaluate(step, state, stop)
    self.evaluation = known
    return True

  def end_profile(self, step: int | None = None):
    """Writes the profile after its last step, or now if None is given."""
    if self.profile.ends(step):
      if step is not None:
        jax.block_until_ready(self.running)
      self.report.rested += self.profile.end()
      self.report.say(f'profile written to {self.profile.folder}')

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    """Ends pending writes; the first error is the one to tell."""
    with contextlib.suppress(*((errors.UserError, OSError) if kind else ())):
      self.end_profile()
      self.report.close(failed=bool(kind))
      self.saved.close()
