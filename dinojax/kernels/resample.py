"""Resampling of grids, equal to PyTorch's, as two constant matrices."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np


@functools.cache
def cubic_matrix(num_in: int, num_out: int, scale: float | None = None,
                 antialias: bool = False) -> np.ndarray:
  """The [num_out, num_in] matrix of a one-dimensional cubic resize.

  Args:
    num_in: source points.
    num_out: target points.
    scale: target points per source point used for the coordinates; None takes
      num_out / num_in. DINOv2 passes (num_out + 0.1) / num_in.
    antialias: False: 4 taps with a = -0.75 and replicated borders. True: a
      = -0.5, support widened when shrinking, weights renormalised inside.

  Source: torch.nn.functional.interpolate(mode='bicubic').
  """
  step = num_in / num_out if scale is None else 1.0 / scale
  centers = (np.arange(num_out) + 0.5) * step - 0.5
  stretch = max(step, 1.0) if antialias else 1.0
  a = -0.5 if antialias else -0.75
  reach = int(np.ceil(2 * stretch)) + 1
  taps = np.floor(centers)[:, None] + np.arange(-reach, reach + 1)[None]
  weights = _cubic((taps - centers[:, None]) / stretch, a)
  inside = (taps >= 0) & (taps < num_in)
  if antialias:
    weights = np.where(inside, weights, 0.0)
    weights /= weights.sum(1, keepdims=True)
  matrix = np.zeros((num_out, num_in))
  columns = np.clip(taps, 0, num_in - 1).astype(int)
  np.add.at(matrix, (np.arange(num_out)[:, None], columns), weights)
  return matrix.astype(np.float32)


def _cubic(t: np.ndarray, a: float) -> np.ndarray:
  """Keys' cubic convolution kernel."""
  t = np.abs(t)
  near = ((a + 2) * t - (a + 3)) * t * t + 1
  far = a * (((t - 5) * t + 8) * t - 4)
  return np.where(t < 1, near, np.where(t < 2, far, 0.0))


@functools.cache
def linear_matrix(num_in: int, num_out: int, scale: float | None = None,
                  start: float = 0.0) -> np.ndarray:
  """The [num_out, num_in] matrix of a one-dimensional linear resize.

  Args:
    num_in: source points.
    num_out: target points.
    scale: see `cubic_matrix`.
    start: edge of the first target point, in source points.

  Source: torch.nn.functional.interpolate(mode='bilinear'), its corners not
    aligned, without antialias.
  """
  step = num_in / num_out if scale is None else 1.0 / scale
  centers = np.maximum(
      start + (np.arange(num_out) + 0.5) * step - 0.5, 0.0)
  first = np.minimum(np.floor(centers).astype(int), num_in - 1)
  second = np.minimum(first + 1, num_in - 1)
  rows, matrix = np.arange(num_out), np.zeros((num_out, num_in))
  np.add.at(matrix, (rows, first), 1.0 - (centers - first))
  np.add.at(matrix, (rows, second), centers - first)
  return matrix.astype(np.float32)


@functools.cache
def corner_matrix(num_in: int, num_out: int) -> np.ndarray:
  """The [num_out, num_in] matrix of a linear resize of aligned corners.

  The first and the last points of both grids lie on each other.

  Source: torch.nn.functional.interpolate(mode='bilinear',
    align_corners=True).
  """
  places = np.arange(num_out) * ((num_in - 1) / max(num_out - 1, 1))
  first = np.minimum(np.floor(places).astype(int), max(num_in - 2, 0))
  second = np.minimum(first + 1, num_in - 1)
  rows, matrix = np.arange(num_out), np.zeros((num_out, num_in))
  np.add.at(matrix, (rows, first), 1.0 - (places - first))
  np.add.at(matrix, (rows, second), places - first)
  return matrix.astype(np.float32)


def resize(grid: jax.Array, size: tuple[int, int],
           scale: tuple[float, float] | None = None,
           antialias: bool = False) -> jax.Array:
  """Resizes [..., y, x, c] to `size` rows and columns, in float32.

  Args:
    grid: values on a grid.
    size: (rows, columns) of the result.
    scale: per axis, see `cubic_matrix`; None follows from the sizes.
    antialias: see `cubic_matrix`.

  Returns:
    [..., size[0], size[1], c] float32.
  """
  scale = scale or (None, None)
  return by_matrices(grid, *(
      cubic_matrix(n, size[i], scale[i], antialias)
      for i, n in enumerate(grid.shape[-3:-1])))


def resize_linear(grid: jax.Array, size: tuple[int, int],
                  scale: tuple[float, float] | None = None) -> jax.Array:
  """`resize` by linear interpolation."""
  scale = scale or (None, None)
  return by_matrices(grid, *(
      linear_matrix(n, size[i], scale[i])
      for i, n in enumerate(grid.shape[-3:-1])))


def resize_corners(grid: jax.Array, size: tuple[int, int]) -> jax.Array:
  """[..., y, x, c] resized linearly, corners on corners, in float32."""
  return by_matrices(grid, *(
      corner_matrix(n, size[i]) for i, n in enumerate(grid.shape[-3:-1])))


def resize_tokens(tokens: jax.Array, grid: tuple[int, int], *,
                  antialias: bool = False) -> jax.Array:
  """Tokens [r, n·n, d] of a square grid on another, [r, rows·columns, d]."""
  side = math.isqrt(tokens.shape[1])
  if side * side != tokens.shape[1]:
    raise ValueError(f'{tokens.shape[1]} tokens are not a square grid')
  out = resize(tokens.reshape(-1, side, side, tokens.shape[-1]), grid,
               antialias=antialias)
  return out.reshape(tokens.shape[0], -1, tokens.shape[-1])


def by_matrices(grid: jax.Array, rows: jax.Array | np.ndarray,
                columns: jax.Array | np.ndarray) -> jax.Array:
  """[..., o, p, c] of [..., y, x, c] by [o, y] and [p, x], in float32."""
  return jnp.einsum(
      'oy,px,...yxc->...opc', rows, columns, grid.astype(jnp.float32),
      precision=jax.lax.Precision.HIGHEST)


def corners(size: tuple[int, int], points: jax.Array, axis: int = -1
            ) -> tuple[jax.Array, jax.Array]:
  """Pixels around points of a grid, and their shares in a linear value there.

  Args:
    size: rows and columns of the grid.
    points: [..., 2] (x, y) in parts of the grid.
    axis: where the four stand; 0 leaves points beside each other in memory.

  Returns:
    [..., 4] places in the flat grid, and [..., 4] shares, 0 of those outside.

  Source: torch's grid_sample, its corners not aligned; on a pixel's centre its
    slope is that to the right.
  """
  height, width = size
  x, y = points[..., 0] * width - 0.5, points[..., 1] * height - 0.5
  left, top = jnp.floor(x), jnp.floor(y)
  beside, below = x - left, y - top
  places, shares = [], []
  for dy in (0, 1):
    for dx in (0, 1):
      column, row = left + dx, top + dy
      share = (beside if dx else 1 - beside) * (below if dy else 1 - below)
      inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
      column, row = (jnp.clip(n, 0, most - 1).astype(jnp.int32)
                     for n, most in ((column, width), (row, height)))
      places.append(row * width + column)
      shares.append(jnp.where(inside, share, 0.0))
  return jnp.stack(places, axis), jnp.stack(shares, axis)
