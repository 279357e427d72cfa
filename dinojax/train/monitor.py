"""Signs of collapse: measured in the step, put in words on the host."""

import collections
from collections.abc import Mapping
import math

import jax
import jax.numpy as jnp

from dinojax.losses import unit

# A row looks uniform when loss / ln K is this near to 1. A student that
# answers uniformly is within 1e-4; one that learns leaves this band in a few
# hundred steps.
_UNIFORM_BAND = 2e-3
# Spread of the features over an isotropic one. Random weights have 0.02 to
# 0.1, trained ones above 0.5, collapsed ones below 1e-3.
_LEAST_STD = 0.01
# Prototypes in use, as exp(entropy): one means the same answer to all images.
_LEAST_PROTOTYPES = 2.0
# Once these were passed, the run had left its start, warm-up or not.
_LEFT_UNIFORM, _LEFT_CONSTANT = 0.97, 0.1


def target_metrics(targets: jax.Array) -> dict[str, jax.Array]:
  """Entropy and usage of teacher targets [..., k].

  Returns:
    teacher/entropy: mean entropy of a target over ln K, 1 is uniform;
    teacher/usage: exp(entropy of the mean target) / K, 1 when all prototypes
    are used alike, 1/K when all images get the same one.
  """
  k = targets.shape[-1]
  targets = targets.astype(jnp.float32)
  mean = targets.mean(tuple(range(targets.ndim - 1)))
  return {'teacher/entropy': mean_entropy(targets) / math.log(k),
          'teacher/usage': jnp.exp(mean_entropy(mean)) / k}


def mean_entropy(targets: jax.Array) -> jax.Array:
  """Mean entropy of distributions [..., k], in nats."""
  return -jnp.sum(targets * jnp.log(targets + 1e-20), axis=-1).mean()


def feature_metrics(cls: jax.Array) -> dict[str, jax.Array]:
  """Spread of CLS features [r, d]: 1 isotropic, 0 all the same.

  teacher/feature_std: root of the summed variance of the features at length
  one, which is the deviation per dimension times √d.
  """
  cls = unit.normalize(cls, 1e-8)
  gap = cls - cls.mean(0, keepdims=True)
  return {'teacher/feature_std': jnp.sqrt(jnp.mean(jnp.sum(gap * gap, -1)))}


def loss_metrics(loss: jax.Array, entropy: jax.Array,
                 num_prototypes: int) -> dict[str, jax.Array]:
  """A cross-entropy in units of ln K.

  Args:
    loss: mean cross-entropy, nats.
    entropy: mean entropy of the targets, nats.
    num_prototypes: K.

  Returns:
    dino/loss_over_log_k: 1 for a uniform student, whatever the targets;
    dino/divergence: of student from teacher, what can still be learned.
  """
  log_k = math.log(num_prototypes)
  return {'dino/loss_over_log_k': loss / log_k,
          'dino/divergence': (loss - entropy) / log_k}


class Monitor:
  """Says in words when the last rows of metrics look collapsed.

  At the start every run looks so: a row counts only when the learning rate
  has stopped rising and the last layer moves, or when the run had looked
  healthy before.
  """

  def __init__(self, num_prototypes: int, window: int = 20):
    """Watches `window` logged rows at a time: one alone says nothing."""
    self._k = num_prototypes
    self._signs = collections.deque(maxlen=window)
    self._reported: set[str] = set()
    self._healthy: set[str] = set()
    self._lr = 0.0

  def check(self, row: Mapping[str, float]) -> str | None:
    """A sentence for the user, once for each collapse; None when healthy.

    Args:
      row: logged metrics; those of this module, loss/dino_global,
        koleo/duplicates, schedule/lr and schedule/last_layer_lr are read; any
        may be absent.
    """
    numbers = self._numbers(row)
    if numbers['ratio'] < _LEFT_UNIFORM:
      self._healthy.add('uniform')
    if numbers['std'] > _LEFT_CONSTANT:
      self._healthy.add('constant')
    started = self._started(row)
    self._signs.append({
        kind for kind in _look(numbers) if started or kind in self._healthy})
    if len(self._signs) < self._signs.maxlen:
      return None
    self._reported &= set.union(*self._signs)  # over: may be said again
    for kind in ('constant', 'uniform', 'duplicates'):
      if kind not in self._reported and all(kind in s for s in self._signs):
        self._reported.add(kind)
        return _WORDS[kind].format(rows=len(self._signs), **numbers)
    return None

  def _started(self, row: Mapping[str, float]) -> bool:
    lr = row.get('schedule/lr', 0.0)
    rising, self._lr = lr > self._lr, lr
    return not rising and row.get('schedule/last_layer_lr', 1.0) > 0

  def _numbers(self, row: Mapping[str, float]) -> dict[str, float]:
    absent = math.nan  # compares as False: an absent metric shows nothing
    get = lambda name: row.get(name, absent)
    return {'k': self._k, 'log_k': math.log(self._k),
            'loss': get('loss/dino_global'),
            'entropy': get('teacher/entropy'),
            'ratio': get('dino/loss_over_log_k'),
            'divergence': get('dino/divergence'),
            'std': get('teacher/feature_std'),
            'used': get('teacher/usage') * self._k,
            'duplicates': get('koleo/duplicates')}


def _look(numbers: Mapping[str, float]) -> set[str]:
  """The kinds of collapse that one row looks like."""
  kinds = set()
  if abs(numbers['ratio'] - 1) < _UNIFORM_BAND:
    kinds.add('uniform')
  if numbers['std'] < _LEAST_STD or numbers['used'] < _LEAST_PROTOTYPES:
    kinds.add('constant')
  if numbers['duplicates'] >= 1:
    kinds.add('duplicates')
  return kinds


_WORDS = {
    'uniform': (
        'the student answers every image with the uniform distribution: over '
        'the last {rows} rows the DINO loss, now {loss:.4f}, stayed at '
        'ln K = {log_k:.4f} (K = {k}; the teacher\'s entropy is {entropy:.3f} '
        'ln K, so {divergence:.3f} ln K could be learned). Try half the '
        'learning rate (schedules.lr.peak), a longer '
        'schedules.freeze_last_layer, fewer prototypes for a small batch '
        '(dino.num_prototypes ≤ 4 × train.batch_size), or a lower teacher '
        'temperature'),
    'constant': (
        'all images get nearly the same features: over the last {rows} rows '
        'their spread, now {std:.4f} of an isotropic one, or the number of '
        'prototypes in use, now {used:.1f} of {k}, stayed near its least. Try '
        'teacher.centering=sinkhorn_knopp, half the learning rate '
        '(schedules.lr.peak), optimizer.beta2=0.99, model.drop_path_rate ≤ '
        '0.1, and look at the augmented crops with `dinojax crops`'),
    'duplicates': (
        'some images have the same features: in each of the last {rows} rows '
        'crops lay closer than 1e-6 to another one, now {duplicates:.0f} '
        '(koleo/duplicates), and KoLeo cannot pull them apart. Look for '
        'copies of an image or for blank ones in the data; if there are none, '
        'the features collapse: try half the learning rate '
        '(schedules.lr.peak)'),
}
