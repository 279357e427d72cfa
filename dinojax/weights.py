"""Weights of any kind: of a run, of our own files, of anybody else's."""

import dataclasses

from etils import epath
import jax
import numpy as np

from dinojax.core import atomic
from dinojax.core import errors
from dinojax.core import tree
from dinojax.interop import reading
from dinojax.interop import store
from dinojax.models import network
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import sharding
from dinojax.train import checkpoint
from dinojax.train import distilled
from dinojax.train import recipe as recipe_lib
from dinojax.train import settings as settings_lib

CONFIG = 'config.json'  # of a run, in its workdir


def read(path: str, *, part: str = 'ema', num_heads: int | None = None,
         image_px: int | None = None,
         exact_periods: bool = False) -> reading.Weights:
  """Weights of any kind.

  Args:
    path: the workdir of a run, or workdir/NAME of one of its students, with
      @STEP for another checkpoint than the last; a folder that `dinojax
      convert import` wrote; any weight file of DINOv2, DINOv3, transformers
      or timm; or, where none of these is there, 'owner/name' on the Hugging
      Face Hub.
    part: of a run: 'ema' or 'student'.
    num_heads: for sizes that were never published.
    image_px: side that learned positions are resampled to.
    exact_periods: see `reading.read`.

  Raises:
    UserError: nothing there, or nothing that is known.
  """
  if store.is_ours(path):
    return _resampled(store.load(path), image_px)
  run = find_run(path)
  if run:
    return _resampled(read_run(run, part), image_px)
  return reading.read(path, num_heads=num_heads, image_px=image_px,
                      exact_periods=exact_periods)


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
class Run:
  """A checkpoint of a run: of which student, of which step (None: the last)."""

  workdir: str
  student: str = ''
  step: int | None = None


def find_run(path: str) -> Run | None:
  """What DIR, DIR/STUDENT, or either with @STEP, means; None: no run."""
  bare, _, step = path.rpartition('@')
  if not (bare and step.isdecimal()):
    bare, step = path, ''
  place = epath.Path(bare)
  parts = [(place, '')]
  if not place.exists():  # a student has no folder of its own
    parts.append((place.parent, place.name))
  for folder, name in parts:
    if (folder / CONFIG).exists() and (folder / checkpoint.FOLDER).exists():
      return Run(str(folder), name, int(step) if step else None)
  return None


def at_its_last_step(source: str) -> str:
  """A run with the step of its last checkpoint; anything else as it is."""
  run = find_run(source)
  if run is None or run.step is not None:
    return source
  step = checkpoint.Checkpoints(run.workdir).latest()
  return source if step is None else f'{source}@{step}'


def read_run(run: Run, part: str = 'ema') -> reading.Weights:
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
    known = ', '.join(map(str, saved.steps()))
    raise errors.UserError(
        f'{workdir} has no checkpoint of step {run.step}, but of {known}')
  if part == 'ema' and not whole.distillation.is_on:
    part = 'teacher'
  with mesh_lib.activate(mesh):
    shapes = recipe_lib.student_network(settings, mesh).shapes
    params = jax.device_get(saved.restore_part(
        f'{part}.{run.student}' if run.student else part,
        sharding.abstract(shapes, mesh), run.step))
  platform = mesh_lib.platform(mesh_lib.make(devices=mesh_lib.one_device()))
  config = recipe_lib.still(
      recipe_lib.resolve_model(settings.model, platform))
  heads = {'dino_head': settings.dino.head, 'ibot_head': settings.ibot.head}
  return reading.Weights(
      config, params['backbone'], {}, 'dinojax',
      {name: reading.Head(heads[name], part)
       for name, part in params.items() if name in heads},
      mean=settings.augment.mean, std=settings.augment.std)


def _student(settings: settings_lib.Settings, name: str,
             workdir: str) -> settings_lib.Settings:
  if name in settings.each:
    return settings.each[name]
  raise errors.UserError(
      f'{workdir} has no student {name!r}: give one of '
      + ', '.join(f'{workdir}/{known}' for known in settings.each)
      if settings.students else
      f'{workdir} is a run of one student: give it without /{name}')


@dataclasses.dataclass(frozen=True)
class Teacher:
  """A network that is distilled, as read."""

  config: network.NetworkConfig
  params: tree.Tree


def check_colours(weights: reading.Weights, settings: settings_lib.Settings,
                  source: str):
  """Whether weights see images normalised as they were trained.

  Raises:
    UserError: they do not, with the values to set.
  """
  a = settings.augment
  if not all(np.allclose(*pair, atol=1e-3) for pair in (
      (a.mean, weights.mean), (a.std, weights.std))):
    raise errors.UserError(
        f'augment.mean={a.mean}, augment.std={a.std}, but {source} was '
        f'trained with {tuple(weights.mean)} and {tuple(weights.std)}: set '
        'these')


def read_frozen_teacher(settings: settings_lib.Settings) -> Teacher | None:
  """What distillation.source names; None: the EMA teaches.

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
    found = read(d.source)
  except errors.UserError as error:
    raise errors.UserError(
        f'distillation.source={d.source}: {error}') from error
  check_colours(found, settings, f'distillation.source={d.source}')
  head = lambda name: (
      found.heads[name].config if name in found.heads else None)
  config = network.NetworkConfig(
      found.config, head('dino_head'), head('ibot_head'))
  if d.model is not None:
    distilled.check(
        distilled.from_settings(settings), config, settings, d.source)
  params = {'backbone': found.params} | {
      name: one.params for name, one in found.heads.items()}
  return Teacher(config, params)
