"""Losses of predicted depth.

Depths are metres, [b, y, x]; a depth of 0 is not known.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

_LOG_EPSILON = 1e-3  # metres, added before logarithms
GRADIENT_STRIDES = (1, 2, 4, 6)
LOSSES = ('sig', 'gradient_log', 'gradient', 'l1')


def known(target: Array, *, max_depth: float | None = None) -> Array:
  """[...] bool: pixels whose depth is known (and within reach)."""
  valid = target > 0
  return valid if max_depth is None else valid & (target <= max_depth)


def scale_invariant(predicted: Array, target: Array, valid: Array, *,
                    with_variance: bool | Array = True,
                    group: int | None = None) -> Array:
  """Root of the variance and 0.15 × squared mean of the log error.

  Args:
    predicted: depths > 0, [b, …].
    target: the same shape.
    valid: bool, pixels that count; groups without any count nowhere.
    with_variance: False in the first steps of training (DINOv3: 100).
    group: images whose pixels share a mean and a variance; the losses of
      groups are averaged. None: all.

  Source: SigLoss of DINOv2 and DINOv3; the variance is the unbiased one.
  Differs: `group` counts images, where theirs are those of a device; an exact
    prediction has gradient 0, which is NaN in DINOv2.
  """
  error = _log_error(predicted, target, valid)
  rows, axes = error.shape[0], tuple(range(1, error.ndim))
  each = rows if group is None else group
  # A product with [g, b] sums over groups wherever the rows lie.
  member = (np.arange(rows) // each == np.arange(-(-rows // each))[:, None])
  total = lambda x: jnp.einsum('gb,b->g', jnp.asarray(member, jnp.float32), x,
                               precision='highest')
  of_rows = lambda x: jnp.einsum('gb,g->b', jnp.asarray(member, jnp.float32),
                                 x, precision='highest')
  number = total(valid.sum(axes).astype(jnp.float32))
  count = jnp.maximum(number, 1)
  mean = total(error.sum(axes)) / count
  centre = of_rows(mean).reshape(-1, *(1,) * len(axes))
  apart = total((jnp.where(valid, error - centre, 0.0) ** 2).sum(axes))
  square = 0.15 * mean ** 2 + jnp.where(
      with_variance, apart / jnp.maximum(count - 1, 1), 0.0)
  root = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
  has_any = number > 0
  return jnp.sum(jnp.where(has_any, root, 0)) / jnp.maximum(
      jnp.sum(has_any), 1)


def gradient(predicted: Array, target: Array, valid: Array, *,
             log: bool = True, axes: tuple[int, int] = (-2, -1),
             strides: Sequence[int] = GRADIENT_STRIDES) -> Array:
  """Differences of the error between pixels two apart, at several scales.

  Args:
    predicted: depths > 0.
    target: the same shape.
    valid: bool, pixels that count; a difference needs both.
    log: errors of log depths; else of metres.
    axes: where pixels are neighbours, rows and columns.
    strides: pixels taken at each scale.

  Source: GradientLoss of DINOv2, GradientLogLoss of DINOv3 (and, without
    `log`, its GradientLoss): strides 1, 2, 4 and 6, no powers of two.
  Differs: DINOv2's training passes [b, 1, y, x] to a function for [y, x] and
    so compares images two apart; axes=(0, 1) of that shape does the same.
  """
  if log:
    error = _log_error(predicted, target, valid)
  else:
    error = jnp.where(valid, predicted - target, 0.0)
  total = 0.0
  for stride in strides:
    at_scale = [error, valid]
    for axis in axes:
      at_scale = [_every(x, axis, stride) for x in at_scale]
    total += _steps(*at_scale, axes)
  return total


def absolute(predicted: Array, target: Array, valid: Array) -> Array:
  """Mean absolute error, metres."""
  error = jnp.where(valid, jnp.abs(predicted - target), 0.0)
  return error.sum() / (valid.sum() + 1e-7)


def total(weights: Mapping[str, float], predicted: Array, target: Array,
          valid: Array, *, with_variance: bool | Array = True,
          group: int | None = None) -> Array:
  """Weighted sum of losses.

  Args:
    weights: weight of each, by its name in LOSSES.
    predicted: depths > 0, [b, y, x].
    target: the same shape.
    valid: bool, pixels that count.
    with_variance: see `scale_invariant`.
    group: see `scale_invariant`.
  """
  functions = {
      'sig': lambda *args: scale_invariant(
          *args, with_variance=with_variance, group=group),
      'gradient_log': gradient,
      'gradient': lambda *args: gradient(*args, log=False), 'l1': absolute}
  return sum(weight * functions[name](predicted, target, valid)
             for name, weight in weights.items())


def _log_error(predicted: Array, target: Array, valid: Array) -> Array:
  """Difference of log depths, 0 where not valid, float32."""
  log = lambda x: jnp.log(
      jnp.where(valid, x, 1.0).astype(jnp.float32) + _LOG_EPSILON)
  return log(predicted) - log(target)


def _every(x: Array, axis: int, stride: int) -> Array:
  return jax.lax.slice_in_dim(
      x, 0, x.shape[axis], stride, axis=axis % x.ndim)


def _steps(error: Array, valid: Array, axes: tuple[int, int]) -> Array:
  total = 0.0
  for axis in axes:
    size, axis = error.shape[axis], axis % error.ndim
    if size <= 2:
      continue
    first = lambda x, a=axis, n=size: jax.lax.slice_in_dim(x, 0, n - 2, axis=a)
    second = lambda x, a=axis, n=size: jax.lax.slice_in_dim(x, 2, n, axis=a)
    both = first(valid) & second(valid)
    step = jnp.abs(first(error) - second(error))
    total += jnp.where(both, step, 0.0).sum()
  return total / jnp.maximum(valid.sum(), 1)
