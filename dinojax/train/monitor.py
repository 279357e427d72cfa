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

  def __init__(self, num_prototypes: int, window: int = 20):
    """Watches `window` logged rows at a time."""
    self._log_k, self._k = math.log(num_prototypes), num_prototypes
    self._rows = collections.deque(maxlen=window)
    self._said: set[str] = set()

  def check(self, row: Mapping[str, float]) -> str | None:
    """A sentence for the user, once for each kind of collapse."""
    self._rows.append(row)
    if len(self._rows) < self._rows.maxlen:
      return None
    for kind, holds, words in (
        ('constant', self._constant, _CONSTANT),
        ('uniform', self._uniform, _UNIFORM)):
      if kind not in self._said and all(map(holds, self._rows)):
        self._said.add(kind)
        last = self._rows[-1]
        return words.format(
            loss=last.get('loss/dino_global', float('nan')),
            log_k=self._log_k, k=self._k,
            std=last.get('teacher/feature_std', float('nan')),
            usage=last.get('teacher/usage', float('nan')))
    return None

  def _uniform(self, row: Mapping[str, float]) -> bool:
    loss = row.get('loss/dino_global')
    return loss is not None and abs(loss / self._log_k - 1) < 1e-3

  def _constant(self, row: Mapping[str, float]) -> bool:
    std = row.get('teacher/feature_std')
    return std is not None and std < 0.02


_UNIFORM = (
    'the student answers every image with the uniform distribution: the DINO '
    'loss {loss:.4f} stays at ln K = {log_k:.4f} (K = {k}). Early in training '
    'this is normal; if it lasts, try a longer schedules.freeze_last_layer, '
    'fewer prototypes (K ≤ 4 × batch), a lower teacher temperature, or half '
    'the learning rate')
_CONSTANT = (
    'the features of all images are nearly the same: their spread is '
    '{std:.4f} of an isotropic one, and {usage:.4f} of the prototypes are '
    'used. Try teacher.centering=sinkhorn_knopp, half the learning rate, '
    'model.drop_path_rate ≤ 0.1, and check the augmentations with `dinojax '
    'crops`')
