"""Multi-scale deformable attention: a query reads a few points of each map.

Maps of all levels are rows [b, m, d], a level after the other, each row by
row. Points are (x, y) in parts of a map. Everything is float32: in bfloat16 a
pixel of a wide map is lost.

Source: Deformable DETR, in the form of Mask2Former and of DINOv3's adapter.
"""

from collections.abc import Sequence
import dataclasses
import functools
import math

from einops import rearrange
import jax
import jax.numpy as jnp
import numpy as np

from dinojax.core import tree
from dinojax.kernels import resample
from dinojax.models.dense import parts
from dinojax.parallel import sharding

Array = jax.Array
Sizes = Sequence[tuple[int, int]]  # rows and columns of every level


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes of an attention.

  Attributes:
    width: width of queries, and of rows of the maps.
    num_heads: heads.
    num_levels: maps that are read.
    num_points: points of a head in each map.
    values: width of the values of all heads; None: as the queries.
  """

  width: int
  num_heads: int
  num_levels: int = 1
  num_points: int = 4
  values: int | None = None

  @property
  def inner(self) -> int:
    """Width of the values of all heads."""
    return self.values or self.width

  def __post_init__(self):
    """Checks that heads are of one width.

    Raises:
      ValueError: they are not.
    """
    if self.inner % self.num_heads:
      raise ValueError(f'values of width {self.inner} have no '
                       f'{self.num_heads} heads: give a divisor of it')


def init(key: Array, config: Config) -> tree.Tree:
  """Parameters: points on a star around the reference, all weights alike.

  Source: Deformable DETR.
  """
  c, keys = config, jax.random.split(key)
  points = c.num_heads * c.num_levels * c.num_points
  still = lambda bias: {'kernel': jnp.zeros((c.width, len(bias))),
                        'bias': jnp.asarray(bias)}
  return {'offsets': still(star(c)), 'weights': still(np.zeros(
              points, np.float32)),
          'value': parts.xavier(keys[0], (c.width, c.inner)),
          'output': parts.xavier(keys[1], (c.inner, c.width))}


def star(config: Config) -> np.ndarray:
  """[h·l·p·2] first offsets: a direction a head, a distance a point."""
  angles = 2 * math.pi * np.arange(config.num_heads) / config.num_heads
  directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
  directions /= np.abs(directions).max(1, keepdims=True)
  steps = np.arange(1, config.num_points + 1)
  out = directions[:, None, None] * steps[None, None, :, None]
  return np.broadcast_to(out, (
      config.num_heads, config.num_levels, config.num_points, 2)).astype(
          np.float32).ravel()


def apply(params: tree.Tree, config: Config, queries: Array,
          references: Array | np.ndarray, maps: Array, sizes: Sizes,
          padding: Array | None = None) -> Array:
  """[b, n, d] read for every query.

  Args:
    params: see `init`.
    config: sizes.
    queries: [b, n, d].
    references: [b or 1, n, l, 2] points; or [..., 4] boxes, centre and sides,
      in parts of the map.
    maps: [b, m, d] of all levels.
    sizes: rows and columns of every level.
    padding: [b, m] True where a map is none, which counts as 0.
  """
  c = config
  values = parts.linear(params['value'], maps.astype(jnp.float32))
  if padding is not None:
    values = jnp.where(padding[..., None], 0.0, values)
  queries = queries.astype(jnp.float32)
  weights = jax.nn.softmax(rearrange(
      parts.linear(params['weights'], queries), 'b n (h r) -> b n h r',
      h=c.num_heads), axis=-1)
  offsets = rearrange(
      parts.linear(params['offsets'], queries),
      'b n (h l r c) -> b n h l r c', h=c.num_heads, l=c.num_levels, c=2)
  # A reshape that adds an axis of one forgets where a single row lies.
  rows = sharding.as_rows_of((
      parts.heads(values, c.num_heads), _placed(c, offsets, references, sizes),
      rearrange(weights, 'b n h (l r) -> b n h l r', l=c.num_levels)), queries)
  read = sharding.by_rows(functools.partial(attend, sizes=tuple(sizes)), *rows)
  return parts.linear(params['output'], read)


def _placed(config: Config, offsets: Array, references: Array | np.ndarray,
            sizes: Sizes) -> Array:
  """[b, n, h, l, r, 2] points of offsets from references."""
  at = references[:, :, None, :, None]
  if references.shape[-1] == 4:
    return at[..., :2] + offsets * (at[..., 2:] * (0.5 / config.num_points))
  pixels = np.array([size[::-1] for size in sizes], np.float32)
  return at + offsets / pixels[None, None, None, :, None]


def attend(values: Array, points: Array, weights: Array, *,
           sizes: Sizes) -> Array:
  """[b, n, h·d] sums of linear values at points, 0 outside, by weights.

  Args:
    values: [b, m, h, d].
    points: [b, n, h, l, r, 2].
    weights: [b, n, h, l, r].
    sizes: rows and columns of every level.
  """
  places, shares, start = [], [], 0
  for i, size in enumerate(sizes):
    place, share = resample.corners(size, points[:, :, :, i])
    places.append(start + place)
    shares.append(share * weights[:, :, :, i, :, None])
    start += size[0] * size[1]
  # A row for every image, place and head; all that a query reads is a list.
  b, m, h, d = values.shape
  place, share = (jnp.stack(x, axis=3).reshape(b, -1, h, x[0].shape[3] * len(
      x) * 4) for x in (places, shares))
  image, head = np.arange(b)[:, None, None, None], np.arange(h)[None, None]
  rows = (image * m + place) * h + head[..., None]
  out = mixed(values.reshape(-1, d), rows.reshape(-1, rows.shape[-1]),
              share.reshape(-1, share.shape[-1]))
  return out.reshape(b, -1, h * d)


@jax.custom_vjp
def mixed(values: Array, rows: Array, shares: Array) -> Array:
  """[n, d] sums of rows of values [m, d], which are listed [n, r], by shares.

  An entry of the lists after the other: neither the rows that are read nor
  their gradients are ever there at once.
  """
  def add(total, entry):
    row, share = entry
    return total + values[row] * share[:, None], None

  start = jnp.zeros_like(values[rows[:, 0]])
  return jax.lax.scan(add, start, (rows.T, shares.T))[0]


def _forward(values, rows, shares):
  return mixed(values, rows, shares), (values, rows, shares)


def _backward(saved, cotangent):
  values, rows, shares = saved

  def add(total, entry):
    row, share = entry
    total = total.at[row].add(cotangent * share[:, None])
    return total, jnp.sum(values[row] * cotangent, axis=-1)

  of_values, of_shares = jax.lax.scan(
      add, jnp.zeros_like(values), (rows.T, shares.T))
  return of_values, None, of_shares.T


mixed.defvjp(_forward, _backward)


def centers(sizes: Sizes) -> np.ndarray:
  """[m, 2] centres of the pixels of every level."""
  out = []
  for height, width in sizes:
    y, x = ((np.arange(n) + 0.5) / n for n in (height, width))
    out.append(np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2))
  return np.concatenate(out).astype(np.float32)


def joined(maps: Sequence[Array]) -> Array:
  """[b, m, d] rows of maps [b, y, x, d], a level after the other."""
  rows = [rearrange(x, 'b y x d -> b (y x) d') for x in maps]
  return rows[0] if len(rows) == 1 else jnp.concatenate(rows, axis=1)


def split(rows: Array, sizes: Sizes) -> list[Array]:
  """The inverse of `joined`."""
  out, start = [], 0
  for height, width in sizes:
    out.append(rearrange(rows[:, start:start + height * width],
                         'b (y x) d -> b y x d', y=height))
    start += height * width
  return out
