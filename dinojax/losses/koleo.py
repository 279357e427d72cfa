"""KoLeo: features spread away from their nearest neighbours."""

import jax
import jax.numpy as jnp

from dinojax.losses import unit

_EPSILON = 1e-8
# Unit vectors of float32 are this far apart by rounding alone. The gradient
# grows as 1/distance: that of a duplicate would be 1e7 in a direction without
# meaning, and clipping by norm would leave nothing of the other losses.
SAME = 1e-6


def koleo(x: jax.Array, *, topk: int = 1) -> jax.Array:
  """Kozachenko-Leonenko spread loss; nats, mean over rows and neighbours.

  Args:
    x: [g, n, d] features before the head, in groups of n; normalised here.
    topk: neighbours of each row.

  Raises:
    ValueError: a group has too few rows.

  Source: Sablayrolles et al. 2018; DINOv2's KoLeoLoss and DINOv3's
    distributed one.
  Differs: float32, where they compute in float16 and bfloat16: duplicates
    give a large but finite loss. Rows closer than `SAME` keep no gradient,
    where the references' is 1/distance in a direction made of rounding; see
    `duplicates`. A group is a number of images, whatever the devices.
  """
  return jnp.mean(koleo_per_row(x, topk=topk))


def koleo_per_row(x: jax.Array, *, topk: int = 1) -> jax.Array:
  """[g, n, topk] terms of `koleo`, one per row and neighbour.

  Their mean over the rows of one rank is that rank's loss in DINOv3.
  """
  n = x.shape[1]
  if n <= topk:
    raise ValueError(
        f'a KoLeo group of {n} rows has no {topk} neighbours: use larger '
        'groups (koleo.group_images)')
  gap, same = _gaps(x, topk)
  gap = jnp.where(same, jax.lax.stop_gradient(gap), gap)
  # On every component, as torch's PairwiseDistance does: never a root of 0.
  distance = jnp.sqrt(jnp.sum((gap + _EPSILON) ** 2, axis=-1))
  return -jnp.log(distance + _EPSILON)


def duplicates(x: jax.Array) -> jax.Array:
  """How many rows of [g, n, d] are closer than `SAME` to their nearest one.

  They take no part in the gradient: a step of many is a collapse.
  """
  _, same = _gaps(x, 1)
  return jnp.sum(same, dtype=jnp.float32)


def _gaps(x: jax.Array, topk: int) -> tuple[jax.Array, jax.Array]:
  """Unit rows minus their neighbours, and whether they are the same.

  [g, n, topk, d] and [g, n, topk, 1] of [g, n, d].
  """
  x = unit.normalize(x, _EPSILON)
  nearest = jax.vmap(lambda rows, i: rows[i])(x, neighbours(x, topk))
  gap = x[:, :, None] - nearest
  return gap, jnp.sum(gap * gap, axis=-1, keepdims=True) < SAME**2


def neighbours(x: jax.Array, topk: int) -> jax.Array:
  """Indices [g, n, topk] of the largest dot products of [g, n, d]."""
  x = jax.lax.stop_gradient(x)
  dots = jnp.einsum('gnd,gmd->gnm', x, x, precision=jax.lax.Precision.HIGHEST)
  columns = jnp.arange(x.shape[1])[None, None]
  without = lambda dots, i: jnp.where(columns == i, -jnp.inf, dots)
  dots = without(dots, jnp.arange(x.shape[1])[None, :, None])
  indices = []
  # Not lax.top_k: on a mesh it gathers the products of all groups.
  for _ in range(topk):
    indices.append(jnp.argmax(dots, axis=-1))
    dots = without(dots, indices[-1][..., None])
  return jnp.stack(indices, axis=-1)
