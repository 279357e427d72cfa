"""Nearest patches of another image, on the device."""

import functools

import einops
import jax
import jax.numpy as jnp

from dinojax.kernels import resample

_HIGHEST = jax.lax.Precision.HIGHEST
_ROWS = 1024  # source rows that meet all targets at a time


def unit(features: jax.Array, axis: int = -1) -> jax.Array:
  """Features of length one along an axis, float32."""
  features = jnp.asarray(features, jnp.float32)
  norm = jnp.sqrt(jnp.sum(features * features, axis, keepdims=True))
  return features / jnp.maximum(norm, 1e-12)


@functools.partial(jax.jit, static_argnames=('aligned_corners',))
def sample(grid: jax.Array, places: jax.Array,
           aligned_corners: bool = False) -> jax.Array:
  """[r, d] features at places, bilinear.

  Args:
    grid: [y, x, d].
    places: [r, 2] (x, y) in patches, 0 and the number of patches at the edges.
    aligned_corners: stretches the places so that the edges are the centres of
      the outermost patches, with zeros beyond: Probe3D's, half a patch off.
      Else patches have their values at their centres, and beyond the
      outermost centres theirs.
  """
  size = jnp.array(grid.shape[1::-1], jnp.float32)[None]
  if aligned_corners:
    at = places / size * (size - 1)
  else:
    at = jnp.clip(places - 0.5, 0, size - 1)
  low = jnp.floor(at)
  out = 0.0
  for dx in (0, 1):
    for dy in (0, 1):
      corner = low + jnp.array([dx, dy], jnp.float32)[None]
      weight = jnp.prod(1 - jnp.abs(at - corner), axis=-1, keepdims=True)
      inside = jnp.all((corner >= 0) & (corner < size), -1, keepdims=True)
      x, y = (jnp.clip(corner[:, i], 0, size[0, i] - 1).astype(int)
              for i in (0, 1))
      out += jnp.where(inside, weight, 0) * grid[y, x]
  return out


@jax.jit
def nearest(source: jax.Array, target: jax.Array,
            valid: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The best targets of every source row by their cosine.

  Args:
    source: [r, d] of length one.
    target: [p, d] of length one.
    valid: [p] bool, targets that may be chosen.

  Returns:
    [r] numbers of targets, and [r, 2] the largest two cosines.
  """
  def some(rows):
    cosines = jnp.einsum('rd,pd->rp', rows, target, precision=_HIGHEST)
    values, index = jax.lax.top_k(
        jnp.where(valid[None], cosines, -jnp.inf), 2)
    return index[:, 0], values

  count = len(source)
  if count <= _ROWS:
    return some(source)
  chunks = -(-count // _ROWS)
  padded = jnp.pad(source, ((0, chunks * _ROWS - count), (0, 0)))
  index, values = jax.lax.map(some, einops.rearrange(
      padded, '(g r) d -> g r d', g=chunks))
  return index.reshape(-1)[:count], values.reshape(-1, 2)[:count]


def ratio_weights(cosines: jax.Array) -> jax.Array:
  """[r] 1 - d1 / d2 of the nearest two distances 1 - cosine, from [r, 2].

  Source: Probe3D's ratio test.
  """
  near, second = (jnp.maximum(1 - cosines[:, i], 1e-9) for i in (0, 1))
  return 1 - near / second


@functools.partial(jax.jit, static_argnames=('size', 'num_matches'))
def dense(source: jax.Array, target: jax.Array, in_source: jax.Array,
          in_target: jax.Array, size: tuple[int, int], num_matches: int
          ) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Matches of all cells of two images, those that the ratio test likes best.

  Args:
    source: [y, x, d] features; resized to `size` by cubics, a = -0.75.
    target: [y, x, d].
    in_source: [Y, X] bool, cells that are matched.
    in_target: [Y, X] bool, cells that may be chosen.
    size: (Y, X) of the cells.
    num_matches: how many are kept.

  Returns:
    [n] numbers of source cells, [n] those of target cells, and [n] weights,
    the largest first; -inf where there are fewer.
  """
  cells = [unit(resample.resize(grid, size).reshape(-1, grid.shape[-1]))
           for grid in (source, target)]
  index, cosines = nearest(*cells, in_target.reshape(-1))
  weights = jnp.where(
      in_source.reshape(-1), ratio_weights(cosines), -jnp.inf)
  weights, kept = jax.lax.top_k(weights, num_matches)
  return kept, index[kept], weights
