"""Batch normalisation over all pixels of the images that count.

Maps are global arrays [b, y, x, d], so that a batch is that of all devices.
"""

import jax
import jax.numpy as jnp

from dinojax.core import tree

Array = jax.Array
EPSILON = 1e-5
MOMENTUM = 0.1


def init(width: int) -> tuple[tree.Tree, tree.Tree]:
  """Parameters and statistics that change nothing."""
  return ({'scale': jnp.ones(width), 'shift': jnp.zeros(width)},
          {'mean': jnp.zeros(width), 'variance': jnp.ones(width)})


def apply(params: tree.Tree, stats: tree.Tree, maps: Array,
          weight: Array | None = None, *, momentum: float = MOMENTUM
          ) -> tuple[Array, tree.Tree]:
  """Normalised maps in float32, and the running statistics after them.

  Args:
    params: scale and shift [d].
    stats: mean and variance [d] of the batches before.
    maps: [b, y, x, d].
    weight: [b], 0 for images that are padding: the batch's own statistics
      normalise, and enter the running ones. None: inference.
    momentum: part of a batch in the running statistics.

  Source: torch.nn.BatchNorm2d: the running variance is the unbiased one.
  """
  row = lambda x: x[None, None, None]
  maps = maps.astype(jnp.float32)
  if weight is None:
    mean, variance = stats['mean'], stats['variance']
  else:
    mean, variance = moments(maps, weight)
    count = jnp.sum(weight) * maps.shape[1] * maps.shape[2]
    unbiased = variance * count / jnp.maximum(count - 1, 1)
    mix = lambda old, new: old + momentum * (new - old)
    stats = {'mean': mix(stats['mean'], mean),
             'variance': mix(stats['variance'], unbiased)}
  return (maps - row(mean)) * jax.lax.rsqrt(row(variance) + EPSILON) * row(
      params['scale']) + row(params['shift']), stats


def moments(maps: Array, weight: Array) -> tuple[Array, Array]:
  """[d] mean and variance over the pixels of the images that count."""
  weight = weight.astype(jnp.float32)[:, None, None, None]
  count = jnp.maximum(jnp.sum(weight) * maps.shape[1] * maps.shape[2], 1.0)
  mean = jnp.sum(maps * weight, axis=(0, 1, 2)) / count
  spread = jnp.square(maps - mean[None, None, None]) * weight
  return mean, jnp.sum(spread, axis=(0, 1, 2)) / count
