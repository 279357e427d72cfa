"""Segmentation by queries, and the plain mask decoder on frozen features."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any, Literal

from einops import rearrange
import jax
import jax.numpy as jnp

from dinojax.core import tree
from dinojax.engine import schedules
from dinojax.features import spec
from dinojax.losses import masks as losses
from dinojax.metrics import segmentation as metrics
from dinojax.models.dense import mask_decoder
from dinojax.models.dense import queries
from dinojax.parallel import sharding
from dinojax.probes import task as task_lib
from dinojax.probes.tasks import dense
from dinojax.probes.tasks import segment

CHOICE = dense.CHOICE
OUTPUTS = ('cls', 'registers', 'map')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Queries(segment.Classes):
  """A mask and a class of every query, of which answers are made.

  Attributes:
    decoder: sizes of the network, with its num_classes.
    most_targets: classes of an image that are learned from, at most: those of
      the largest areas.
    num_points: points at which masks are compared.
    answers: result that masks become: classes of pixels ('semantic'), segments
      ('panoptic'), or objects with scores ('instances').
    stuff: classes that are one segment an image, of panoptic answers.

  Source: Mask2Former's losses and targets.
  """

  decoder: Any
  most_targets: int = 64
  num_points: int = losses.NUM_POINTS
  answers: Literal['semantic', 'panoptic', 'instances'] = 'semantic'
  stuff: tuple[int, ...] = ()
  hue: float = 18 / 360

  def loss(self, outputs: list[queries.Predicted], batch: tree.Tree,
           draws: tree.Tree) -> jax.Array:
    """Losses of all predictions, each matched by itself, added."""
    targets = self.targets(batch)
    total = 0.0
    for i, predicted in enumerate(outputs):
      points = losses.draw(
          jax.random.fold_in(draws['points'], i), len(batch['weight']),
          self.most_targets, num_points=self.num_points)
      points = sharding.as_rows_of(points, batch['weight'])
      each = losses.losses(predicted.classes, predicted.masks, targets, points,
                           rows=batch['weight'])
      total += sum(losses.WEIGHTS[name] * value
                   for name, value in each.items())
    return total

  def targets(self, batch: tree.Tree) -> losses.Targets:
    """Targets of a batch: its segments, or the classes of its pixels.

    Args:
      batch: classes [b, y, x]; or kinds [b, t], −1 of none, and masks
        [b, t, y, x / 8], see data.map_crops.
    """
    if 'kinds' not in batch:
      classes = dense.center_padded(  # as the images are
          batch['classes'], self.pixels.patch_px, metrics.IGNORED)
      return targets_of(classes, batch['weight'], self.decoder.num_classes,
                        self.most_targets)
    return sharding.by_rows(
        functools.partial(unpacked, num_columns=batch['image'].shape[2]),
        batch['kinds'], batch['masks'], batch['weight'], differentiable=False)

  def framed(self, levels: jax.Array, extent: jax.Array) -> tree.Tree:
    """A batch of images in squares, black beyond them as in training.

    Args:
      levels: [b, y, x, c] uint8.
      extent: [b, 2] rows and columns that are image.
    """
    del extent
    return {'image': self.pixels.fit(self.normalized(levels))}

  def inferred(self, outputs: list[queries.Predicted],
               batch: tree.Tree) -> queries.Predicted:
    """The last prediction, float32."""
    del batch
    return jax.tree.map(lambda x: x.astype('float32'), outputs[-1])

  def predict(self, outputs: list[queries.Predicted]) -> jax.Array:
    """[b, y, x, k] scores of classes, at a quarter of the image's side.

    Differs: the references resize logits of masks to the image before they are
      added up; this resizes the sums, which is a 150th of the bytes.
    """
    return queries.semantic(outputs[-1])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Annealed(Queries):
  """Queries among the tokens of a ViT, which see less, then all of them.

  Attributes:
    decoder: sizes of the network, with its num_queries and masked.
    anneal: first and last step of the fall from masked to open attention, of
      each block; (): it stays masked.

  Source: EoMT, and PMT after it.
  """

  anneal: tuple[tuple[int, int], ...] = ()

  @functools.cached_property
  def choices(self) -> Mapping[str, spec.FeatureSpec]:
    """All tokens of the blocks."""
    return {CHOICE: spec.FeatureSpec(OUTPUTS, self.layers, self.place)}

  def draw(self, key: jax.Array, step: jax.Array,
           batch: tree.Tree) -> tree.Tree:
    """A key of the points, and the queries that look at all patches."""
    points, key = jax.random.split(key)
    out = {'points': points}
    if self.anneal:
      shape = (len(batch['weight']), self.decoder.num_queries)
      drawn = jax.random.uniform(key, (len(self.anneal), *shape))
      masked = jnp.stack([schedules.Annealed(*steps)(step)
                          for steps in self.anneal])
      out['opened'] = drawn >= masked[:, None, None]
    return out

  def run_as(self, draws: tree.Tree | None) -> Any:
    """The network as it runs in training, or in inference.

    Differs: where it is annealed, attention is open in inference from the
      first step on, as the released models are run; else it is masked in both.
    """
    if draws is None and self.anneal:
      return dataclasses.replace(self.decoder, masked=False)
    return self.decoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Masks(Annealed):
  """Queries in blocks of their own: the plain mask decoder.

  Attributes:
    decoder: sizes of the decoder.

  Source: PMT.
  """

  decoder: mask_decoder.Config

  def init(self, key: jax.Array, widths: Sequence[int],
           choice: str) -> task_lib.Head:
    """Random weights, and norms that change nothing."""
    del widths, choice
    return dict(zip(('params', 'stats'), mask_decoder.init(key, self.decoder),
                    strict=True))

  def outputs(self, head: task_lib.Head, features: task_lib.Features,
              batch: tree.Tree, draws: tree.Tree | None
              ) -> tuple[list[queries.Predicted], tree.Tree]:
    """Predictions before each block, and the last."""
    opened = None if draws is None else draws.get('opened')
    return mask_decoder.apply(
        head['params'], head['stats'], self.run_as(draws),
        [tokens_of(layer) for layer in features],
        features[0]['map'].shape[1:3],
        None if draws is None else batch['weight'],
        None if opened is None else [
            sharding.as_rows_of(each, batch['weight']) for each in opened])


def tokens_of(layer: spec.Outputs) -> jax.Array:
  """[b, p + n, d] CLS, registers and patches of a layer."""
  return jnp.concatenate([
      layer['cls'][:, None], layer['registers'],
      rearrange(layer['map'], 'b y x d -> b (y x) d')], axis=1)


def unpacked(kinds: jax.Array, masks: jax.Array, weight: jax.Array,
             num_columns: int) -> losses.Targets:
  """Targets of masks that are packed, see data.map_crops.

  Args:
    kinds: [b, t] classes, −1 of none.
    masks: [b, t, y, x / 8] uint8, the first column in the highest bit.
    weight: [b], 0 for images that are padding and have no targets.
    num_columns: columns, x.
  """
  present = (kinds >= 0) & (weight > 0)[:, None]
  bits = jnp.arange(7, -1, -1, dtype=jnp.uint8)
  whole = (masks[..., None] >> bits[None, None, None, None]) & 1
  whole = rearrange(whole, 'b t y x k -> b t y (x k)')[..., :num_columns]
  return losses.Targets(
      jnp.where(present, kinds, 0), whole * present[..., None, None], present)


def targets_of(labels: jax.Array, weight: jax.Array, num_classes: int,
               most: int) -> losses.Targets:
  """A mask of every class of an image; pixels without a label are in none.

  Args:
    labels: [b, y, x] classes, or IGNORED.
    weight: [b], 0 for images that are padding and have no targets.
    num_classes: classes, k.
    most: targets of an image, those of the largest areas.
  """
  def of_image(labels, weight):
    area = jnp.bincount(jnp.where(labels == metrics.IGNORED, num_classes,
                                  labels).ravel(), length=num_classes + 1)
    area, kinds = jax.lax.top_k(area[:num_classes], min(most, num_classes))
    kinds = jnp.pad(kinds, (0, most - len(kinds)))
    present = jnp.pad(area > 0, (0, most - len(area))) & (weight > 0)
    return losses.Targets(
        jnp.where(present, kinds, 0).astype(jnp.int32),
        (labels[None] == kinds[:, None, None]) & present[:, None, None],
        present)

  return sharding.by_rows(
      jax.vmap(of_image), labels.astype(jnp.int32), weight,
      differentiable=False)
