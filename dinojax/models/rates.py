"""Factors of the learning rate and weight decay of every parameter, by path."""

import re

import numpy as np

from dinojax.core import tree
from dinojax.models import convnext
from dinojax.models import heads
from dinojax.models import vit_config

Tree = tree.Tree
LAST_LAYER = 'last_layer'  # of a head

# Not decayed. The references go by name, and ConvNeXt's norms between stages
# have an index for a name: their scales are decayed. So are all tokens, the
# position grid and the weight norm of the prototypes.
_NOT_DECAYED = re.compile(
    r'.*/(bias|gamma)|(?!stage\d/norm/)(.*/)?\w*norm\d?/scale')


def learning_rates(params: Tree, *, depth: int, layerwise_decay: float = 1.0,
                   patch_embed_lr_mult: float = 0.2) -> Tree:
  """Factors of the learning rate; every path is covered or named in the error.

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
             'plain': 1.0, LAST_LAYER: 1.0}

  def factor(name, leaf):
    which = kind(name)
    if which != 'block':
      return np.float32(factors[which])
    if leaf.shape[0] != depth:
      raise ValueError(
          f'parameter {name} of shape {tuple(leaf.shape)} does not stack '
          f'depth={depth} blocks: give the depth of this backbone')
    blocks = layerwise_decay ** (depth - np.arange(depth, dtype=np.float64))
    return blocks.astype(np.float32).reshape(
        depth, *[1] * (len(leaf.shape) - 1))

  return tree.map_with_name(factor, params)


def weight_decays(params: Tree) -> Tree:
  """Factors of the weight decay, 0 or 1, see `learning_rates`."""
  return tree.map_with_name(lambda name, _: np.float32(
      0 if _NOT_DECAYED.fullmatch(name.partition('/')[2]) else 1), params)


def kind(name: str) -> str:
  """The rule of a parameter: 'token', 'patch_embed', 'block', 'plain', ….

  Raises:
    ValueError: no rule covers it.
  """
  part, _, rest = name.partition('/')
  rules = heads.LR_KINDS if part.endswith('_head') else (
      (*vit_config.LR_KINDS, *convnext.LR_KINDS) if part == 'backbone' else ())
  for pattern, which in rules:
    if re.fullmatch(pattern, rest):
      return which
  raise ValueError(
      f'no learning-rate rule covers parameter {name}: add one to the LR_KINDS '
      'of its module')
