"""Optimizers as pairs init and update: rates are values of now.

The only clock is the step of the state: rates come with each update, and the
count of updates serves the bias correction alone.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dinojax.core import tree

Tree = tree.Tree


@dataclasses.dataclass(frozen=True)
class Multipliers:
  """Factors of every parameter: trees like the parameters, of numbers.

  Attributes:
    lr: factors of the learning rate.
    weight_decay: factors of the weight decay.
  """

  lr: Tree
  weight_decay: Tree


@dataclasses.dataclass(frozen=True, eq=False)
class Optimizer:
  """An update rule.

  Attributes:
    init: parameters to its state, a dict of trees.
    update: (gradients, state, parameters, rates, multipliers) to the next
      parameters and state; rates are scalars of now by name: lr,
      weight_decay, and beta1 where it differs from the optimizer's.
  """

  init: Callable[[Tree], dict]
  update: Callable[
      [Tree, dict, Tree, Mapping[str, Any], Multipliers], tuple[Tree, dict]]


def adamw(*, beta1: float = 0.9, beta2: float = 0.999,
          epsilon: float = 1e-8) -> Optimizer:
  """AdamW with decoupled weight decay.

  The state holds first and second moments, float32, and the count of updates.

  Source: torch.optim.AdamW, one parameter group per factor.
  """
  adam = lambda rates: optax.scale_by_adam(
      b1=rates.get('beta1', beta1), b2=beta2, eps=epsilon)

  def init(params):
    state = adam({}).init(params)
    return {'mu': state.mu, 'nu': state.nu, 'count': state.count}

  def update(grads, state, params, rates, multipliers):
    old = optax.ScaleByAdamState(state['count'], state['mu'], state['nu'])
    direction, new = adam(rates).update(grads, old)
    return _moved(params, direction, rates, multipliers), {
        'mu': new.mu, 'nu': new.nu, 'count': new.count}

  return Optimizer(init, update)


def sgd(*, beta1: float = 0.9) -> Optimizer:
  """Gradient descent with momentum; weight decay is decoupled.

  The state holds the momentum, float32.

  Source: torch.optim.SGD without dampening.
  """
  def init(params):
    return {'mu': jax.tree.map(jnp.zeros_like, params)}

  def update(grads, state, params, rates, multipliers):
    decay = rates.get('beta1', beta1)
    momentum = jax.tree.map(lambda m, g: decay * m + g, state['mu'], grads)
    return _moved(params, momentum, rates, multipliers), {'mu': momentum}

  return Optimizer(init, update)


def _moved(params: Tree, direction: Tree, rates: Mapping[str, Any],
           multipliers: Multipliers) -> Tree:
  """Parameters after a step against a direction, and decayed."""
  def move(p, u, factor, decay):
    return p - rates['lr'] * factor * (
        u + rates['weight_decay'] * decay * p)

  return jax.tree.map(
      move, params, direction, multipliers.lr, multipliers.weight_decay)


def clip_per_part(grads: dict, max_norm: float | None) -> tuple[dict, dict]:
  """Clips backbone and heads each to `max_norm`; also their norms before."""
  norms = {name: optax.tree.norm(part) for name, part in grads.items()}
  if not max_norm:
    return grads, norms
  clipped = {
      name: optax.tree.scale(
          jnp.minimum(1.0, max_norm / (norms[name] + 1e-6)), part)
      for name, part in grads.items()}
  return clipped, norms


def finite_report(grads: Tree) -> tuple[jax.Array, jax.Array]:
  """Tells whether all gradients are finite, and the first leaf that is not.

  Returns:
    bool scalar, and the leaf's index in jax.tree.leaves order, −1 for none.
  """
  leaves = jax.tree.leaves(grads)
  finite = [jnp.isfinite(jnp.sum(jnp.abs(leaf))) for leaf in leaves]
  # One search with an end of its own. As `all` it is a chain of `and`, which
  # XLA writes into the update of every leaf: half of the program's lines.
  place = jnp.argmin(jnp.stack([*finite, jnp.array(False)]))
  everything = place == len(leaves)
  return everything, jnp.where(everything, -1, place)


def select(condition: jax.Array, new: Tree, old: Tree) -> Tree:
  """`new` where the scalar condition holds, else `old`, leaf by leaf."""
  return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
