"""Segmentation by Mask2Former on a frozen backbone with an adapter."""

from collections.abc import Sequence
import dataclasses

import jax

from dinojax.core import tree
from dinojax.models.dense import adapter
from dinojax.models.dense import mask2former
from dinojax.models.dense import queries
from dinojax.probes import task as task_lib
from dinojax.probes.tasks import masks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mask2Former(masks.Queries):
  """Queries that look at maps of an adapter, which sees the image as well.

  Attributes:
    decoder: sizes of adapter and decoders.

  Source: DINOv3's segmentor; it has no training, which is Mask2Former's.
  """

  decoder: mask2former.Config
  layers: int | tuple[int, ...] = 4

  def init(self, key: jax.Array, widths: Sequence[int],
           choice: str) -> task_lib.Head:
    """Random weights, and norms that change nothing."""
    del widths, choice
    return dict(zip(('params', 'stats'), mask2former.init(key, self.decoder),
                    strict=True))

  def draw(self, key: jax.Array, step: jax.Array,
           batch: tree.Tree) -> tree.Tree:
    """A key of the points, and the images whose branches are skipped."""
    del step
    points, key = jax.random.split(key)
    return {'points': points, 'kept': adapter.draw(
        key, self.decoder.adapter, len(batch['weight']))}

  def outputs(self, head: task_lib.Head, features: task_lib.Features,
              batch: tree.Tree, draws: tree.Tree | None
              ) -> tuple[list[queries.Predicted], tree.Tree]:
    """Predictions before each layer, and the last."""
    return mask2former.apply(
        head['params'], head['stats'], self.decoder, batch['image'],
        [layer['map'] for layer in features],
        None if draws is None else batch['weight'],
        None if draws is None else draws['kept'])
