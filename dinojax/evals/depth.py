"""Depth from frozen features: bins, losses and metrics.

Depths are metres, [b, y, x]; a depth of 0 is not known.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

_LOG_EPSILON = 1e-3  # metres, added before logarithms
GRADIENT_STRIDES = (1, 2, 4, 6)


def bins(count: int, *, min_depth: float, max_depth: float,
         spacing: str = 'linear') -> np.ndarray:
  """[count] depths that the classes of a head stand for, float32.

  Args:
    count: classes.
    min_depth: metres, the first.
    max_depth: metres, the last.
    spacing: 'linear', or 'log': equal ratios.

  Raises: ValueError, another spacing.
  """
  if spacing == 'linear':
    return np.linspace(min_depth, max_depth, count, dtype=np.float32)
  if spacing == 'log':
    return np.geomspace(min_depth, max_depth, count).astype(np.float32)
  raise ValueError(f"spacing={spacing!r} is not known: use 'linear' or 'log'")


def expected_depth(logits: Array, depths: Array, *,
                   normalize: str = 'linear') -> Array:
  """[b, y, x] mean of `depths` [k] by the logits [b, y, x, k], float32.

  Args:
    logits: scores of the classes, one class for each depth.
    depths: see `bins`.
    normalize: how logits become shares: 'linear' (relu, plus 0.1), 'softmax'
      or 'sigmoid'.

  Raises: ValueError, another `normalize`.
  Source: the depth heads of DINOv2 and DINOv3.
  """
  logits = logits.astype(jnp.float32)
  shares = {'linear': lambda x: jax.nn.relu(x) + 0.1,
            'softmax': jax.nn.softmax, 'sigmoid': jax.nn.sigmoid}
  if normalize not in shares:
    raise ValueError(f'normalize={normalize!r} is not known: use one of '
                     f'{", ".join(shares)}')
  share = shares[normalize](logits)
  share = share / share.sum(-1, keepdims=True)
  return jnp.einsum('byxk,k->byx', share, depths, precision='highest')


def regressed_depth(logits: Array, *, min_depth: float) -> Array:
  """[b, y, x] depth that the first channel states itself, metres."""
  return jax.nn.relu(logits[..., 0].astype(jnp.float32)) + min_depth


def known(target: Array, *, max_depth: float | None = None) -> Array:
  """[...] bool: pixels whose depth is known (and within reach)."""
  valid = target > 0
  return valid if max_depth is None else valid & (target <= max_depth)


def scale_invariant(predicted: Array, target: Array, valid: Array, *,
                    with_variance: bool = True) -> Array:
  """Root of the variance and 0.15 × squared mean of the log error.

  Args:
    predicted: depths > 0.
    target: the same shape.
    valid: bool, pixels that count.
    with_variance: False in the first steps of training (DINOv3: 100).

  Source: SigLoss of DINOv2 and DINOv3; the variance is the unbiased one.
  """
  error = _log_error(predicted, target, valid)
  count = jnp.maximum(valid.sum(), 1)
  mean = error.sum() / count
  square = 0.15 * mean ** 2
  if with_variance:
    apart = jnp.where(valid, error - mean, 0.0) ** 2
    square += apart.sum() / jnp.maximum(count - 1, 1)
  return jnp.sqrt(square)


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
