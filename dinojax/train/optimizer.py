"""AdamW as the references run it: a factor per parameter, clip per part."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dinojax.core import tree

Tree = Any


@dataclasses.dataclass(frozen=True)
class Multipliers:
  """Factors of every parameter, trees like the parameters."""

  lr: Tree
  weight_decay: Tree
  last_layer: Tree


# Every parameter of a backbone by its path, and of which kind it is.
_BACKBONE = (
    (r'cls_token|mask_token|pos_embed|registers', 'token'),
    (r'patch_embed/(kernel|bias)', 'patch_embed'),
    (r'blocks/(norm[12]/(scale|bias)|ls[12]/gamma'
     r'|attn/(qkv|proj)/(kernel|bias)'
     r'|mlp/(fc[12]|w12|w[123])/(kernel|bias))', 'block'),
    (r'((local_)?cls_)?norm/(scale|bias)', 'plain'),
    # ConvNeXt has no blocks to count, so nothing of it is slowed down.
    (r'stage\d/(blocks/)?(norm|reduce|dwconv|pwconv[12]|scale)'
     r'/(kernel|bias|scale|gamma)', 'plain'))
_HEAD = ((r'mlp/fc\d+/(kernel|bias)', 'plain'),
         (r'last_layer/(kernel|g|v)', 'last_layer'))
# Not decayed. The references go by name, and ConvNeXt's norms between stages
# have an index for a name: their scales are decayed. So are all tokens, the
# position grid and the weight norm of the prototypes.
_NOT_DECAYED = re.compile(
    r'.*/(bias|gamma)|(?!stage\d/norm/)(.*/)?\w*norm\d?/scale')


def multipliers(params: Tree, *, depth: int, layerwise_decay: float = 1.0,
                patch_embed_lr_mult: float = 0.2) -> Multipliers:
  """Factors by path; every path is covered or named in the error.

  Args:
    params: {part: tree} of arrays or shapes: 'backbone' and '…_head'.
    depth: blocks of the backbone.
    layerwise_decay: γ: block i gets γ^(depth−i), tokens γ^(depth+1).
    patch_embed_lr_mult: on top, for the patch embedding.

  Raises:
    ValueError: a path that no rule covers, or blocks of another depth.

  Source: get_params_groups_with_decay of DINOv2 and DINOv3.
  """
  first = layerwise_decay ** (depth + 1)
  factors = {'token': first, 'patch_embed': first * patch_embed_lr_mult,
             'plain': 1.0, 'last_layer': 1.0}

  def lr(name, leaf):
    kind = _kind(name)
    if kind != 'block':
      return np.float32(factors[kind])
    if leaf.shape[0] != depth:
      raise ValueError(
          f'parameter {name} of shape {tuple(leaf.shape)} does not stack '
          f'depth={depth} blocks: give the depth of this backbone')
    blocks = layerwise_decay ** (depth - np.arange(depth, dtype=np.float64))
    return blocks.astype(np.float32).reshape(
        depth, *[1] * (len(leaf.shape) - 1))

  def decay(name, _):
    rest = name.partition('/')[2]
    return np.float32(0 if _NOT_DECAYED.fullmatch(rest) else 1)

  return Multipliers(
      tree.map_with_name(lr, params), tree.map_with_name(decay, params),
      tree.map_with_name(lambda name, _: _kind(name) == 'last_layer', params))


def _kind(name: str) -> str:
  part, _, rest = name.partition('/')
  rules = _HEAD if part.endswith('_head') else (
      _BACKBONE if part == 'backbone' else ())
  for pattern, kind in rules:
    if re.fullmatch(pattern, rest):
      return kind
  raise ValueError(
      f'no learning-rate rule covers parameter {name}: add one to '
      'train/optimizer.py')


@dataclasses.dataclass(frozen=True, eq=False)
class AdamW:
  """AdamW with decoupled weight decay; rates come with each update.

  The only clock is the step of the state: rates are values, not schedules,
  and `count` serves the bias correction alone.

  Source: torch.optim.AdamW, one parameter group per factor.
  """

  multipliers: Multipliers
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8

  @property
  def _adam(self):
    return optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.eps)

  def init(self, params: Tree) -> dict:
    """First and second moments, float32, and the count of updates."""
    state = self._adam.init(params)
    return {'mu': state.mu, 'nu': state.nu, 'count': state.count}

  def update(self, grads: Tree, opt: dict, params: Tree, *, lr, last_layer_lr,
             weight_decay) -> tuple[Tree, dict]:
    """One update.

    Args:
      grads: clipped gradients.
      opt: see `init`.
      params: parameters.
      lr: learning rate now.
      last_layer_lr: that of the prototypes.
      weight_decay: now; multiplied by the learning rate.

    Returns:
      The next parameters and moments.
    """
    state = optax.ScaleByAdamState(opt['count'], opt['mu'], opt['nu'])
    direction, state = self._adam.update(grads, state)
    m = self.multipliers

    def move(p, u, lr_factor, decay, last):
      rate = (last_layer_lr if last else lr) * lr_factor
      return p - rate * (u + weight_decay * decay * p)

    params = jax.tree.map(
        move, params, direction, m.lr, m.weight_decay, m.last_layer)
    return params, {'mu': state.mu, 'nu': state.nu, 'count': state.count}


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
  """Whether all gradients are finite, and the first leaf that is not.

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
