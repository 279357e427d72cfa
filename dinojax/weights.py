"""Weights of any kind: of a run, of our own files, of anybody else's."""

import dataclasses
import json

from etils import epath
import jax

from dinojax.core import errors
from dinojax.interop import reading
from dinojax.interop import store
from dinojax.parallel import mesh as mesh_lib
from dinojax.train import checkpoint
from dinojax.train import recipe as recipe_lib
from dinojax.train import settings as settings_lib
from dinojax.train import state as state_lib

CONFIG = 'config.json'  # of a run, in its workdir


def read(path: str, *, num_heads: int | None = None,
         image_px: int | None = None,
         exact_periods: bool = False) -> reading.Weights:
  """Weights of any kind.

  Args:
    path: the workdir of a run (its EMA teacher), a folder that `dinojax
      convert import` wrote, any weight file of DINOv2, DINOv3, transformers
      or timm; or, where none of these is there, 'owner/name' on the Hugging
      Face Hub.
    num_heads: for sizes that were never published.
    image_px: side that learned positions are resampled to.
    exact_periods: see `reading.read`.

  Raises:
    UserError: nothing there, or nothing that is known.
  """
  if store.is_ours(path):
    return _resampled(store.load(path), image_px)
  if is_workdir(path):
    return _resampled(read_teacher(path), image_px)
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
  return settings_lib.read(json.loads(path.read_text()))


def is_workdir(path: str) -> bool:
  """Whether a run was started there."""
  place = epath.Path(path)
  return (place / CONFIG).exists() and (
      place / checkpoint.FOLDER).exists()


def read_teacher(workdir: str) -> reading.Weights:
  """The EMA teacher of a run's last checkpoint, heads included.

  Raises:
    UserError: no run, or no checkpoint yet.
  """
  settings = read_workdir(workdir)
  mesh = mesh_lib.make(devices=mesh_lib.one_device())
  with mesh_lib.activate(mesh):
    recipe = recipe_lib.build(settings, mesh, epoch_steps=1)
    saved = checkpoint.Checkpoints(workdir)
    if saved.latest() is None:
      raise errors.UserError(f'--workdir={workdir} has no checkpoint yet')
    state = state_lib.abstract(recipe, mesh)
    part = state_lib.ema_part(state)
    params = jax.device_get(
        saved.restore_part(part, checkpoint.abstract_part(state, part)))
  config = recipe_lib.still(recipe.settings.model)
  heads = {'dino_head': settings.dino.head, 'ibot_head': settings.ibot.head}
  return reading.Weights(
      config, params['backbone'], {}, 'dinojax',
      {name: reading.Head(heads[name], part)
       for name, part in params.items() if name in heads},
      mean=settings.augment.mean, std=settings.augment.std)
