"""Losses of depth that is known up to a scale and a shift, an image each.

Maps are [b, y, x]: of disparity, or of whatever a network calls depth. Images
without a valid pixel weigh nothing.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

Array = jax.Array
STRIDES = (1, 2, 4, 8)
REDUCTIONS = ('batch', 'image')
_LEAST_SPREAD = 1e-6


def scale_and_shift(predicted: Array, target: Array, valid: Array
                    ) -> tuple[Array, Array]:
  """[b] scale and shift that bring a prediction closest to its target.

  Args:
    predicted: [b, y, x].
    target: [b, y, x].
    valid: [b, y, x] bool, pixels that count.

  Returns:
    Scale and shift of least squares; 0 and 0 where there is no solution.

  Source: Ranftl et al., Towards Robust Monocular Depth Estimation, 2020.
  """
  w = valid.astype(jnp.float32)
  total = lambda x: jnp.sum(w * x, axis=(1, 2))
  xx, x, n = total(predicted ** 2), total(predicted), total(1.0)
  xy, y = total(predicted * target), total(target)
  det = xx * n - x * x
  solved = det > 0
  det = jnp.where(solved, det, 1.0)
  return (jnp.where(solved, (n * xy - x * y) / det, 0.0),
          jnp.where(solved, (xx * y - x * xy) / det, 0.0))


def standardized(depth: Array, valid: Array) -> Array:
  """Maps less their median, over their mean distance from it.

  Args:
    depth: [b, y, x].
    valid: [b, y, x] bool; of an even number the lower middle value counts.

  Source: the robust affine-invariant loss of MiDaS and Depth Anything.
  """
  flat, known = (x.reshape(len(x), -1) for x in (depth, valid))
  count = jnp.sum(known, axis=1)
  middle = known & (flat == _ranked(flat, known, (count - 1) // 2))
  middle &= jnp.cumsum(middle, axis=1) == 1  # its gradient is one pixel's
  median = jnp.sum(jnp.where(middle, flat, 0.0), axis=1, keepdims=True)
  spread = jnp.sum(jnp.where(known, jnp.abs(flat - median), 0.0), axis=1
                   ) / jnp.maximum(count, 1)
  out = (flat - median) / jnp.maximum(spread, _LEAST_SPREAD)[:, None]
  return jnp.where(valid, out.reshape(depth.shape), 0.0)


def squared(predicted: Array, target: Array, valid: Array, *,
            reduction: str = 'batch') -> Array:
  """Half of the mean squared error.

  Args:
    predicted: [b, y, x], aligned.
    target: [b, y, x].
    valid: [b, y, x] bool.
    reduction: see `gradient_matching`.
  """
  error = jnp.where(valid, jnp.square(predicted - target), 0.0)
  return _reduced(error.sum((1, 2)), 2.0 * valid.sum((1, 2)), reduction)


def absolute(predicted: Array, target: Array, valid: Array) -> Array:
  """Mean absolute error of all valid pixels of the batch."""
  error = jnp.where(valid, jnp.abs(predicted - target), 0.0)
  return error.sum() / jnp.maximum(valid.sum(), 1)


def gradient_matching(predicted: Array, target: Array, valid: Array, *,
                      strides: Sequence[int] = STRIDES,
                      reduction: str = 'batch') -> Array:
  """Differences of the error between neighbours, at several scales, added.

  Args:
    predicted: [b, y, x], aligned.
    target: [b, y, x].
    valid: [b, y, x] bool; a difference needs both of its pixels.
    strides: pixels taken at each scale.
    reduction: 'batch' divides sums over the batch; 'image' is the mean of the
      ratios of images, of which those without pixels are 0.

  Source: Ranftl et al. 2020.
  """
  total = 0.0
  for stride in strides:
    some = lambda x, s=stride: x[:, ::s, ::s]
    known = some(valid)
    error = jnp.where(known, some(predicted - target), 0.0)
    steps = sum(
        jnp.sum(jnp.where(both, jnp.abs(change), 0.0), axis=(1, 2))
        for both, change in (
            (known[:, 1:] & known[:, :-1], error[:, 1:] - error[:, :-1]),
            (known[:, :, 1:] & known[:, :, :-1],
             error[:, :, 1:] - error[:, :, :-1])))
    total += _reduced(steps, known.sum((1, 2)), reduction)
  return total


def least_squares(predicted: Array, target: Array, valid: Array, *,
                  alpha: float = 0.5, strides: Sequence[int] = STRIDES,
                  reduction: str = 'batch') -> Array:
  """MiDaS's loss: squares of the aligned error, and its gradients.

  Args:
    predicted: [b, y, x].
    target: [b, y, x].
    valid: [b, y, x] bool.
    alpha: weight of the gradients.
    strides: see `gradient_matching`.
    reduction: see `gradient_matching`.
  """
  scale, shift = scale_and_shift(predicted, target, valid)
  aligned = scale[:, None, None] * predicted + shift[:, None, None]
  loss = squared(aligned, target, valid, reduction=reduction)
  return loss + alpha * gradient_matching(
      aligned, target, valid, strides=strides, reduction=reduction) if (
          alpha) else loss


def robust(predicted: Array, target: Array, valid: Array, *,
           gradient_weight: float = 2.0, ignored: float = 0.0,
           strides: Sequence[int] = STRIDES) -> Array:
  """Depth Anything's loss: absolute error of standardised maps, and gradients.

  Args:
    predicted: [b, y, x].
    target: [b, y, x].
    valid: [b, y, x] bool.
    gradient_weight: weight of the gradients.
    ignored: share of the pixels of an image, those of the largest errors, that
      count nowhere: labels of a teacher are wrong there.
    strides: see `gradient_matching`.

  Source: Yang et al., Depth Anything V2, 2024.
  """
  ours, theirs = (standardized(x, valid) for x in (predicted, target))
  if ignored:
    valid &= _within(jnp.abs(ours - theirs), valid, 1 - ignored)
  return absolute(ours, theirs, valid) + gradient_weight * gradient_matching(
      ours, theirs, valid, strides=strides)


def _within(error: Array, valid: Array, share: float) -> Array:
  """[b, y, x] bool: pixels of the smallest errors, a share of the valid."""
  flat, known = (x.reshape(len(x), -1) for x in (error, valid))
  kept = jnp.floor(share * known.sum(1)).astype(jnp.int32)
  return error <= _ranked(flat, known, kept - 1)[:, :, None]


def _ranked(x: Array, known: Array, rank: Array) -> Array:
  """[b, 1] the known value of a rank [b], without gradient, in [b, r]."""
  # A sort of several operands, as a gather, does not know rows of a mesh.
  rising = jnp.sort(jnp.where(known, jax.lax.stop_gradient(x), jnp.inf), axis=1)
  place = jnp.arange(x.shape[1])[None] == jnp.maximum(rank, 0)[:, None]
  return jnp.sum(jnp.where(place, rising, 0.0), axis=1, keepdims=True)


def _reduced(sums: Array, counts: Array, reduction: str) -> Array:
  """A loss of [b] sums over images and their numbers of pixels.

  Raises:
    ValueError: another reduction.
  """
  if reduction == 'batch':
    return sums.sum() / jnp.maximum(counts.sum(), 1)
  if reduction == 'image':
    return jnp.mean(sums / jnp.maximum(counts, 1))
  raise ValueError(f'reduction={reduction!r} is not known: use one of '
                   f'{", ".join(REDUCTIONS)}')
