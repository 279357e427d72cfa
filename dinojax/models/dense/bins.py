"""Depth by classes: bins that stand for depths, and their mean.

Depths are metres.
"""

import jax
import jax.numpy as jnp
import numpy as np

SPACINGS = ('linear', 'log', 'mixed', 'sid')
NORMALIZATIONS = ('linear', 'softmax', 'sigmoid', 'mixed')
_MIXED_FACTOR = 8  # canopies: bins cover an eighth, and the mean is scaled
_FLOOR = 0.1  # of each bin, so that silence is the plain mean
_MIXED_FLOOR = 1e-8


def bins(count: int, *, min_depth: float, max_depth: float,
         spacing: str = 'linear') -> np.ndarray:
  """[count] depths that the classes of a head stand for, float32.

  Args:
    count: number of classes.
    min_depth: depth of the first, metres.
    max_depth: depth of the last, metres.
    spacing: 'linear'; 'log': equal ratios; 'mixed': of canopy height, from
      log to linear, an eighth of the depths; 'sid': 10 to the power of
      linear depths, an error of DINOv2 that no release uses.

  Raises: ValueError, another spacing.
  """
  even = np.linspace(min_depth, max_depth, count)
  if spacing == 'linear':
    return even.astype(np.float32)
  if spacing == 'log':
    return np.geomspace(min_depth, max_depth, count).astype(np.float32)
  if spacing == 'mixed':
    top, share = max_depth / _MIXED_FACTOR, np.linspace(1, 0, count)
    return (share * np.geomspace(min_depth, top, count) + (
        1 - share) * np.linspace(min_depth, top, count)).astype(np.float32)
  if spacing == 'sid':
    return (10.0 ** even).astype(np.float32)
  raise ValueError(f'spacing={spacing!r} is not known: use one of '
                   f'{", ".join(SPACINGS)}')


def expected_depth(logits: jax.Array, depths: jax.Array, *,
                   normalize: str = 'linear',
                   factor: float = 1.0) -> jax.Array:
  """[b, y, x] mean of `depths` [k] by the logits [b, y, x, k], float32.

  Args:
    logits: scores of the classes, one class for each depth.
    depths: see `bins`.
    normalize: how logits become shares: 'linear' (relu, plus 0.1), 'softmax',
      'sigmoid', or 'mixed' (relu, plus 1e-8).
    factor: number that the mean is multiplied by, see `factor`.

  Raises: ValueError, another `normalize`.
  Source: the depth heads of DINOv2 and DINOv3.
  """
  logits = logits.astype(jnp.float32)
  shares = {'linear': lambda x: jax.nn.relu(x) + _FLOOR,
            'softmax': jax.nn.softmax, 'sigmoid': jax.nn.sigmoid,
            'mixed': lambda x: jax.nn.relu(x) + _MIXED_FLOOR}
  if normalize not in shares:
    raise ValueError(f'normalize={normalize!r} is not known: use one of '
                     f'{", ".join(shares)}')
  share = shares[normalize](logits)
  share = share / share.sum(-1, keepdims=True)
  return factor * jnp.einsum(
      'byxk,k->byx', share, depths, precision='highest')


def factor(normalize: str) -> float:
  """Factor of the mean that goes with a way to normalize."""
  return _MIXED_FACTOR if normalize == 'mixed' else 1.0


def regressed_depth(logits: jax.Array, *, min_depth: float) -> jax.Array:
  """[b, y, x] depth that the first channel states itself, metres."""
  return jax.nn.relu(logits[..., 0].astype(jnp.float32)) + min_depth


def depth(logits: jax.Array, *, min_depth: float, max_depth: float,
          spacing: str = 'linear', normalize: str = 'linear') -> jax.Array:
  """[b, y, x] metres of logits [b, y, x, k]; of one channel, regressed."""
  count = logits.shape[-1]
  if count == 1:
    return regressed_depth(logits, min_depth=min_depth)
  return expected_depth(
      logits, bins(count, min_depth=min_depth, max_depth=max_depth,
                   spacing=spacing),
      normalize=normalize, factor=factor(normalize))
