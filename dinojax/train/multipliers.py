"""Factors of every parameter's learning rate and weight decay."""

from collections.abc import Mapping
import dataclasses

import jax
import jax.numpy as jnp

from dinojax.core import tree
from dinojax.engine import optimizer
from dinojax.models import rates

Tree = tree.Tree


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

  Args and errors: see rates.learning_rates.
  """
  return Factors(
      rates.learning_rates(
          params, depth=depth, layerwise_decay=layerwise_decay,
          patch_embed_lr_mult=patch_embed_lr_mult),
      rates.weight_decays(params), tree.map_with_name(
          lambda name, _: rates.kind(name) == rates.LAST_LAYER, params))
