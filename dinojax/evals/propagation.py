"""Labels of a video's first frame, handed on from patch to patch.

A patch takes the labels of those that it is most like, nearby in the first
frame and in the last few. Frames are compared in tiles with what is near
enough, so the work grows with the neighbourhood and not with the frame.

Source: video segmentation of DINO (v1, its DAVIS script) and of DINOv3 (its
  notebook). Their weights are the same but for the temperature; labels enter
  and leave in other ways.
"""

import dataclasses
import functools
import math

import einops
import jax
import jax.numpy as jnp
import numpy as np

from dinojax.evals import matching
from dinojax.kernels import resample

_HIGHEST = jax.lax.Precision.HIGHEST
_TILE = 16  # side of the tiles of patches that are compared at a time
_GROUP = 32  # candidates whose maximum stands for them
_LOW = -1e30  # cosine of patches that are too far, or not there yet


@dataclasses.dataclass(frozen=True)
class Rule:
  """How labels are handed on.

  Attributes:
    context: frames that labels come from, beside the first.
    radius: greatest distance of patches, in patches; None: any.
    neighborhood: 'circle' of this radius, or 'square'.
    top_k: how many of the most similar patches count, ties beside.
    temperature: divisor of cosines before the softmax.
  """

  context: int = 7
  radius: int | None = 12
  neighborhood: str = 'circle'
  top_k: int = 5
  temperature: float = 0.2


def one_hot(mask: np.ndarray, num_labels: int,
            grid: tuple[int, int]) -> np.ndarray:
  """[y, x, k] labels of patches, each that of the pixel at its centre.

  Args:
    mask: [Y, X] labels of pixels, from 0.
    num_labels: number of labels, k.
    grid: rows and columns of patches.
  """
  rows, columns = (
      np.floor((np.arange(n) + 0.5) * size / n).astype(int)
      for n, size in zip(grid, mask.shape, strict=True))
  small = mask[rows][:, columns]
  return (small[..., None] == np.arange(num_labels)).astype(np.float32)


def start(features: jax.Array, labels: jax.Array, rule: Rule) -> dict:
  """The state before the second frame.

  Args:
    features: [y, x, d] of the first frame.
    labels: [y, x, k] of it.
    rule: how many frames are remembered.

  Returns:
    Features [f, y, x, d] and labels [f, y, x, k] of the first frame and of
    places for others, and how many frames were predicted.
  """
  room = lambda x: jnp.zeros((rule.context + 1, *x.shape)).at[0].set(x)
  return {'features': room(matching.unit(features)),
          'labels': room(jnp.asarray(labels, jnp.float32)),
          'count': jnp.int32(0)}


@functools.partial(jax.jit, static_argnames=('rule',), donate_argnums=(0,))
def step(state: dict, features: jax.Array,
         rule: Rule) -> tuple[dict, jax.Array]:
  """Labels of the next frame, and the state after it.

  Args:
    state: see `start`; it is used up.
    features: [y, x, d] of the frame.
    rule: how labels are handed on.

  Returns:
    The state, and [y, x, k] shares of the labels.
  """
  features = matching.unit(features)
  grid, k = features.shape[:2], state['labels'].shape[-1]
  tile = [min(_TILE, n) for n in grid]
  reach = max(grid) if rule.radius is None else rule.radius
  window = [min(t + 2 * reach, n) for t, n in zip(tile, grid, strict=True)]
  known = jnp.arange(rule.context + 1) <= state['count']

  def at(out, number):
    """Labels of a tile; the last of a row or column is moved inside."""
    tiles = math.ceil(grid[1] / tile[1])
    corner = [jnp.minimum(n * t, size - t) for n, t, size in zip(
        (number // tiles, number % tiles), tile, grid, strict=True)]
    low = [jnp.clip(c - reach, 0, size - w) for c, size, w in zip(
        corner, grid, window, strict=True)]
    cut = lambda x, begin, size: jax.lax.dynamic_slice(
        x, (*[0] * (x.ndim - 3), *begin, 0),
        (*x.shape[:-3], *size, x.shape[-1]))
    shares = _shares(
        cut(features, corner, tile), cut(state['features'], low, window),
        cut(state['labels'], low, window), known,
        [a - b for a, b in zip(corner, low, strict=True)], rule)
    return jax.lax.dynamic_update_slice(out, shares, (*corner, 0)), None

  tiles = math.prod(
      math.ceil(n / t) for n, t in zip(grid, tile, strict=True))
  shares, _ = jax.lax.scan(at, jnp.zeros((*grid, k)), jnp.arange(tiles))
  if rule.context:
    # The oldest predicted frame gives its place.
    place = 1 + state['count'] % rule.context
    state = state | {'features': state['features'].at[place].set(features),
                     'labels': state['labels'].at[place].set(shares)}
  return state | {'count': state['count'] + 1}, shares


def _shares(target: jax.Array, source: jax.Array, labels: jax.Array,
            known: jax.Array, offset: list[jax.Array],
            rule: Rule) -> jax.Array:
  """[Y, X, k] labels of a tile of patches.

  Args:
    target: [Y, X, d] the tile.
    source: [f, y, x, d] the window of the remembered frames.
    labels: [f, y, x, k] their labels.
    known: [f] bool, places that hold a frame.
    offset: row and column of the tile in the window.
    rule: how labels are handed on.
  """
  tile, window = target.shape[:2], source.shape[1:3]
  cosines = jnp.einsum('YXd,fyxd->YXfyx', target, source, precision=_HIGHEST)
  near = known[None, None, :, None, None]
  if rule.radius is not None:
    dy, dx = (offset[i] + jnp.arange(tile[i])[:, None]
              - jnp.arange(window[i])[None] for i in (0, 1))
    dy, dx = (einops.rearrange(dy, 'Y y -> Y 1 1 y 1'),
              einops.rearrange(dx, 'X x -> 1 X 1 1 x'))
    if rule.neighborhood == 'circle':
      near &= dy * dy + dx * dx <= rule.radius**2
    else:
      near &= jnp.maximum(jnp.abs(dy), jnp.abs(dx)) <= rule.radius
  cosines = jnp.where(near, cosines, _LOW)
  flat = cosines.reshape(tile[0] * tile[1], -1)
  top = largest(flat, min(rule.top_k, flat.shape[1]))
  weights = jnp.where(
      flat >= jnp.maximum(top[:, -1:], _LOW / 2),
      jnp.exp((flat - top[:, :1]) / rule.temperature), 0)
  weights /= weights.sum(1, keepdims=True)
  out = jnp.dot(weights, labels.reshape(-1, labels.shape[-1]),
                precision=_HIGHEST)
  return out.reshape(*tile, -1)


def largest(values: jax.Array, count: int) -> jax.Array:
  """[r, count] the largest of every row [r, n], in order.

  Those of all are among the groups with the largest maxima, which is a
  selection of few and of few.
  """
  groups = values.shape[1] // _GROUP
  if groups <= count:
    return jax.lax.top_k(values, count)[0]
  split = einops.rearrange(
      values[:, :groups * _GROUP], 'r (g n) -> r g n', n=_GROUP)
  _, best = jax.lax.top_k(split.max(2), count)
  some = jnp.take_along_axis(split, best[:, :, None], axis=1)
  some = jnp.concatenate(
      [some.reshape(len(values), -1), values[:, groups * _GROUP:]], 1)
  return jax.lax.top_k(some, count)[0]


@functools.partial(jax.jit, static_argnames=('frame_size',))
def probabilities(shares: jax.Array,
                  frame_size: tuple[int, int]) -> jax.Array:
  """[Y, X, k] shares [y, x, k] of patches, at pixels, each from 0 to 1.

  A pixel has the shares of its patch; those of a label are stretched over
  the frame, and a label with one share everywhere is nowhere.

  Source: DINOv3's notebook.
  """
  rows, columns = (
      np.arange(size) * n // size
      for n, size in zip(shares.shape[:2], frame_size, strict=True))
  large = shares[rows][:, columns]
  low, high = large.min((0, 1), keepdims=True), large.max(
      (0, 1), keepdims=True)
  return jnp.where(high > low, (large - low) / jnp.where(
      high > low, high - low, 1), 0)


def hard(shares: jax.Array, frame_size: tuple[int, int]) -> jax.Array:
  """[Y, X] labels of pixels: the most probable, the first of equal ones."""
  return probabilities(shares, frame_size).argmax(-1)


@functools.partial(jax.jit, static_argnames=('frame_size', 'patch_px'))
def hard_v1(shares: jax.Array, frame_size: tuple[int, int],
            patch_px: int) -> jax.Array:
  """[Y, X] labels of pixels: enlarged linearly, stretched, the largest.

  Source: the DAVIS script of DINO, which brings labels, and not shares, to
    the size of the frame.
  """
  y, x = (n * patch_px for n in shares.shape[:2])
  large = resample.resize_linear(shares, (y, x))
  low, high = large.min((0, 1), keepdims=True), large.max(
      (0, 1), keepdims=True)
  stretched = (large - low) / jnp.where(high > low, high - low, 1)
  labels = jnp.where(high > 0, stretched, large).argmax(-1)
  rows, columns = (
      np.floor((np.arange(size) + 0.5) * n / size).astype(int)
      for n, size in zip((y, x), frame_size, strict=True))
  return labels[rows][:, columns]
