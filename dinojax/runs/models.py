"""Weights of any kind: of a run, of our own files, of anybody else's."""

from collections.abc import Iterator
import contextlib
import dataclasses
import os

from etils import epath
import jax
import numpy as np

from dinojax.core import atomic
from dinojax.core import errors
from dinojax.core import paths
from dinojax.core import tree
from dinojax.engine import checkpoint
from dinojax.features import backbone
from dinojax.interop import hub
from dinojax.interop import reading
from dinojax.interop import store
from dinojax.models import network
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import processes
from dinojax.parallel import sharding
from dinojax.train import frozen_teacher as frozen_teacher_lib
from dinojax.train import layouts
from dinojax.train import method as method_lib
from dinojax.train import sections
from dinojax.train import settings as settings_lib

CONFIG = 'config.json'  # of a run, in its workdir


def read(path: str | os.PathLike, *, part: str = 'ema',
         num_heads: int | None = None, image_px: int | None = None,
         exact_periods: bool = False) -> reading.Weights:
  """Weights of any kind; says what of a file was taken and left out.

  Args:
    path: see `dinojax.load`.
    part: 'ema' or 'student'; of a file, also the name of one of several.
    num_heads: for sizes that were never published.
    image_px: side that learned positions are resampled to.
    exact_periods: see `reading.read`.

  Raises:
    UserError: nothing there, or nothing that is known.
  """
  path = paths.expand(path)
  with _readable(path):
    if store.is_ours(path):
      weights = _resampled(store.load(path), image_px)
    elif run := find_run(path):
      weights = _resampled(read_run(run, part), image_px)
    else:
      weights = reading.read(
          path, part=part, num_heads=num_heads, image_px=image_px,
          exact_periods=exact_periods)
  if processes.is_first():
    for note in weights.notes:
      print(note, flush=True)
  return weights


def load(path: str | os.PathLike, **options) -> backbone.Backbone:
  """A ready model, see `dinojax.load`."""
  return backbone.Backbone.of(
      read(path, **options), source=paths.expand(path))


@contextlib.contextmanager
def _readable(path: str) -> Iterator[None]:
  """Names the path where the disk, or the system, does not give it."""
  try:
    yield
  except errors.UserError:
    raise
  except (OSError, ValueError) as error:
    if isinstance(error, ValueError) and 'null byte' not in str(error):
      raise
    raise errors.UserError(
        f'{path!r} cannot be read: {getattr(error, "strerror", "") or error}; '
        'check the path and its permissions') from error


def _resampled(weights: reading.Weights,
               image_px: int | None) -> reading.Weights:
  if image_px is None:
    return weights
  config, params = reading.resample(weights.config, weights.params, image_px)
  return dataclasses.replace(weights, config=config, params=params)


def read_workdir(workdir: str) -> settings_lib.Settings:
  """The settings of an existing run.

  Raises:
    UserError: not the folder of a run.
  """
  path = epath.Path(workdir) / CONFIG
  if not path.exists():
    raise errors.UserError(
        f'--workdir={workdir} holds no run: {CONFIG} is missing')
  try:
    return settings_lib.read(atomic.read_json(
        path, 'bring it back from a copy, or remove it and give the command '
        'of the run again, which writes it anew'))
  except errors.UserError as error:
    raise errors.UserError(f'{path}: {error}' if str(path) not in str(error)
                           else str(error)) from error


@dataclasses.dataclass(frozen=True)
class CheckpointName:
  """A checkpoint of a run: of which student, of which step (None: the last)."""

  workdir: str
  student: str = sections.ALONE
  step: int | None = None


def find_run(path: str) -> CheckpointName | None:
  """Finds the run of DIR, DIR/STUDENT, or either with @STEP; None: no run.

  A folder that exists under the whole name is that folder; '@' is looked for
  only where there is none.

  Raises:
    UserError: what follows '@' is no step.
  """
  path = paths.expand(path)
  bare, _, step = path.rpartition('@')
  if epath.Path(path).exists() or not bare:
    return _run_at(path)
  run = _run_at(bare)
  if run is None:
    return _run_at(path)
  if not (step.isascii() and step.isdecimal()):
    raise errors.UserError(
        f'{path}: {step!r} is no step of {bare}; it has checkpoints of '
        f'{_known_steps(run)}')
  return dataclasses.replace(run, step=int(step))


def _run_at(path: str) -> CheckpointName | None:
  """The run in a folder, or of a student, which has no folder of its own."""
  place = epath.Path(path)
  for folder, name in ((place, sections.ALONE), (place.parent, place.name)):
    if (folder / CONFIG).exists() and (folder / checkpoint.FOLDER).exists():
      return CheckpointName(str(folder), name)
    if place.exists():
      return None
  return None


def _known_steps(run: CheckpointName) -> str:
  steps = checkpoint.Checkpoints(run.workdir).steps()
  return ', '.join(map(str, steps)) or 'no step yet'


def at_its_last_step(source: str) -> str:
  """A run with the step of its last checkpoint, a name of the Hub with its
  revision of today; anything else as it is.
  """
  if source.startswith(hub.PREFIX):
    return hub.pinned(source, hub.fetch(source)[0])
  run = find_run(source)
  if run is None or run.step is not None:
    return source
  step = checkpoint.Checkpoints(run.workdir).latest()
  return source if step is None else f'{source}@{step}'


def read_run(run: CheckpointName, part: str = 'ema') -> reading.Weights:
  """The EMA of a run, heads included, into host memory.

  Args:
    run: where it is.
    part: 'ema', or 'student' for its weights themselves.

  Raises:
    UserError: no run, no such student, or no such checkpoint.
  """
  workdir = run.workdir
  whole = read_workdir(workdir)
  settings = _student(whole, run.student, workdir)
  mesh = mesh_lib.make(devices=mesh_lib.host_device())
  saved = checkpoint.Checkpoints(workdir)
  if saved.latest() is None:
    raise errors.UserError(f'--workdir={workdir} has no checkpoint yet')
  if run.step is not None and run.step not in saved.steps():
    raise errors.UserError(
        f'{workdir} has no checkpoint of step {run.step}, but of '
        f'{_known_steps(run)}')
  if part not in ('ema', 'student'):
    raise errors.UserError(
        f'part={part!r} is not of {workdir}: a run has ema and student')
  item = layouts.item(
      _info(saved, run.step), part, run.student, whole.distillation.is_on)
  with mesh_lib.activate(mesh):
    shapes = method_lib.student_network(settings, mesh).shapes
    params = jax.device_get(saved.restore_item(
        item, sharding.abstract(shapes, mesh), run.step))
  platform = mesh_lib.platform(mesh_lib.make(devices=mesh_lib.one_device()))
  config = settings.model.for_platform(platform).inference()
  heads = {'dino_head': settings.dino.head, 'ibot_head': settings.ibot.head}
  return reading.Weights(
      config, params['backbone'], {}, 'dinojax',
      {name: reading.Head(heads[name], part)
       for name, part in params.items() if name in heads},
      mean=settings.augment.mean, std=settings.augment.std,
      value_range=tuple(settings.data.value_range))


def _info(saved: checkpoint.Checkpoints, step: int | None) -> dict:
  """Reads the info of a step, or of another step where that is damaged."""
  last = saved.latest() if step is None else step
  for known in (last, *reversed(saved.steps())):
    try:
      return saved.info(known)
    except checkpoint.Damaged:
      continue
  return {}


def _student(settings: settings_lib.Settings, name: str,
             workdir: str) -> settings_lib.Settings:
  if name in settings.each:
    return settings.each[name]
  if not settings.students:
    raise errors.UserError(
        f'{workdir} is a run of one student: give it without /{name}')
  what = 'several students' if name == sections.ALONE else (
      f'no student {name!r}')
  raise errors.UserError(
      f'{workdir} has {what}: give one of '
      + ', '.join(f'{workdir}/{known}' for known in settings.each))


@dataclasses.dataclass(frozen=True)
class FrozenTeacher:
  """A network that is distilled, as read."""

  config: network.NetworkConfig
  params: tree.Tree


def check_colours(weights: reading.Weights, settings: settings_lib.Settings,
                  source: str):
  """Checks that images are normalised as those the weights were trained on.

  Raises:
    UserError: they are not; the message has the values to set.
  """
  a = settings.augment
  if not all(np.allclose(*pair, atol=1e-3) for pair in (
      (a.mean, weights.mean), (a.std, weights.std))):
    raise errors.UserError(
        f'augment.mean={a.mean}, augment.std={a.std}, but {source} was '
        f'trained with {tuple(weights.mean)} and {tuple(weights.std)}: set '
        'these')


def read_frozen_teacher(
    settings: settings_lib.Settings) -> FrozenTeacher | None:
  """Reads the teacher of distillation.source; None: the EMA teaches.

  Raises:
    UserError: nothing there, or not what distillation.model says.
  """
  d = settings.distillation
  if not d.is_on:
    return None
  if d.source is None:
    raise errors.UserError(
        'distillation has no teacher: set distillation.source to the workdir '
        'of a run, or to weights with heads')
  try:
    weights = read(d.source)
  except errors.UserError as error:
    raise errors.UserError(
        f'distillation.source={d.source}: {error}') from error
  check_colours(weights, settings, f'distillation.source={d.source}')
  head = lambda name: (
      weights.heads[name].config if name in weights.heads else None)
  config = network.NetworkConfig(
      weights.config, head('dino_head'), head('ibot_head'))
  if d.model is not None:
    frozen_teacher_lib.check(
        frozen_teacher_lib.from_settings(settings), config, settings, d.source)
  params = {'backbone': weights.params} | {
      name: head.params for name, head in weights.heads.items()}
  return FrozenTeacher(config, params)
