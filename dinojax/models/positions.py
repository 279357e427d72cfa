"""Where a patch is: DINOv2's learned grid and DINOv3's axial RoPE."""

import math

import einops
import jax
import jax.numpy as jnp
import numpy as np

from dinojax.kernels import resample
from dinojax.kernels import rotary


def resize_learned(table: jax.Array, grid: tuple[int, int], *,
                   offset: float = 0.1, antialias: bool = False) -> jax.Array:
  """The learned table for another patch grid; the CLS entry stays.

  Args:
    table: [1 + n·n, d] entries of CLS and of a square grid.
    grid: (rows, columns) of patches wanted.
    offset: added to the target size when the scale is computed; DINOv2's 0.1
      changes values, 0.0 (its register models) does not.
    antialias: as in its register models.

  Returns:
    [1 + rows·columns, d].

  Source: DINOv2's interpolate_pos_encoding.
  """
  side = math.isqrt(table.shape[0] - 1)
  if grid == (side, side):
    return table
  scale = tuple((n + offset) / side for n in grid) if offset else None
  patches = einops.rearrange(table[1:], '(y x) d -> y x d', y=side)
  patches = resample.resize(patches, grid, scale, antialias)
  patches = einops.rearrange(
      patches, 'y x d -> (y x) d').astype(table.dtype)
  return jnp.concatenate([table[:1], patches])


def rope_periods(head_dim: int, *, base: float | None = 100.0,
                 min_period: float | None = None,
                 max_period: float | None = None,
                 dtype: str = 'float32') -> np.ndarray:
  """The head_dim/4 periods, in units of half an image side; float32.

  Args:
    head_dim: width of a head, divisible by 4.
    base: base of the periods base^(2k/(head_dim/2)), or None.
    min_period: shortest of periods spaced geometrically, or None.
    max_period: longest of periods spaced geometrically, or None.
    dtype: rounds every operation; the references trained in bfloat16.

  Raises:
    ValueError: head_dim is no multiple of 4, or both or neither of the two
      forms are given.

  Source: DINOv3's RopePositionEmbedding.
  """
  if head_dim % 4:
    raise ValueError(f'RoPE needs a head width divisible by 4, not {head_dim}')
  bounds = min_period is not None and max_period is not None
  if (base is None) != bounds:
    raise ValueError(
        f'RoPE takes either rope_base ({base}) or rope_min_period and '
        f'rope_max_period ({min_period}, {max_period}): set one of the two')
  cut = lambda x: np.asarray(x).astype(jnp.dtype(dtype)).astype(np.float32)
  count = head_dim // 4
  if base is not None:
    exponents = cut(2 * np.arange(count) / (head_dim // 2))
    return cut(np.float32(base) ** exponents)
  ratio = np.float32(max_period / min_period)
  # PyTorch's linspace: a rounded step, walked from both ends.
  step, index = cut(1 / (count - 1)), np.arange(count, dtype=np.float32)
  exponents = cut(np.where(
      index < count // 2, step * index, 1 - step * (count - 1 - index)))
  powers = cut(ratio ** exponents)
  return cut(cut(powers / ratio) * np.float32(max_period))


def rope_coordinates(grid: tuple[int, int], normalize: str = 'separate',
                     dtype: jnp.dtype = jnp.float32) -> jax.Array:
  """Patch centres [p, 2] (row, column), an image side being (-1, 1).

  Args:
    grid: (rows, columns) of patches.
    normalize: 'separate' divides each axis by its own length, 'max' and 'min'
      both by the longer or shorter.
    dtype: rounds every operation; the references trained in bfloat16.
  """
  lengths = {'separate': grid, 'max': (max(grid),) * 2, 'min': (min(grid),) * 2}
  if normalize not in lengths:
    raise ValueError(
        f'rope_normalize={normalize!r}: use separate, max or min')
  cut = rotary.rounder(dtype)
  axes = [
      cut((jnp.arange(n, dtype=jnp.float32) + 0.5)
          / np.float32(lengths[normalize][i])) for i, n in enumerate(grid)]
  points = jnp.stack(jnp.meshgrid(*axes, indexing='ij'), axis=-1)
  return cut(cut(2 * points.reshape(-1, 2)) - 1)


def rope(grid: tuple[int, int], periods: np.ndarray, *,
         normalize: str = 'separate', dtype: jnp.dtype = jnp.float32,
         draw: dict[str, jax.Array] | None = None) -> rotary.Rope:
  """Sine and cosine of every patch's angles.

  Args:
    grid: (rows, columns) of patches.
    periods: [d/4] from `rope_periods`.
    normalize: see `rope_coordinates`.
    dtype: dtype of the result, to which every operation is rounded.
    draw: training augmentation, any of 'shift' [g, 2], 'log_jitter' [g, 2],
      'log_rescale' [g], applied in this order; one per group of images.

  Returns:
    (sin, cos), each [p, d], or [g, p, d] with `draw`.

  Source: DINOv3's RopePositionEmbedding.
  """
  cut = rotary.rounder(dtype)
  points = rope_coordinates(grid, normalize, dtype)
  if draw:
    points = points[None]
    if 'shift' in draw:
      points = cut(points + cut(draw['shift'])[:, None, :])
    if 'log_jitter' in draw:
      factor = cut(jnp.exp(cut(draw['log_jitter'])))
      points = cut(points * factor[:, None, :])
    if 'log_rescale' in draw:
      factor = cut(jnp.exp(cut(draw['log_rescale'])))
      points = cut(points * factor[:, None, None])
  periods = cut(jnp.asarray(periods, jnp.float32))
  periods = periods.reshape((1,) * points.ndim + (-1,))
  angles = cut(cut(np.float32(2 * math.pi) * points[..., None]) / periods)
  angles = angles.reshape(*points.shape[:-1], -1)  # rows, then columns
  angles = jnp.concatenate([angles, angles], axis=-1)
  return jnp.sin(angles).astype(dtype), jnp.cos(angles).astype(dtype)


def sine(grid: tuple[int, int], width: int) -> np.ndarray:
  """[rows·columns, width] waves of the row, then of the column; float32.

  Source: Mask2Former's PositionEmbeddingSine.
  """
  count = width // 2
  period = 10_000 ** (2 * (np.arange(count) // 2) / count)

  def waves(size):
    place = (np.arange(size) + 1) / (size + 1e-6) * 2 * math.pi
    angle = place[:, None] / period
    return np.where(np.arange(count) % 2, np.cos(angle), np.sin(angle))

  rows, columns = map(waves, grid)
  shape = (*grid, count)
  out = np.concatenate([np.broadcast_to(rows[:, None], shape),
                        np.broadcast_to(columns[None], shape)], axis=-1)
  return out.reshape(-1, 2 * count).astype(np.float32)


def sine_within(cells: jax.Array, grid: tuple[int, int], width: int, *,
                normalize: bool = True) -> jax.Array:
  """[b, y, x, width] waves like `sine`, of images that end within the grid.

  Args:
    cells: [b, 2] rows and columns of the grid that are image; beyond is 0.
    grid: rows and columns.
    width: width of the result.
    normalize: False: waves are of the number of the cell, not of its part of
      the image.

  Source: DINOv3's detector, whose cells lie half a cell before those of `sine`.
  """
  count = width // 2
  period = jnp.asarray(
      10_000 ** (2 * (np.arange(count) // 2) / count), jnp.float32)
  even = jnp.asarray(np.arange(count) % 2 == 0)
  waves, inside = [], []
  for axis, size in enumerate(grid):
    length = cells[:, axis, None].astype(jnp.float32)
    index = jnp.arange(size, dtype=jnp.float32)[None]
    place = (index + 0.5) * 2 * math.pi
    if normalize:
      place = (index + 0.5) / (length + 1e-6) * 2 * math.pi
    place = jnp.broadcast_to(place, (len(cells), size))
    angle = place[..., None] / period[None, None]
    waves.append(jnp.where(
        even[None, None], jnp.sin(angle), jnp.cos(angle)))
    inside.append(index < length)
  shape = (len(cells), *grid, count)
  out = jnp.concatenate([
      jnp.broadcast_to(waves[0][:, :, None], shape),
      jnp.broadcast_to(waves[1][:, None], shape)], axis=-1)
  return jnp.where((inside[0][:, :, None] & inside[1][:, None])[..., None],
                   out, 0.0)
