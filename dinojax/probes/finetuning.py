"""The part of a backbone that is trained together with a head."""

from collections.abc import Callable
import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.core import errors
from dinojax.core import tree
from dinojax.engine import optimizer
from dinojax.features import backbone as backbone_lib
from dinojax.features import spec as spec_lib
from dinojax.models import randomness
from dinojax.models import rates
from dinojax.parallel import sharding as sharding_lib

BACKBONE = 'backbone'  # entry of a head's parameters
_HEAD = 'head'


@dataclasses.dataclass(frozen=True)
class Trained:
  """Parameters of a backbone that are trained, and how.

  Attributes:
    pattern: regular expression that their whole paths match.
    first_layer: blocks before it keep their weights.
    layerwise_decay: see rates.learning_rates.
    drop_path_rate: share of rows that skip a block.
    group_images: images among which these rows are counted; it divides the
      rows of a device.
  """

  pattern: str = '.*'
  first_layer: int = 0
  layerwise_decay: float = 1.0
  drop_path_rate: float = 0.0
  group_images: int = 1

  def divide(self, params: tree.Tree) -> tuple[dict, dict]:
    """Parameters of a backbone that are trained, and those that stay.

    Raises:
      UserError: nothing matches.
    """
    matches = re.compile(self.pattern).fullmatch
    trained, frozen = tree.divide(params, lambda name: bool(matches(name)))
    if not trained:
      raise errors.UserError(
          f'trainable={self.pattern} matches no parameter of the backbone, '
          f'such as {tree.names(params)[0]}: it has to match a whole path')
    return trained, frozen

  def multipliers(self, head: tree.Tree, trained: tree.Tree,
                  depth: int) -> optimizer.Multipliers:
    """Factors of the rates of a head with its part of the backbone."""
    part = {BACKBONE: trained}
    lr = rates.learning_rates(
        part, depth=depth, layerwise_decay=self.layerwise_decay,
        patch_embed_lr_mult=1.0)
    trains = (np.arange(depth) >= self.first_layer).astype(np.float32)
    lr = tree.map_with_name(
        lambda name, factor: factor * trains.reshape(np.shape(factor))
        if rates.kind(name) == 'block' else factor, lr)
    ones = jax.tree.map(lambda _: 1.0, head)
    return optimizer.Multipliers(
        ones | lr, ones | rates.weight_decays(part))

  def draw(self, key: jax.Array, config: Any, rows: int) -> dict:
    """Rows that skip blocks in a step; {} without any."""
    if not self.drop_path_rate or not hasattr(config, 'drop_path_rate'):
      return {}
    config = dataclasses.replace(config, drop_path_rate=self.drop_path_rate)
    return randomness.draw(
        key, config, num_groups=rows // self.group_images,
        rows={'global': self.group_images}).get('global', {})

  def shardings(self, state: tree.Tree,
                model: backbone_lib.Backbone) -> tree.Tree:
    """Shardings of a state: the backbone's of its parts, else a copy each."""
    specs = {name: spec for name, spec in zip(
        tree.names(model.params), jax.tree.leaves(
            model.net.specs, is_leaf=lambda x: isinstance(x, jax.P)),
        strict=True)}

    def sharding(name, _):
      rest = name.partition(f'/{BACKBONE}/')[2]
      # Heads are a stack, of one here.
      spec = jax.P(None, *specs[rest]) if rest else jax.P()
      return jax.NamedSharding(model.mesh, spec)

    return tree.map_with_name(sharding, state)


def split(state: tree.Tree, specs: tree.Tree,
          mesh: jax.sharding.Mesh) -> tree.Tree:
  """Shardings of a state whose heads are split over a mesh.

  Args:
    state: shapes.
    specs: how parameters of a head are split.
    mesh: the devices.
  """
  known = {tree.path_name(path): spec for path, spec in (
      jax.tree_util.tree_leaves_with_path(
          specs, is_leaf=lambda x: isinstance(x, jax.P)))}

  def sharding(name, leaf):
    parts = name.split('/')
    # Averages of gradients and the like have the names of the parameters.
    spec = next((known[rest] for i in range(len(parts)) if (
        rest := '/'.join(parts[i:])) in known), jax.P())
    return jax.NamedSharding(
        mesh, jax.P(None, *spec) if len(spec) < leaf.ndim else jax.P())

  return tree.map_with_name(sharding, state)


def features(model: backbone_lib.Backbone, params: tree.Tree,
             images: jax.Array, specs: dict[str, spec_lib.FeatureSpec],
             draws: dict) -> dict[str, list[spec_lib.Outputs]]:
  """Features of images with these weights of the backbone."""
  rows = {'image': sharding_lib.constrain(images)}
  if draws:
    rows['draws'] = jax.tree.map(sharding_lib.constrain, draws)
  return model.net.apply(
      params, rows, functools.partial(_compute, specs=specs))


def clipped(grads: tree.Tree, max_norm: float | None) -> tree.Tree:
  """Gradients of a head, and of its part of the backbone, each clipped."""
  head, backbone = _parts(grads)
  parts, _ = optimizer.clip_per_part({_HEAD: head} | backbone, max_norm)
  return parts.pop(_HEAD) | parts


def multipliers(params: tree.Tree, trained: Trained | None, depth: int,
                decays: Callable[[tree.Tree], tree.Tree] | None = None,
                factors: tree.Tree = None) -> optimizer.Multipliers:
  """Factors of the rates of a head, and of its part of the backbone.

  Args:
    params: parameters of both.
    trained: see Trained; None: no part.
    depth: blocks of the backbone.
    decays: parameters of a head to factors of their weight decay; None: all
      of them decay.
    factors: factors of the learning rates of a head; None: 1.
  """
  head, backbone = _parts(params)
  if backbone:
    out = trained.multipliers(head, backbone[BACKBONE], depth)
  else:
    ones = jax.tree.map(lambda _: 1.0, params)
    out = optimizer.Multipliers(ones, ones)
  return optimizer.Multipliers(
      out.lr | (factors or {}),
      out.weight_decay | (decays(head) if decays else {}))


def _parts(params: tree.Tree) -> tuple[dict, dict]:
  """Parameters of a head, and those of the backbone that it has with it."""
  return ({name: part for name, part in params.items() if name != BACKBONE},
          {name: part for name, part in params.items() if name == BACKBONE})


def _compute(net, rows, *, specs):
  return spec_lib.compute(
      net, rows['image'], specs, rows.get('draws'), frozen=False)


def copies(params: tree.Tree, count: int) -> tree.Tree:
  """Parts of a backbone for a stack of heads: whole on every device."""
  return jax.tree.map(lambda x: jnp.broadcast_to(
      sharding_lib.constrain(x, jax.P())[None], (count, *x.shape)),
                      in_float32(params))


def in_float32(params: tree.Tree) -> tree.Tree:
  """Parameters as they are trained."""
  return jax.tree.map(lambda x: x.astype(jnp.float32), params)
