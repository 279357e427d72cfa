"""The step as one compiled program: of a run, or before there is a machine."""

from collections.abc import Callable
import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.data import masking
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import sharding
from dinojax.train import recipe as recipe_lib
from dinojax.train import segments
from dinojax.train import settings as settings_lib
from dinojax.train import state as state_lib
from dinojax.train import step as step_lib


def lower(recipe: recipe_lib.Recipe, state: dict,
          rows: dict) -> jax.stages.Lowered:
  """The training step for these arrays (or their shapes), to be compiled.

  Args:
    recipe: what is trained.
    state: donated; its shardings are kept.
    rows: what `prepare` makes of a batch.
  """
  return trace(recipe, state, rows).lower()


def trace(recipe: recipe_lib.Recipe, state: dict,
          rows: dict) -> jax.stages.Traced:
  """`lower`, before that: the step as equations.

  JAX keeps what it traced of a function, and `_step_of` gives the same one for
  the same recipe: a step that was traced for its memory is lowered at once.
  """
  keep = jax.tree.map(lambda x: x.sharding, state)
  return jax.jit(_step_of(recipe_lib.Same(recipe)), donate_argnums=0,
                 out_shardings=(keep, None)).trace(state, rows)


@functools.lru_cache(maxsize=2)
def _step_of(
    same: recipe_lib.Same) -> Callable[[dict, dict], tuple[dict, dict]]:
  return functools.partial(step_lib.train_step, recipe=same.recipe)


def shapes_of(state: dict) -> dict:
  """Shapes and places of arrays, to compile for while they change."""
  return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      state)


def prepared(settings: settings_lib.Settings, batch: dict,
             mesh: jax.sharding.Mesh) -> dict:
  """Shapes of what the step gets for a batch (or its shapes)."""
  out = jax.eval_shape(
      functools.partial(recipe_lib.prepare, settings), batch, np.int32(0))
  return sharding.abstract_rows(out, mesh)


def abstract_batch(settings: settings_lib.Settings,
                   mesh: jax.sharding.Mesh) -> dict:
  """Shapes of a global batch, as the pipeline makes it."""
  s, b = settings, settings.train.batch_size
  place = jax.NamedSharding(mesh, mesh_lib.ROWS)
  array = lambda dtype, *shape: jax.ShapeDtypeStruct(
      shape, dtype, sharding=place)
  channels = s.model.num_channels
  crop = lambda views, px: array(jnp.uint8, b, views, px, px, channels)
  out = {'global': crop(s.crops.num_global, s.crops.global_px),
         'row': array(jnp.int32, b), 'label': array(jnp.int32, b),
         'bad': array(jnp.bool_, b)}
  if s.crops.num_local:
    out['local'] = crop(s.crops.num_local, s.crops.local_px)
  if s.gram_px:
    out['gram'] = crop(s.crops.num_global, s.gram_px)
  if s.chosen:
    group = s.train.group_images
    groups = b // group
    size = masking.num_masked(
        group * s.crops.num_global, s.num_patches, s.chosen,
        masking.num_groups(group, s.chosen))
    out |= {'mask': array(jnp.bool_, b, s.crops.num_global, s.num_patches),
            'mask_index': array(jnp.int32, groups, size),
            'mask_weight': array(jnp.float32, groups, size)}
  return out


def loop_batch(settings: settings_lib.Settings,
               mesh: jax.sharding.Mesh) -> dict:
  """`abstract_batch` without labels, which the loop keeps to itself."""
  return {name: x for name, x in abstract_batch(settings, mesh).items()
          if name != 'label'}


def of_config(settings: settings_lib.Settings, mesh: jax.sharding.Mesh,
              epoch_steps: int) -> tuple[recipe_lib.Recipe,
                                         jax.stages.Lowered]:
  """The step that training with these settings would run on a mesh.

  Where steps differ, the one that needs most.
  """
  with mesh_lib.activate(mesh):
    recipe = recipe_lib.build(settings, mesh, epoch_steps)
    recipe = segments.recipe_of(recipe, segments.heaviest(recipe))
    state = state_lib.abstract(recipe, mesh)
    rows = prepared(recipe.settings, loop_batch(recipe.settings, mesh), mesh)
    return recipe, lower(recipe, state, rows)


@dataclasses.dataclass(frozen=True)
class Programs:
  """The compiled programs of a segment."""

  prepare: Callable[[dict, np.int32], dict]
  step: Callable[[dict, dict], tuple[dict, dict]]


def compile_all(recipe: recipe_lib.Recipe, mesh: jax.sharding.Mesh,
                state: dict, start: int, end: int,
                say: Callable[[str], None]) -> dict[segments.Segment, Programs]:
  """Compiles all programs of steps `start` to `end` before the first of them.

  Args:
    recipe: what is trained.
    mesh: the devices.
    state: before step `start`.
    start: the step that is next.
    end: the last step.
    say: tells the user how long it took.
  """
  found = segments.between(recipe, start, end)
  platform, out = mesh_lib.platform(mesh), {}
  for segment in found:
    what = f'for {mesh.size} × {platform}' + (
        f': {segment.describe(segments.recipe_of(recipe, segment))}'
        if len(found) > 1 else '')
    say(f'compiling {what} …')
    began = time.monotonic()
    one = segments.recipe_of(recipe, segment)
    out[segment] = _compile(one, mesh, shapes_of(
        segments.enter(state, one, lambda like: like)))
    say(f'compiled in {time.monotonic() - began:.1f}s {what}')
  return out


def _compile(recipe: recipe_lib.Recipe, mesh: jax.sharding.Mesh,
             state: dict) -> Programs:
  batch = abstract_batch(recipe.settings, mesh)
  del batch['label']
  prepare = jax.jit(functools.partial(recipe_lib.prepare, recipe.settings))
  rows = prepared(recipe.settings, batch, mesh)
  step = lower(recipe, state, rows)
  return Programs(
      prepare.lower(batch, np.int32(0)).compile(),
      step.compile(mesh_lib.compiler_options(
          mesh, deterministic=recipe.settings.train.deterministic)))
