"""L-BFGS for many logistic regressions side by side, in float32 on a device.

Each step is scaled by the diagonal of the Hessian. Scores are linear in the
weights, so a search along a direction costs no product of matrices.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

HISTORY = 10  # steps that are remembered
_TRIALS = 12  # steps that are tried along a direction
_FLAT = 0.25  # part of the slope that may be left at the end of a search
_ROUND = 24  # steps between which solved problems are taken out
_SMALLEST = 1e-30


def solve(features: np.ndarray, target: np.ndarray, strengths: np.ndarray,
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
          'moves': zeros((s, HISTORY, k, width)),
          'changes': zeros((s, HISTORY, k, width)),
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
