"""Losses of cameras, depths and points of scenes, and what they are told.

Cameras are world-to-camera, x to the right, y down, z ahead; a camera is nine
numbers: translation, quaternion (x, y, z, w with w ≥ 0), and the vertical and
horizontal field of view in radians, its centre in the middle of the image.

Source: VGGT (arXiv 2503.11651).
Differs: a scene's largest errors are left out by its own quantile, not by that
  of all scenes of a device.
"""

import dataclasses

import jax
import jax.numpy as jnp

from dinojax.parallel import sharding

Array = jax.Array
WEIGHTS = {'camera': 5.0, 'depth': 1.0, 'points': 1.0}
PARTS = ((0, 3, 1.0), (3, 7, 1.0), (7, 9, 0.5))  # of a camera, with weights
ROUND_DECAY, FAR = 0.6, 100.0
CONFIDENCE, QUANTILE, LEAST = 0.2, 0.98, 1000
DEPTH_STRIDES, POINT_STRIDES = (1, 2, 4, 8), (1, 2, 4)
_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class Truth:
  """Scenes in the coordinates of their first frames, their points one away.

  Attributes:
    cameras: [b, s, 9].
    depth: [b, s, y, x], 0 where unknown.
    points: [b, s, y, x, 3].
    valid: [b, s, y, x] bool.
  """

  cameras: Array
  depth: Array
  points: Array
  valid: Array


jax.tree_util.register_dataclass(
    Truth, data_fields=('cameras', 'depth', 'points', 'valid'),
    meta_fields=())


def truth(depth: Array, extrinsics: Array, intrinsics: Array) -> Truth:
  """Scenes as losses see them.

  Args:
    depth: [b, s, y, x] metres along z, 0 where unknown.
    extrinsics: [b, s, 3, 4] world-to-camera.
    intrinsics: [b, s, 3, 3], in pixels.
  """
  size = depth.shape[-2:]
  turn, shift = extrinsics[..., :3], extrinsics[..., 3]
  first = turn[:, :1], shift[:, :1]
  # Of x' = R x + t with x the first camera's: R R₀ᵀ and t − R R₀ᵀ t₀.
  relative = jnp.einsum('bsij,bskj->bsik', turn, jnp.broadcast_to(
      first[0], turn.shape), precision='highest')
  moved = shift - jnp.einsum('bsij,bsj->bsi', relative, jnp.broadcast_to(
      first[1], shift.shape), precision='highest')
  points = unprojected(depth, relative, moved, intrinsics)
  valid = depth > 0
  away = jnp.where(valid, jnp.linalg.norm(points, axis=-1), 0.0)
  scale = away.sum((1, 2, 3)) / jnp.maximum(valid.sum((1, 2, 3)), 1)
  scale = jnp.where(scale > _EPSILON, scale, 1.0)
  by = lambda x: x / scale.reshape(-1, *[1] * (x.ndim - 1))
  focal = jnp.stack([intrinsics[..., 1, 1], intrinsics[..., 0, 0]], axis=-1)
  half = jnp.array(size, jnp.float32)[None, None] / 2
  views = 2 * jnp.arctan(half / focal)
  cameras = jnp.concatenate(
      [by(moved), quaternions(relative), views], axis=-1)
  return Truth(cameras, by(depth), jnp.where(
      valid[..., None], by(points), 0.0), valid)


def unprojected(depth: Array, turn: Array, shift: Array,
                intrinsics: Array) -> Array:
  """[b, s, y, x, 3] points of pixels, in the world of the cameras.

  Args:
    depth: [b, s, y, x] along z.
    turn: [b, s, 3, 3] world-to-camera.
    shift: [b, s, 3].
    intrinsics: [b, s, 3, 3].
  """
  rows, columns = depth.shape[-2:]
  value = lambda i, j: intrinsics[..., i, j][..., None, None]
  x = (jnp.arange(columns, dtype=jnp.float32)[None, None, None]
       - value(0, 2)) / value(0, 0)
  y = (jnp.arange(rows, dtype=jnp.float32)[None, None, :, None]
       - value(1, 2)) / value(1, 1)
  seen = jnp.stack([x * depth, y * depth, depth], axis=-1)
  return jnp.einsum('bsji,bsyxj->bsyxi', turn, seen - shift[
      :, :, None, None], precision='highest')


def quaternions(turn: Array) -> Array:
  """[..., 4] (x, y, z, w), w ≥ 0, of rotations [..., 3, 3].

  The largest of the four numbers is found first: a division by it is safe.
  """
  m = lambda i, j: turn[..., i, j]
  squares = jnp.stack([
      1 + m(0, 0) - m(1, 1) - m(2, 2), 1 - m(0, 0) + m(1, 1) - m(2, 2),
      1 - m(0, 0) - m(1, 1) + m(2, 2), 1 + m(0, 0) + m(1, 1) + m(2, 2)], -1)
  rows = jnp.stack([
      jnp.stack([squares[..., 0], m(0, 1) + m(1, 0), m(0, 2) + m(2, 0),
                 m(2, 1) - m(1, 2)], -1),
      jnp.stack([m(0, 1) + m(1, 0), squares[..., 1], m(1, 2) + m(2, 1),
                 m(0, 2) - m(2, 0)], -1),
      jnp.stack([m(0, 2) + m(2, 0), m(1, 2) + m(2, 1), squares[..., 2],
                 m(1, 0) - m(0, 1)], -1),
      jnp.stack([m(2, 1) - m(1, 2), m(0, 2) - m(2, 0), m(1, 0) - m(0, 1),
                 squares[..., 3]], -1)], axis=-2)
  best = jax.nn.one_hot(squares.argmax(-1), 4)
  row = jnp.sum(rows * best[..., None], axis=-2)
  out = row / jnp.linalg.norm(row, axis=-1, keepdims=True)
  return jnp.where(out[..., 3:] < 0, -out, out)


def rotations(quaternion: Array) -> Array:
  """[..., 3, 3] of quaternions [..., 4] of any length above 0."""
  length = jnp.linalg.norm(quaternion, axis=-1, keepdims=True)
  x, y, z, w = jnp.moveaxis(
      quaternion / jnp.maximum(length, _EPSILON), -1, 0)
  rows = ((1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
          (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
          (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)))
  return jnp.stack([jnp.stack(row, -1) for row in rows], axis=-2)


def cameras(rounds: Array, target: Array, weight: Array) -> Array:
  """Mean absolute error of the parts of cameras, later rounds weighing more.

  Args:
    rounds: [k, b, s, 9] of every round.
    target: [b, s, 9].
    weight: [b], 0 for scenes that do not count.
  """
  error = jnp.abs(rounds - target[None])
  # The error of a shift is cut off; nothing else is that large.
  total = sum(share * jnp.minimum(error[..., start:end], FAR).mean((-2, -1))
              for start, end, share in PARTS)
  of_round = jnp.sum(total * weight[None], axis=1)
  factors = ROUND_DECAY ** jnp.arange(len(rounds) - 1, -1, -1)
  return jnp.mean(factors * of_round) / jnp.maximum(weight.sum(), 1)


def confident(predicted: Array, confidence: Array, target: Array,
              valid: Array, *, are_points: bool) -> Array:
  """Error of depths or points, alone and by their confidence, and of slopes.

  Args:
    predicted: [b, s, y, x, k].
    confidence: [b, s, y, x] from 1.
    target: [b, s, y, x, k].
    valid: [b, s, y, x] bool.
    are_points: True compares normals, not slopes.
  """
  error = jnp.linalg.norm(predicted - target, axis=-1) if (
      predicted.shape[-1] > 1) else jnp.abs(predicted - target)[..., 0]
  kept = sharding.by_rows(
      jax.vmap(_without_largest), jax.lax.stop_gradient(error), valid,
      differentiable=False)
  count = jnp.maximum(kept.sum(), 1)
  mean = lambda x: jnp.where(kept, jnp.minimum(x, FAR), 0.0).sum() / count
  alone = mean(error)
  weighed = mean(error * confidence - CONFIDENCE * jnp.log(confidence))
  slopes = _normals if are_points else _slopes
  return alone + weighed + slopes(predicted, target, valid)


def _without_largest(error: Array, valid: Array) -> Array:
  """[s, y, x] bool: pixels of a scene below a quantile of its errors."""
  some = jnp.where(valid, error, jnp.nan)
  limit = jnp.nanquantile(some, QUANTILE)
  many = valid.sum() * QUANTILE > LEAST
  return valid & (~many | (error <= limit))


def _slopes(predicted: Array, target: Array, valid: Array) -> Array:
  """Mean over strides of differences of the error beside each other."""
  error = jnp.where(valid[..., None], predicted - target, 0.0)[..., 0]
  total = 0.0
  for stride in DEPTH_STRIDES:
    e, v = (x[..., ::stride, ::stride] for x in (error, valid))
    each = 0.0
    for axis in (2, 3):
      if e.shape[axis] < 2:
        continue
      low, high = (lambda x, a=axis: jax.lax.slice_in_dim(
          x, 0, x.shape[a] - 1, axis=a), lambda x, a=axis: (
              jax.lax.slice_in_dim(x, 1, x.shape[a], axis=a)))
      both = low(v) & high(v)
      each += jnp.where(both, jnp.abs(high(e) - low(e)), 0.0).sum()
    total += each / jnp.maximum(v.sum(), 1)
  return total / len(DEPTH_STRIDES)


def _normals(predicted: Array, target: Array, valid: Array) -> Array:
  """Mean over strides of one less the cosine between normals."""
  total = 0.0
  for stride in POINT_STRIDES:
    some = lambda x, n=stride: x[:, :, ::n, ::n]
    ours, theirs, known = some(predicted), some(target), some(valid)
    if min(known.shape[2:]) < 3:
      continue
    (a, seen), (b, _) = (_normals_of(x, known) for x in (ours, theirs))
    cosine = jnp.sum(a * b, axis=-1)
    total += jnp.where(seen, 1 - cosine, 0.0).sum() / jnp.maximum(
        seen.sum(), 1)
  return total / len(POINT_STRIDES)


def _normals_of(points: Array, valid: Array) -> tuple[Array, Array]:
  """[4, b, s, y, x, 3] normals of four corners of inner pixels, and which."""
  at = lambda x, dy, dx: x[:, :, 1 + dy:x.shape[2] - 1 + dy,
                           1 + dx:x.shape[3] - 1 + dx]
  around = ((-1, 0), (0, -1), (1, 0), (0, 1))
  normals, seen = [], []
  for i, first in enumerate(around):
    second = around[(i + 1) % 4]
    middle = at(points, 0, 0)
    cross = jnp.cross(at(points, *first) - middle,
                      at(points, *second) - middle)
    square = jnp.sum(cross * cross, axis=-1, keepdims=True)
    length = jnp.sqrt(jnp.where(square > 0, square, 1.0))
    normals.append(cross / jnp.maximum(length, 1e-8))
    seen.append(at(valid, 0, 0) & at(valid, *first) & at(valid, *second) & (
        square[..., 0] > 0))
  return jnp.stack(normals), jnp.stack(seen)
