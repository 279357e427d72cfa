"""Detection of objects by boxes, with Plain-DETR on a frozen backbone."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools

import jax
import jax.numpy as jnp

from dinojax.core import tree
from dinojax.features import spec
from dinojax.losses import boxes as boxes_lib
from dinojax.losses import detection as losses
from dinojax.models.dense import detector
from dinojax.parallel import sharding
from dinojax.probes import task as task_lib
from dinojax.probes.tasks import segment

CHOICE = segment.CHOICE
TOP = 100
ANSWERS = 'boxes'  # what the head makes, see runs.predictions


@dataclasses.dataclass(frozen=True)
class Answers:
  """The likeliest pairs of a query and a class.

  Attributes:
    scores: [b, k] from 0 to 1, falling.
    labels: [b, k] classes.
    boxes: [b, k, 4] corners in pixels of the image that enters, inside of it.
  """

  scores: jax.Array
  labels: jax.Array
  boxes: jax.Array


jax.tree_util.register_dataclass(
    Answers, data_fields=('scores', 'labels', 'boxes'), meta_fields=())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detect(segment.Classes):
  """Boxes and classes of objects.

  Batches have extent [b, 2], kinds [b, t], −1 of none, and boxes [b, t, 4],
  corners in pixels.

  Attributes:
    decoder: sizes of the network, with its num_classes.
    copies: queries of training that learn an object.
    top: pairs of a query and a class that answer.

  Source: Plain-DETR's training, which DINOv3 names and has not published.
  """

  decoder: detector.Config
  copies: int = 6
  top: int = TOP

  @property
  def answers(self) -> str:
    """Result of the head."""
    return ANSWERS

  @functools.cached_property
  def choices(self) -> Mapping[str, spec.FeatureSpec]:
    """Maps of the layers, of windows too."""
    return {CHOICE: spec.FeatureSpec(
        ('map',), self.layers, self.place, self.decoder.windows)}

  def init(self, key: jax.Array, widths: Sequence[int],
           choice: str) -> task_lib.Head:
    """Random weights."""
    del widths, choice
    return {'params': detector.init(key, self.decoder), 'stats': {}}

  def draw(self, key: jax.Array, step: jax.Array,
           batch: tree.Tree) -> tree.Tree:
    """A key of what is dropped."""
    del step, batch
    return {'dropout': key}

  def outputs(self, head: task_lib.Head, features: task_lib.Features,
              batch: tree.Tree, draws: tree.Tree | None
              ) -> tuple[detector.Detected, tree.Tree]:
    """Predictions after each layer."""
    out = detector.apply(
        head['params'], self.decoder, [layer['map'] for layer in features],
        batch['extent'], with_extra=draws is not None and (
            self.decoder.num_extra > 0),
        dropout=None if draws is None else draws['dropout'])
    return out, head['stats']

  def loss(self, outputs: detector.Detected, batch: tree.Tree,
           draws: tree.Tree | None) -> jax.Array:
    """Losses of all predictions, each matched by itself, added."""
    del draws
    objects, rows = self.objects(batch), batch['weight']
    groups = [(each, objects, 1) for each in outputs.queries]
    groups += [(outputs.proposals, objects.as_foreground(), 1)]
    groups += [(each, objects, self.copies) for each in outputs.extra]
    return sum(losses.weighted(
        losses.losses(predicted, wanted, copies=copies, rows=rows),
        losses.usual_weights(predicted))
               for predicted, wanted, copies in groups)

  def objects(self, batch: tree.Tree) -> losses.Objects:
    """Objects of a batch, in the units of the predictions."""
    boxes = boxes_lib.of_corners(batch['boxes'])
    if not self.decoder.decoder.in_pixels:
      extent = batch['extent'][:, ::-1].astype(jnp.float32)
      boxes = boxes / jnp.concatenate([extent, extent], axis=-1)[:, None]
    present = batch['kinds'] >= 0
    return losses.Objects(jnp.where(present, batch['kinds'], 0), boxes,
                          present)

  def framed(self, levels: jax.Array, extent: jax.Array) -> tree.Tree:
    """A batch of images in squares, 0 beyond them as in training.

    Args:
      levels: [b, y, x, c] uint8.
      extent: [b, 2] rows and columns that are image.
    """
    batch = {'extent': extent}
    return batch | {'image': self.placed(self.normalized(levels), batch)}

  def inferred(self, outputs: detector.Detected,
               batch: tree.Tree) -> Answers:
    """The best boxes of images."""
    return answers(outputs.queries[-1], batch['extent'], self.top,
                   in_pixels=self.decoder.decoder.in_pixels)


def answers(predicted: losses.Predicted, extent: jax.Array, top: int, *,
            in_pixels: bool = True) -> Answers:
  """The likeliest pairs of a query and a class; a query may be in several.

  Args:
    predicted: classes and boxes of queries.
    extent: [b, 2] rows and columns of pixels that are image.
    top: pairs.
    in_pixels: False: boxes are parts of the image.
  """
  sides = extent[:, ::-1].astype(jnp.float32)
  boxes = predicted.boxes
  if not in_pixels:
    boxes = boxes * jnp.concatenate([sides, sides], axis=-1)[:, None]
  edges = boxes_lib.corners(boxes_lib.clipped(boxes, sides[:, None]))

  def of_rows(classes, edges):
    count = classes.shape[1] * classes.shape[2]
    scores, place = jax.lax.top_k(jax.nn.sigmoid(
        classes.astype(jnp.float32)).reshape(len(classes), count),
                                  min(top, count))
    query, label = place // classes.shape[2], place % classes.shape[2]
    return Answers(scores, label, jnp.take_along_axis(
        edges, query[..., None], axis=1))

  return sharding.by_rows(of_rows, predicted.classes, edges,
                          differentiable=False)
