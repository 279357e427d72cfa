"""KoLeo: features spread away from their nearest neighbours."""

import jax
import jax.numpy as jnp

_EPSILON = 1e-8


def koleo(x: jax.Array, *, topk: int = 1) -> jax.Array:
  """Kozachenko-Leonenko spread loss; nats, mean over rows and neighbours.

  Args:
    x: [g, n, d] features before the head, in groups of n; normalised here.
    topk: neighbours of each row.

  Raises:
    ValueError: a group has too few rows.

  Source: Sablayrolles et al. 2018; DINOv2's KoLeoLoss and DINOv3's
    distributed one.
  Differs: float32, so that duplicates give a large but finite loss; a group
    is a number of images, whatever the devices.
  """
  return jnp.mean(koleo_per_row(x, topk=topk))


def koleo_per_row(x: jax.Array, *, topk: int = 1) -> jax.Array:
  """[g, n, topk] terms of `koleo`, one per row and neighbour."""
  n = x.shape[1]
  if n <= topk:
    raise ValueError(
        f'a KoLeo group of {n} rows has no {topk} neighbours: use larger '
        'groups (koleo.group_images)')
  x = x.astype(jnp.float32)
  norm = jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True))
  x = x / jnp.maximum(norm, _EPSILON)
  dots = jnp.einsum('gnd,gmd->gnm', x, x, precision='highest')
  dots = jnp.where(jnp.eye(n, dtype=bool)[None], -1.0, dots)
  index = jax.lax.top_k(jax.lax.stop_gradient(dots), topk)[1]  # [g, n, topk]
  nearest = jax.vmap(lambda rows, i: rows[i])(x, index)
  gap = x[:, :, None] - nearest + _EPSILON
  distance = jnp.sqrt(jnp.sum(gap * gap, axis=-1))
  return -jnp.log(distance + _EPSILON)
