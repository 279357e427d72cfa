"""Random draws of a student in a step: kept rows and RoPE factors.

Everything is drawn per group of images, the unit that a process's batch was
to the references, so the result does not depend on the mesh. Leading axis g,
then l (layers).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.models import families
from dinojax.models import vit
from dinojax.models import vit_config

Draws = dict[str, dict]


def draw(key: jax.Array, config: families.Config, *,
         num_groups: int, rows: dict[str, int]) -> Draws:
  """Draws for one step, by crop kind.

  Args:
    key: PRNG key of the step.
    config: rates and ranges.
    num_groups: g.
    rows: rows of one group by crop kind.

  Returns:
    {kind: {'attn', 'ffn': [g, l, k] int32 kept rows, 'rope': {'shift',
    'log_jitter': [g, l, 2], 'log_rescale': [g, l]}}}; absent when off.
  """
  if not isinstance(config, vit.ViTConfig):
    return {}
  out = {}
  for i, (kind, count) in enumerate(rows.items()):
    kind_key = jax.random.fold_in(key, i)
    out[kind] = _kept(kind_key, config, num_groups, count)
    rope = _rope(jax.random.fold_in(kind_key, 2), config, num_groups)
    if rope:
      out[kind]['rope'] = rope
  return {kind: drawn for kind, drawn in out.items() if drawn}


def _kept(key, config: vit.ViTConfig, num_groups: int, rows: int) -> dict:
  if not config.drop_path_rate:
    return {}
  shape = (num_groups, config.depth, rows)
  out = {}
  for i, branch in enumerate(('attn', 'ffn')):
    order = jax.random.uniform(jax.random.fold_in(key, i), shape)
    if config.drop_path_uniform:
      keep = vit_config.num_kept(rows, config.drop_path_rate)
      out[branch] = jax.lax.top_k(order, keep)[1]
    else:
      # Every layer keeps another number of rows: a factor per row instead of
      # a subset, since a scan has one shape for all layers.
      rates = np.linspace(0, config.drop_path_rate, config.depth)
      keep = jnp.array([vit_config.num_kept(rows, float(r)) for r in rates])
      rank = jnp.argsort(jnp.argsort(order, axis=-1), axis=-1)
      keep = keep[None, :, None]
      out[branch] = jnp.where(rank < keep, rows / keep, 0.0)
  return out


def _rope(key, config: vit.ViTConfig, num_groups: int) -> dict:
  if config.position != 'rope':
    return {}
  ranges = {
      'shift': (config.rope_shift, (2,)),
      'log_jitter': (config.rope_jitter and math.log(config.rope_jitter),
                     (2,)),
      'log_rescale': (config.rope_rescale and math.log(config.rope_rescale),
                      ())}
  return {
      name: jax.random.uniform(
          jax.random.fold_in(key, i), (num_groups, config.depth, *shape),
          minval=-limit, maxval=limit)
      for i, (name, (limit, shape)) in enumerate(ranges.items()) if limit}
