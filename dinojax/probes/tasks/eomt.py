"""Segmentation by queries in a backbone's own last blocks.

The backbone stays as it is and runs up to these; copies of them, and of its
final norm, learn with the queries.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from dinojax.core import tree
from dinojax.engine import schedules
from dinojax.features import spec
from dinojax.models.dense import eomt
from dinojax.models.dense import queries
from dinojax.probes import task as task_lib
from dinojax.probes.tasks import masks

CHOICE = masks.CHOICE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Eomt(masks.Annealed):
  """Queries in the last blocks of a backbone.

  Attributes:
    decoder: sizes, and the backbone.
    at_pixels: True: logits of masks are resized to the pixels of the image
      before scores of classes are made of them, as the reference does; False:
      scores are made at a quarter of its side, of a hundredth of the bytes.

  Source: EoMT.
  Differs: the first blocks do not learn. The reference trains the whole ViT.
  """

  decoder: eomt.Config
  at_pixels: bool = False

  @functools.cached_property
  def choices(self) -> Mapping[str, spec.FeatureSpec]:
    """All tokens that enter the first of the blocks."""
    return {CHOICE: spec.FeatureSpec(
        masks.OUTPUTS, (self.decoder.first_block,), 'before')}

  def init(self, key: jax.Array, widths: Sequence[int],
           choice: str) -> task_lib.Head:
    """Random weights, of the blocks as well."""
    del widths, choice
    return {'params': eomt.init(key, self.decoder), 'stats': {}}

  def taken(self, backbone: tree.Tree) -> tree.Tree:
    """The last blocks of a backbone, and its norm."""
    return eomt.taken(backbone, self.decoder)

  def beside(self, config: Any) -> 'Eomt':
    """The task with the arithmetic and the kernels of a backbone."""
    ours = dataclasses.replace(
        self.decoder.backbone, attention=config.attention, dtype=config.dtype)
    return dataclasses.replace(self, decoder=dataclasses.replace(
        self.decoder, backbone=ours))

  def outputs(self, head: task_lib.Head, features: task_lib.Features,
              batch: tree.Tree, draws: tree.Tree | None
              ) -> tuple[list[queries.Predicted], tree.Tree]:
    """Predictions before each block, and the last."""
    del batch
    layer, = features
    opened = None if draws is None else draws.get('opened')
    predicted, _ = eomt.apply(
        head['params'], self.run_as(draws), masks.tokens_of(layer),
        layer['map'].shape[1:3],
        None if opened is None else jnp.moveaxis(opened, 0, 1))
    return predicted, head['stats']

  def predict(self, outputs: list[queries.Predicted]) -> jax.Array:
    """[b, y, x, k] scores of classes, see `at_pixels`."""
    if not self.at_pixels:
      return super().predict(outputs)
    step = self.decoder.backbone.patch_px // 2 ** self.decoder.upscales
    return queries.semantic_at(outputs[-1], tuple(
        step * n for n in outputs[-1].masks.shape[2:]))


@dataclasses.dataclass(frozen=True)
class Factors:
  """Factors of the learning rates of a head.

  Attributes:
    decoder: sizes.
    of_new: schedule of what is new.
    of_blocks: schedule of the copied blocks.
    decay: factor from a block to the one before, see eomt.layer_factors.
  """

  decoder: eomt.Config
  of_new: schedules.RiseFall
  of_blocks: schedules.RiseFall
  decay: float = eomt.LAYER_DECAY

  def __call__(self, params: tree.Tree, step: jax.Array) -> tree.Tree:
    """A factor for every parameter, at a step.

    Args:
      params: parameters of a head, or their shapes.
      step: number of updates before.
    """
    config = self.decoder
    of_layers = eomt.layer_factors(
        config.backbone.depth, config.num_blocks,
        decay=self.decay)[config.first_block:]

    def factor(name, leaf):
      part = name.partition('/')[0]
      if part not in eomt.OF_BACKBONE:
        return self.of_new(step)
      each = of_layers.reshape(-1, *[1] * (leaf.ndim - 1)) if (
          part == 'blocks') else 1.0
      return each * self.of_blocks(step)

    return tree.map_with_name(factor, params)
