"""Factors of every parameter's learning rate and weight decay."""

from collections.abc import Mapping
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.core import tree
from dinojax.engine import optimizer
from dinojax.models import convnext
from dinojax.models import heads
from dinojax.models import vit_config

Tree = tree.Tree

# Not decayed. The references go by name, and ConvNeXt's norms between stages
# have an index for a name: their scales are decayed. So are all tokens, the
# position grid and the weight norm of the prototypes.
_NOT_DECAYED = re.compile(
    r'.*/(bias|gamma)|(?!stage\d/norm/)(.*/)?\w*norm\d?/scale')


@dataclasses.dataclass(frozen=True)
class Factors:
  """Factors of every parameter, trees like the parameters, of numbers.

  Attributes:
    lr: factors of the learning rate.
    weight_decay: factors of the weight decay.
    last_layer: True for the last layer of a head, whose learning rate waits.
  """

  lr: Tree
  weight_decay: Tree
  last_layer: Tree

  def at(self, schedules: Mapping[str, jax.Array]) -> optimizer.Multipliers:
    """The factors of now.

    Args:
      schedules: values of now: lr, last_layer_lr and, where the backbone
        waits for its heads, backbone_trains, 0 or 1.
    """
    lr, last = schedules['lr'], schedules['last_layer_lr']
    # They are the same, or one of them is 0: no factor is rounded.
    waits = jnp.where(last == lr, 1.0, last / lr)
    factors = jax.tree.map(
        lambda factor, is_last: factor * waits if is_last else factor,
        self.lr, self.last_layer)
    if 'backbone_trains' in schedules:
      # Moments have begun, as those of the last layer do: the first update of
      # weights is not a large one.
      factors |= {'backbone': jax.tree.map(
          lambda factor: factor * schedules['backbone_trains'],
          factors['backbone'])}
    return optimizer.Multipliers(factors, self.weight_decay)


def multipliers(params: Tree, *, depth: int, layerwise_decay: float = 1.0,
                patch_embed_lr_mult: float = 0.2) -> Factors:
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

  return Factors(
      tree.map_with_name(lr, params), tree.map_with_name(decay, params),
      tree.map_with_name(lambda name, _: _kind(name) == 'last_layer', params))


def _kind(name: str) -> str:
  part, _, rest = name.partition('/')
  rules = heads.LR_KINDS if part.endswith('_head') else (
      (*vit_config.LR_KINDS, *convnext.LR_KINDS) if part == 'backbone' else ())
  for pattern, kind in rules:
    if re.fullmatch(pattern, rest):
      return kind
  raise ValueError(
      f'no learning-rate rule covers parameter {name}: add one to the LR_KINDS '
      'of its module')
