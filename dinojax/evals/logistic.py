"""Logistic regression on frozen features: many strengths at once, on a device.

The objective is scikit-learn's, ½‖W‖² + C · Σ log-loss with free biases. All
values of C are solved side by side by L-BFGS in float32. What makes that fast
and safe: features are centred and turned to their principal axes, which
changes no answer (the penalty does not see turns) and makes the Hessian nearly
diagonal, so that each step is scaled by its diagonal; and scores are linear in
the weights, so a search along a direction costs no product of matrices.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.core import errors

# Ten to powers, in float32 as the references have them.
STRENGTHS = tuple(float(c) for c in 10 ** np.linspace(
    -6, 5, 45).astype(np.float32))
_HISTORY = 10  # steps that L-BFGS remembers
_TRIALS = 12  # steps that are tried along a direction
_FLAT = 0.25  # part of the slope that may be left at the end of a search
_ROUND = 24  # steps between which solved problems are taken out
_BYTES = 2**29  # of scores of the problems that are solved side by side
_SMALLEST = 1e-30


@dataclasses.dataclass(frozen=True)
class Solution:
  """Classifiers of several strengths.

  Attributes:
    weight: [s, k, d] float32; k is 1 for two classes.
    bias: [s, k].
    classes: numbers of the classes, or columns, that k stands for.
    num_classes: classes in all, of which some may be absent in training.
    several: images have several labels, and each class is a yes or no.
    constant: columns that are always the same in training, with their value.
    loss: [s] mean log-loss in training.
    num_steps: [s] steps that were taken.
    converged: [s] whether the answer is as exact as float32 can tell.
  """

  weight: np.ndarray
  bias: np.ndarray
  classes: np.ndarray
  num_classes: int
  several: bool
  constant: Mapping[int, float]
  loss: np.ndarray
  num_steps: np.ndarray
  converged: np.ndarray

  def probabilities(self, features: np.ndarray, at: int = 0) -> np.ndarray:
    """[r, num_classes] float32 of the classifier with number `at`."""
    scores = features.astype(np.float64) @ self.weight[at].T + self.bias[at]
    out = np.zeros((len(features), self.num_classes))
    for column, value in self.constant.items():
      out[:, column] = value
    if self.several:
      out[:, self.classes] = _sigmoid(scores)
    elif len(self.classes) == 2:
      out[:, self.classes[1]] = _sigmoid(scores[:, 0])
      out[:, self.classes[0]] = _sigmoid(-scores[:, 0])
    else:
      weights = np.exp(scores - scores.max(1, keepdims=True))
      out[:, self.classes] = weights / weights.sum(1, keepdims=True)
    return out.astype(np.float32)

  def alone(self, at: int) -> 'Solution':
    """The classifier with number `at`."""
    some = slice(at, at + 1)
    return dataclasses.replace(self, **{
        name: getattr(self, name)[some] for name in (
            'weight', 'bias', 'loss', 'num_steps', 'converged')})


def fit(features: np.ndarray, labels: np.ndarray, num_classes: int,
        strengths: Sequence[float] = STRENGTHS, *, max_steps: int = 1000,
        tolerance: float = 1e-10) -> Solution:
  """Solves for all strengths.

  Args:
    features: [r, d], not normalised.
    labels: [r] classes, or [r, num_classes] of zeros and ones, where every
      class is a problem of its own (one against the rest).
    num_classes: classes, of which training may lack some.
    strengths: values of C.
    max_steps: steps of L-BFGS.
    tolerance: the mean objective may be this much above its minimum, by the
      estimate of the scaled gradient, in nats.

  Raises:
    UserError: all images are of one class, or a number that is not finite.

  Source: LogisticRegression (lbfgs) of scikit-learn, alone for classes and in
    OneVsRestClassifier for several labels; DINOv2 and DINOv3 call these.
  Differs: float32; stops where the objective is within `tolerance`.
  """
  features = np.asarray(features, np.float32)
  if not np.isfinite(features).all():
    raise errors.UserError(
        'features hold numbers that are not finite: check the model')
  target, classes, constant = _targets(np.asarray(labels), num_classes)
  several = np.ndim(labels) == 2
  mean = features.mean(0, dtype=np.float64)
  centred = features.astype(np.float64) - mean
  # Turned to the axes; of fewer rows than columns the rest is all zeros.
  _, axes = np.linalg.eigh(centred.T @ centred)
  axes = axes[:, ::-1][:, :min(len(features), features.shape[1])]
  turned = (centred @ axes).astype(np.float32)
  size = target.nbytes * 4 // target.itemsize
  together = max(1, min(len(strengths), _BYTES // max(size, 1)))
  parts = [_solve(turned, target, np.asarray(
      strengths[start:start + together], np.float32), several, max_steps,
                  tolerance)
           for start in range(0, len(strengths), together)]
  weight, bias, loss, steps, done = (
      np.concatenate(part) for part in zip(*parts, strict=True))
  weight = weight.astype(np.float64) @ axes.T
  bias = bias - weight @ mean
  if not several and len(target) > 1:  # any constant gives the same chances
    bias = bias - bias.mean(1, keepdims=True)
  return Solution(weight.astype(np.float32), bias.astype(np.float32), classes,
                  num_classes, several, constant, loss, steps, done)


def _sigmoid(x: np.ndarray) -> np.ndarray:
  return np.exp(-np.logaddexp(0.0, -x))


def _targets(labels: np.ndarray, num_classes: int
             ) -> tuple[np.ndarray, np.ndarray, dict[int, float]]:
  """[k, r] zeros and ones, what k stands for, and columns that never change.

  Raises:
    UserError: nothing to tell apart.
  """
  if labels.ndim == 2:
    share = labels.mean(0)
    constant = {int(i): float(share[i])
                for i in np.flatnonzero((share == 0) | (share == 1))}
    classes = np.setdiff1d(np.arange(num_classes), list(constant))
    target = labels.T[classes]
  else:
    classes, constant = np.unique(labels), {}
    if len(classes) == 2:  # a single problem of yes and no
      target = labels[None] == classes[1]
    else:
      target = labels[None] == classes[:, None]
  if len(classes) < 2 and not (labels.ndim == 2 and len(classes)):
    raise errors.UserError(
        f'all {len(labels)} training images are of one class: a classifier '
        'needs two or more')
  return target.astype(np.float32), classes, constant


def _solve(features: np.ndarray, target: np.ndarray, strengths: np.ndarray,
           several: bool, max_steps: int, tolerance: float) -> tuple:
  """Weight, bias, loss, steps and success of each strength, on the host.

  Solved problems are taken out after every round; the others go on in a
  smaller program.
  """
  binary = several or len(target) == 1
  problem = (jnp.asarray(np.concatenate(
      [features, np.ones((len(features), 1), np.float32)], 1)),
             jnp.asarray(target))
  state = _begin(strengths, target.shape, features.shape[1] + 1)
  place = np.arange(len(strengths))  # in the state; -1: an empty place
  steps, final = 0, {}
  while True:
    state = _advance(state, problem, np.float32(tolerance), binary,
                     min(_ROUND, max_steps - steps))
    steps += _ROUND
    ends = np.asarray(state['done']) | (steps >= max_steps)
    for i in np.flatnonzero(ends & (place >= 0)):
      final[int(place[i])] = {name: np.asarray(state[name][i]) for name in (
          'weight', 'loss', 'steps', 'solved')}
    place = np.where(ends, -1, place)
    keep = np.flatnonzero(place >= 0)
    if not len(keep):
      break
    size = _slots(len(keep), len(place))
    if size < len(place):
      empty = size - len(keep)
      rows = np.concatenate([keep, np.full(empty, keep[0])])
      state = jax.tree.map(lambda x, rows=rows: x[rows], state)
      place = np.concatenate([place[keep], np.full(empty, -1)])
      state['done'] = jnp.asarray(place < 0)
  out = [final[i] for i in range(len(strengths))]
  weight = np.stack([each['weight'] for each in out])
  return (weight[..., :-1], weight[..., -1], *(
      np.stack([each[name] for each in out])
      for name in ('loss', 'steps', 'solved')))


def _slots(needed: int, current: int) -> int:
  """Places for problems: a third, and again, as long as all have one."""
  while needed <= current // 3:
    current //= 3
  return current


def _begin(strengths: np.ndarray, shape: tuple[int, int], width: int) -> dict:
  """All weights zero."""
  s, (k, r) = len(strengths), shape
  zeros = functools.partial(jnp.zeros, dtype=jnp.float32)
  return {'weight': zeros((s, k, width)), 'scores': zeros((s, k, r)),
          'moves': zeros((s, _HISTORY, k, width)),
          'changes': zeros((s, _HISTORY, k, width)),
          'last_step': zeros((s, k, width)), 'last_gradient': zeros(
              (s, k, width)),
          'decay': jnp.asarray(1.0 / (strengths * r), jnp.float32),
          'loss': zeros((s,)), 'steps': jnp.zeros((s,), jnp.int32),
          'done': jnp.zeros((s,), bool), 'solved': jnp.zeros((s,), bool)}


def _probabilities(scores: jax.Array, target: jax.Array, binary: bool
                   ) -> tuple[jax.Array, jax.Array]:
  """Chances [s, k, r], and the log-loss [s] that they have."""
  if binary:
    loss = jax.nn.softplus(scores) - target[None] * scores
    return jax.nn.sigmoid(scores), loss.sum((1, 2)) / scores.shape[2]
  largest = scores.max(1, keepdims=True)
  raised = jnp.exp(scores - largest)
  total = raised.sum(1, keepdims=True)
  right = ((scores - largest) * target[None]).sum(1)
  loss = jnp.log(total)[:, 0] - right
  return raised / total, loss.sum(1) / scores.shape[2]


@functools.partial(jax.jit, static_argnames=('binary',), donate_argnums=0)
def _advance(state: dict, problem: tuple, tolerance: jax.Array, binary: bool,
             num_steps: jax.Array) -> dict:
  """So many steps of all problems that are not solved."""
  def more(carry):
    i, state = carry
    return (i < num_steps) & ~state['done'].all()

  def step(carry):
    i, state = carry
    return i + 1, _step(state, problem, tolerance, binary)

  return jax.lax.while_loop(more, step, (0, state))[1]


def _step(state: dict, problem: tuple, tolerance: jax.Array,
          binary: bool) -> dict:
  """A step of L-BFGS: gradient, direction, search."""
  features, target = problem
  weight, scores, decay = state['weight'], state['scores'], state['decay']
  count = features.shape[0]
  penalised = (jnp.arange(features.shape[1]) < features.shape[1] - 1
               ).astype(jnp.float32)
  chance, loss = _probabilities(scores, target, binary)
  pull = decay[:, None, None] * penalised[None, None]
  gradient = jnp.einsum('skr,rd->skd', chance - target[None], features,
                        precision='highest') / count + pull * weight
  spread = (chance * (1 - chance)).sum(2) / count  # [s, k]
  square = (features ** 2).mean(0)
  scale = 1.0 / jnp.maximum(
      spread[..., None] * square[None, None] + pull, _SMALLEST)
  known = state['steps'] > 0
  moves, changes = _remembered(state, gradient, known)
  direction, expected = _direction(gradient, moves, changes, scale, known)
  solved = state['solved'] | (0.5 * expected <= tolerance)
  done = state['done'] | solved
  along = jnp.einsum('skd,rd->skr', direction, features, precision='highest')
  reached = _search(scores, along, target, binary, loss, -expected,
                    _penalty(weight, direction, pull), done)
  failed = reached <= 0
  length = jnp.where(done, 0.0, reached)[:, None, None]
  step = length * direction
  return state | {
      'weight': weight + step, 'scores': scores + length * along,
      'moves': moves, 'changes': changes, 'last_step': step,
      'last_gradient': gradient, 'loss': loss,
      'steps': state['steps'] + ~done, 'done': done | failed,
      'solved': solved}


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
  """[s] inner products."""
  return (a * b).sum((-2, -1))


def _remembered(state: dict, gradient: jax.Array, known: jax.Array
                ) -> tuple[jax.Array, jax.Array]:
  """The last steps and changes of the gradient, the newest first."""
  move, change = state['last_step'], gradient - state['last_gradient']
  use = (known & (_dot(move, change) > 1e-8 * jnp.sqrt(
      _dot(move, move) * _dot(change, change))))[:, None, None, None]
  push = lambda old, new: jnp.where(
      use, jnp.concatenate([new[:, None], old[:, :-1]], 1), old)
  return push(state['moves'], move), push(state['changes'], change)


def _direction(gradient: jax.Array, moves: jax.Array, changes: jax.Array,
               scale: jax.Array, known: jax.Array
               ) -> tuple[jax.Array, jax.Array]:
  """L-BFGS's direction, and [s] how much it promises."""
  curvature = (moves * changes).sum((2, 3))  # [s, history]
  inverse = jnp.where(curvature > 0, 1.0 / jnp.maximum(curvature, _SMALLEST),
                      0.0)
  history = tuple(jnp.moveaxis(x, 1, 0) for x in (moves, changes, inverse))

  def there(left, entry):
    move, change, over = entry
    weight = over * _dot(move, left)
    return left - weight[:, None, None] * change, weight

  def back(left, entry):
    move, change, over, weight = entry
    more = weight - over * _dot(change, left)
    return left + more[:, None, None] * move, None

  left, weights = jax.lax.scan(there, gradient, history)
  newest = changes[:, 0]
  fitted = curvature[:, 0] / jnp.maximum(
      _dot(newest, scale * newest), _SMALLEST)
  factor = jnp.where(known & (curvature[:, 0] > 0), fitted, 1.0)
  left = factor[:, None, None] * scale * left
  left, _ = jax.lax.scan(back, left, (*history, weights), reverse=True)
  return -left, _dot(gradient, left)


def _penalty(weight: jax.Array, direction: jax.Array,
             pull: jax.Array) -> jax.Array:
  """[3, s] ½‖w + t·d‖² as a polynomial of t, lowest power first."""
  return jnp.stack([0.5 * _dot(pull * weight, weight),
                    _dot(pull * weight, direction),
                    0.5 * _dot(pull * direction, direction)])


def _search(scores: jax.Array, along: jax.Array, target: jax.Array,
            binary: bool, loss: jax.Array, first: jax.Array,
            penalty: jax.Array, done: jax.Array) -> jax.Array:
  """[s] lengths at which the slope is nearly flat; 0: there is none.

  Newton's method between bounds. The objective is convex, so its slope along
  the direction only grows, and its sign tells on which side the minimum is;
  slopes, unlike differences of values, stay exact near the minimum.
  """
  count = scores.shape[2]

  def look(t):
    chance, value = _probabilities(
        scores + t[:, None, None] * along, target, binary)
    slope = (along * (chance - target[None])).sum((1, 2)) / count
    mean = chance * along
    bend = (mean * along).sum((1, 2)) / count - (
        (mean ** 2) if binary else mean.sum(1, keepdims=True) ** 2
    ).sum((1, 2)) / count
    return (value + penalty[0] + t * penalty[1] + t * t * penalty[2],
            slope + penalty[1] + 2 * t * penalty[2], bend + 2 * penalty[2])

  zero = jnp.zeros_like(loss)
  start = loss + penalty[0]
  room = 1e-6 * jnp.abs(start)

  def more(carry):
    i, *_, ends = carry
    return (i < _TRIALS) & ~ends.all()

  def trial(carry):
    i, t, low, high, best, ends = carry
    value, slope, bend = look(t)
    good = (jnp.abs(slope) <= _FLAT * jnp.abs(first)) & (
        value <= start + room)
    best = jnp.where(ends, best, jnp.where(
        good | (slope <= 0), t, best))
    low = jnp.where(slope <= 0, t, low)
    high = jnp.where(slope > 0, t, high)
    newton = t - slope / jnp.maximum(bend, _SMALLEST)
    between = jnp.where(jnp.isinf(high), 4 * t, 0.5 * (low + high))
    within = (newton > low) & (newton < jnp.minimum(high, 16 * t + 1))
    step = jnp.where(within, newton, between)
    return (i + 1, jnp.where(ends | good, t, step), low, high, best,
            ends | good)

  out = jax.lax.while_loop(more, trial, (
      0, zero + 1, zero, zero + jnp.inf, zero, done | (first >= 0)))
  return out[4]
