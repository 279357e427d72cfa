"""Batches of pretraining: their shapes, and what the step gets of them."""

import jax
import jax.numpy as jnp

from dinojax.data import masking
from dinojax.parallel import mesh as mesh_lib
from dinojax.train import settings as settings_lib


def abstract(settings: settings_lib.Settings,
                   mesh: jax.sharding.Mesh) -> dict:
  """Shapes of a global batch, as the pipeline makes it, without labels."""
  s, b = settings, settings.train.batch_size
  place = jax.NamedSharding(mesh, mesh_lib.ROWS)
  array = lambda dtype, *shape: jax.ShapeDtypeStruct(
      shape, dtype, sharding=place)
  channels = s.model.num_channels
  crop = lambda views, px: array(jnp.uint8, b, views, px, px, channels)
  out = {'global': crop(s.crops.num_global, s.crops.global_px),
         'row': array(jnp.int32, b), 'bad': array(jnp.bool_, b)}
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
