"""From a config and a workdir to a run: the parts that entry points share."""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import json
import math
import os
import statistics
from typing import Any

from etils import epath
import jax

from dinojax.core import atomic
from dinojax.core import config as config_lib
from dinojax.core import errors
from dinojax.core import output
from dinojax.core import paths
from dinojax.core import tree
from dinojax.data import identity
from dinojax.data import shared_memory
from dinojax.data import sources
from dinojax.engine import checkpoint
from dinojax.engine import loop
from dinojax.engine import report
from dinojax.engine import trackers
from dinojax.evals import learned
from dinojax.evals import patches
from dinojax.evals import while_training
from dinojax.models import network
from dinojax.parallel import hardware
from dinojax.parallel import holder as holder_lib
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import processes
from dinojax.planning import memory
from dinojax.runs import batches as batches_lib
from dinojax.runs import ending
from dinojax.runs import exports
from dinojax.runs import initial_weights
from dinojax.runs import models as models_lib
from dinojax.runs import results
from dinojax.runs import workdir as workdir_lib
from dinojax.train import layouts
from dinojax.train import method as method_lib
from dinojax.train import pretraining
from dinojax.train import rescue
from dinojax.train import sections
from dinojax.train import settings as settings_lib

DEFAULT_COMPILE_CACHE = os.path.join(
    os.environ.get('XDG_CACHE_HOME') or '~/.cache',
    'dinojax', 'compiled')


def compile_cache(folder: str):
  """Keeps compiled programs in `folder`; empty: nowhere."""
  if folder:
    jax.config.update('jax_compilation_cache_dir', paths.expand(folder))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 1.0)


def train(config: Any, workdir: str) -> loop.Result:
  """Trains or resumes, evaluates, and writes results.json.

  Args:
    config: ConfigDict, see train.settings.
    workdir: folder of the run.

  Raises:
    UserError: anything the user can mend, before work starts where possible.
  """
  settings = settings_lib.read(config)
  exports.check(settings)
  trackers.names(settings.log.trackers)
  folder = workdir_lib.open_run(workdir, settings)
  with contextlib.ExitStack() as stack:
    job, has_results = _job(config, settings, folder, stack)
    if has_results:
      return results.tell_ended(loop.ended(job), folder)
    result = loop.run(job)
    if result.finished:
      ending.end(folder, settings, result)
  return result


def _job(config: Any, settings: settings_lib.Settings, folder: epath.Path,
         stack: contextlib.ExitStack) -> tuple[loop.Job, bool]:
  """Makes the job of the loop, and tells whether its results are there already.

  The stack releases the workdir, the mesh and weights on the host at its end.
  """
  settings, pins = pinned(settings, folder)
  training, homogeneous = (
      [(sources.open_training(spec), share) for spec, share in given]
      for given in (settings.data.mixture, settings.data.whole_batches))
  mesh = mesh_lib.make(settings.mesh.data, settings.mesh.fsdp)
  settings_lib.check_devices(settings, mesh.size)
  num_images = sum(len(source) for source, _ in training)
  epoch_steps = settings.train.epoch_steps or max(
      num_images // settings.train.batch_size, 1)
  steps = lambda d: d and d.steps(
      batch_size=settings.train.batch_size, epoch_steps=epoch_steps)
  total = method_lib.total_steps(settings, epoch_steps)
  every = max(steps(settings.checkpoint.every), 1)
  holder = hold(folder, total, max(every, steps(
      _before(folder, settings).checkpoint.every)), stack)
  stack.enter_context(mesh_lib.activate(mesh))
  teacher = models_lib.read_frozen_teacher(settings)
  method = method_lib.build(
      settings, mesh, epoch_steps, teacher and teacher.config)
  given = initial_weights.InitialWeights(method, mesh, teacher)
  stack.callback(given.release)
  del teacher  # the host's copy goes when it is on the devices
  saved = checkpoint.Checkpoints(folder)
  _check_students(saved, settings, folder)
  unfinished = (saved.latest() or 0) < total
  if unfinished:
    _check_memory(method, mesh)
    _check_warmup(settings, steps(settings.schedules.lr.warmup) or 0, total)
  given.check(saved.latest())
  data = identity.Data([source for source, _ in training + homogeneous])
  if saved.latest() is not None:
    _check_data(folder, data, settings)
  protocols = while_training.make(
      method, mesh, steps, total, given.fill, folder)
  if unfinished:
    _check_evaluations(method, mesh, protocols)
  if holder:
    workdir_lib.write_config(folder, config, pins)
    workdir_lib.keep_data(folder, data)
    describe(method, mesh, num_images, epoch_steps)
    _check_shared_memory(settings)
  job = loop.Job(
      trainable=pretraining.Pretraining(
          method, mesh, given, total_steps=total),
      mesh=mesh, workdir=folder, total_steps=total, checkpoint_steps=every,
      archive_steps=steps(settings.checkpoint.archive_every),
      evaluation_steps=steps(settings.knn.every),
      evaluate=_together(protocols, patches.make(method, mesh, folder)),
      score=_score(settings, steps(settings.knn.every), every),
      batches=lambda step: batches_lib.make(
          settings, training, homogeneous, step, method.gram_start),
      is_lost=holder.is_lost if holder else lambda: False,
      **_options(settings))
  return job, holder is None


def _before(folder: epath.Path, settings: settings_lib.Settings
            ) -> settings_lib.Settings:
  """The settings of an earlier start of this run, or those of now."""
  return (models_lib.read_workdir(str(folder))
          if (folder / models_lib.CONFIG).exists() else settings)


def _together(*evaluators: loop.Evaluator | None) -> loop.Evaluator | None:
  """One evaluator of several, of which any may be absent."""
  known = [evaluator for evaluator in evaluators if evaluator]
  if not known:
    return None

  def evaluate(step, emas, stop):
    scores = {}
    for evaluator in known:
      scores |= evaluator(step, emas, stop)
    return scores

  return evaluate


def _score(settings: settings_lib.Settings, evaluation_steps: int | None,
           checkpoint_steps: int
           ) -> Callable[[Mapping[str, float]], float] | None:
  """The number whose best checkpoint is kept; None: none is.

  Raises:
    UserError: it is not measured, or where nothing is saved.
  """
  if not settings.checkpoint.keep_best:
    return None
  if not learned.has_images(settings):
    raise errors.UserError(
        'checkpoint.keep_best=True needs k-NN: set data.validation to images '
        'with labels')
  if evaluation_steps and evaluation_steps % checkpoint_steps:
    raise errors.UserError(
        f'checkpoint.keep_best=True: k-NN is measured every {evaluation_steps} '
        f'steps, and checkpoints are saved every {checkpoint_steps}: set '
        'knn.every_steps to a multiple of checkpoint.every_steps')

  def score(numbers: Mapping[str, float]) -> float:
    values = [value for name, value in numbers.items()
              if name.rpartition('knn/')[2] == 'trained']
    return statistics.fmean(values) if values else -math.inf

  return score


def _options(settings: settings_lib.Settings) -> dict[str, Any]:
  """Fields of loop.Job that a config holds as they are."""
  log = settings.log
  return {
      'seed': settings.seed, 'info': workdir_lib.versions(),
      'keep': settings.checkpoint.keep, 'log': log_options(settings),
      'profile': None if log.profile_start is None else (
          log.profile_start, log.profile_steps),
      'deterministic': settings.train.deterministic,
      'layout': lambda info: layouts.of(info, settings.distillation.is_on),
      'advice': rescue.Advice(
          settings, settings.train.batch_size // jax.process_count())}


def log_options(settings: settings_lib.Settings) -> report.Options:
  """Options of the log: what is written, and which failures stop the run."""
  return report.Options(
      batch_size=settings.train.batch_size,
      every_steps=settings.log.every_steps,
      tensorboard=settings.log.tensorboard,
      trackers=tuple(trackers.names(settings.log.trackers)),
      config=config_lib.flatten(settings),
      max_nonfinite_steps=settings.train.max_nonfinite_steps,
      max_bad_fraction=settings.data.max_bad_fraction,
      line=pretraining.line)


def hold(folder: epath.Path, total: int, every: int,
          stack: contextlib.ExitStack) -> holder_lib.Holder | None:
  """Takes the workdir for this run; None: the run has ended.

  A run that has ended is read only, so it needs no lock and no free space.

  Raises:
    UserError: another run holds it, it cannot be written, or its log tells
      of checkpoints that are not there.
  """
  latest = checkpoint.Checkpoints(folder).latest()
  if workdir_lib.has_ended(folder, latest, total):
    return None
  with workdir_lib.writable(folder):
    holder = stack.enter_context(holder_lib.Holder(folder))
  # Again: the other one may have made some until now.
  workdir_lib.check(folder, checkpoint.Checkpoints(folder).latest(), every)
  return holder


def _check_shared_memory(settings: settings_lib.Settings):
  """Says before the first batch that workers will not find enough."""
  count, have = settings.data.num_workers, shared_memory.free_gib()
  if not count or have is None:
    return
  need = shared_memory.need_gib(
      settings.made_crops, settings.model.num_channels,
      settings.train.batch_size // jax.process_count(), count)
  if need > have:
    output.warn('there may be too little shared memory: '
                + shared_memory.advice(need, have))


def _check_data(folder: epath.Path, data: identity.Data,
                settings: settings_lib.Settings):
  """Checks that a resumed run has the data that it began with."""
  note = identity.check(
      folder, data, accept=settings.data.accept_changes,
      same=processes.of_first)
  if note and processes.is_first():
    print(note, flush=True)


def _check_memory(method: method_lib.Method, mesh: jax.sharding.Mesh):
  """Warns or raises before compiling a step that may not fit."""
  if not method.settings.train.check_memory:
    return
  free = hardware.available_gib(mesh.local_devices[0])
  say = lambda text: processes.is_first() and output.warn(text)
  memory.check(method, mesh, float(processes.of_first(str(free))), say)


def _check_evaluations(method: method_lib.Method, mesh: jax.sharding.Mesh,
                       evaluations: while_training.Evaluations | None):
  """Warns or raises where heads may not fit beside the state of the run."""
  if not (evaluations and method.settings.train.check_memory):
    return
  free = float(processes.of_first(
      str(hardware.available_gib(mesh.local_devices[0]))))
  say = lambda text: processes.is_first() and output.warn(text)
  training = pretraining.Pretraining(method, mesh)
  state = memory.gib(training.enter(
      training.saved({'step': 0}), training.heaviest()))
  for name, fit in evaluations.heads():
    memory.check_evaluation(fit, f'evals.{name}', state, mesh, free, say)


def _check_warmup(settings: settings_lib.Settings, steps: int, total: int):
  """Warns of a learning rate that is still rising when training ends."""
  lr = settings.schedules.lr
  if steps >= total and lr.start != lr.peak and processes.is_first():
    output.warn(f'the learning rate rises for {steps} steps and training ends '
                f'after {total}: schedules.lr.peak={lr.peak:g} is never '
                f'reached; set schedules.lr.warmup_steps={total // 10}')


def _check_students(saved: checkpoint.Checkpoints,
                    settings: settings_lib.Settings, folder: epath.Path):
  """Checks that a resumed run has at least one student of this config."""
  if saved.latest() is None or not settings.students:
    return
  try:
    known = saved.info().get('students', [])
  except checkpoint.Damaged:
    return  # an earlier one may be whole
  if not settings.students.keys() & known:
    raise errors.UserError(
        f'{folder} has none of the students of this config, only '
        f'{", ".join(known)}: use another --workdir')
  gone = [name for name in known if name not in settings.students]
  if gone and processes.is_first():
    print(f'step {saved.latest()}: students {", ".join(gone)} are no longer '
          'trained', flush=True)


def pinned(settings: settings_lib.Settings, folder: epath.Path
           ) -> tuple[settings_lib.Settings, dict[str, str]]:
  """Settings whose runs are read at the step of the first start.

  Those runs may go on meanwhile: weights that start or teach a run, and what
  it is compared with, must be the same at every start.

  Returns:
    The settings, and what each source is: written beside the config.
  """
  path = folder / workdir_lib.SOURCES
  pins = atomic.read_json(
      path, 'bring it back from a copy, or remove it: the runs that this one '
      'starts from are then read at their last step of today'
  ) if path.exists() else {}

  for source in _sources(settings):
    if source not in pins:
      pins[source] = models_lib.at_its_last_step(source)
  if pins:
    pins = json.loads(processes.of_first(json.dumps(pins)))
  pin = lambda section: dataclasses.replace(
      section, source=pins.get(section.source))

  def all_of(s):
    return dataclasses.replace(
        s, init=pin(s.init), gram=pin(s.gram),
        distillation=pin(s.distillation),
        students={name: all_of(student)
                  for name, student in s.students.items()})

  return all_of(settings), pins


def _sources(settings: settings_lib.Settings) -> set[str]:
  """All that weights are read from."""
  weight_sources = {getattr(student, name).source
                    for student in (settings, *settings.students.values())
                    for name in ('init', 'gram', 'distillation')}
  return {source for source in weight_sources if source is not None}


def describe(method: method_lib.Method, mesh, num_images: int,
             epoch_steps: int):
  """Says what is about to be trained."""
  if not processes.is_first():
    return
  s = method.settings
  total = method_lib.total_steps(s, epoch_steps)
  lines = [
      f'{num_images} images · batch {s.train.batch_size} · {epoch_steps} '
      f'steps an epoch · {total} steps · '
      f'{mesh.size} × {mesh_lib.platform(mesh)} · {s.model.dtype}']
  if method.has_frozen_teacher:
    lines.append(f'teacher: {_sizes(method.teacher)} · frozen')
  for name, student in method.each.items():
    plan = student.settings.schedules
    model = student.settings.model
    kernel = model.attention if model.has_attention else None
    lines.append(
        f'{"parameters" if name == sections.ALONE else name}: '
        f'{_sizes(student.student)}'
        + (f' · attention {kernel}' if kernel else '')
        + f' · peak lr {method_lib.peak_lr(student.settings, epoch_steps):.3g} '
        '(schedules.lr.'
        f'{"end" if plan.lr.end > plan.lr.peak else "peak"}='
        f'{max(plan.lr.peak, plan.lr.end)} by rule {plan.lr_rule})')
  print('\n'.join(lines), flush=True)


def _sizes(net: network.Functional) -> str:
  return ', '.join(f'{name} {tree.num_elements(part) / 1e6:.3g} M'
                   for name, part in net.shapes.items())
