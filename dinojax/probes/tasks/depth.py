"""Depth: classes that stand for depths, by linear and by DPT heads."""

from collections.abc import Mapping, Sequence
import dataclasses

import jax
import jax.numpy as jnp

from dinojax.augment import distortion
from dinojax.core import tree
from dinojax.losses import affine_depth
from dinojax.losses import depth as losses
from dinojax.models.dense import bins
from dinojax.models.dense import dpt
from dinojax.probes import task as task_lib
from dinojax.probes.tasks import dense

CHOICE = dense.CHOICE


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Metres(dense.Dense):
  """Metres for every pixel; batches have depth [b, y, x], 0 where unknown.

  Attributes:
    min_depth: depth of the first class, metres.
    max_depth: depth of the last.
    spacing: how the classes lie between them, see bins.bins.
    normalize: how logits become shares, see bins.expected_depth.
    weights: (name, weight) of each loss, see losses.depth.
    group: images that share a mean and a variance in SigLoss; None: all.
    plain_steps: first steps without the variance.
    reach: depth up to which pixels teach, metres; None: all known ones.
    clamps: True keeps predicted depths between the first and the last.
    distorts: True changes colours in training.
    brightness: range of the factor of brightness.
  """

  min_depth: float = 1e-3
  max_depth: float = 10.0
  spacing: str = 'linear'
  normalize: str = 'linear'
  weights: tuple[tuple[str, float], ...] = (('sig', 1.0),)
  group: int | None = None
  plain_steps: int = 100
  reach: float | None = None
  clamps: bool = False
  distorts: bool = False
  brightness: tuple[float, float] = distortion.BRIGHTNESS

  def prepare(self, batch: tree.Tree, key: jax.Array) -> tree.Tree:
    """Images with other colours, 0 outside, in whole patches."""
    images = batch['image']
    if self.distorts:
      images = self.normalized(distortion.recolor(
          self.pixels.levels(images), key, self.brightness))
    return batch | {'image': self.placed(images, batch)}

  def draw(self, key: jax.Array, step: jax.Array,
           batch: tree.Tree) -> tree.Tree:
    """Factors of channels, and whether the loss has its variance."""
    return super().draw(key, step, batch) | {
        'with_variance': step >= self.plain_steps}

  def metres(self, outputs: jax.Array) -> jax.Array:
    """[b, y, x] depths of logits, on their grid."""
    return bins.depth(
        outputs, min_depth=self.min_depth, max_depth=self.max_depth,
        spacing=self.spacing, normalize=self.normalize)

  def loss(self, outputs: jax.Array, batch: tree.Tree,
           draws: tree.Tree | None) -> jax.Array:
    """Weighted sum of losses at the size of the depths."""
    target = batch['depth']
    predicted = self.pixels.resize(
        self.metres(outputs)[..., None], target.shape[1:])[..., 0]
    valid = losses.known(target, max_depth=self.reach) & (
        batch['weight'] > 0)[:, None, None]
    variance = True if draws is None else draws['with_variance']
    return losses.total(dict(self.weights), predicted, target, valid,
                        with_variance=variance, group=self.group)

  def predict(self, outputs: jax.Array) -> jax.Array:
    """[b, y, x, 1] metres of patches."""
    depth = self.metres(outputs)
    if self.clamps:
      depth = jnp.clip(depth, self.min_depth, self.max_depth)
    return depth[..., None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Depth(_Metres, dense.Linear):
  """Linear depth.

  Source: the linear depth heads of DINOv2 (without norm) and DINOv3.
  """


@dataclasses.dataclass(frozen=True, kw_only=True)
class DptDepth(_Metres):
  """Depth by a DPT head, on four blocks.

  Attributes:
    head: sizes of the head; of one output, depths are regressed.

  Source: the DPT heads of DINOv2 (regressed) and DINOv3 (classes).
  """

  head: dpt.Config = dpt.Config()
  layers: int | tuple[int, ...] = dpt.LEVELS

  @property
  def joins_cls(self) -> bool:
    """True: CLS is read out with the maps."""
    return self.head.readout != 'ignore'

  def init(self, key: jax.Array, widths: Sequence[int],
           choice: str) -> task_lib.Head:
    """Random weights, and norms that change nothing.

    Differs: regressed depths begin at a metre, not around 0, where ReLU and
      its gradient are 0 for half of the pixels.
    """
    del choice
    params, stats = dpt.init(key, self.head, widths)
    if self.head.num_outputs == 1:
      last = params['head']['conv2']
      params['head']['conv2'] = last | {'bias': jnp.ones_like(last['bias'])}
    return {'params': params, 'stats': stats}

  def outputs(self, head: task_lib.Head, features: task_lib.Features,
              batch: tree.Tree, draws: tree.Tree | None
              ) -> tuple[jax.Array, tree.Tree]:
    """[b, y, x, k] on a grid sixteen times as fine as patches, or more."""
    return dpt.apply(
        head['params'], head['stats'], self.head,
        [layer['map'] for layer in features],
        [layer['cls'] for layer in features] if self.joins_cls else None,
        None if draws is None else batch['weight'])


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelativeDepth(DptDepth):
  """Inverse depth, known up to a scale and a shift of each image.

  Attributes:
    gradient_weight: weight of the loss of gradients.
    ignored: share of the pixels of an image that count nowhere, those of the
      largest errors.

  Source: Depth Anything V2, whose backbones are trained as well.
  """

  head: dpt.Config = dpt.Config(num_outputs=1)
  gradient_weight: float = 2.0
  ignored: float = 0.0

  def metres(self, outputs: jax.Array) -> jax.Array:
    """[b, y, x] inverse depths, of no unit."""
    return bins.regressed_depth(outputs, min_depth=0.0)

  def loss(self, outputs: jax.Array, batch: tree.Tree,
           draws: tree.Tree | None) -> jax.Array:
    """The loss of standardised maps at the size of the depths."""
    del draws
    target = batch['depth']
    predicted = self.pixels.resize(
        self.metres(outputs)[..., None], target.shape[1:])[..., 0]
    valid = losses.known(target) & (batch['weight'] > 0)[:, None, None]
    return affine_depth.robust(
        predicted, 1 / jnp.where(valid, target, 1.0), valid,
        gradient_weight=self.gradient_weight, ignored=self.ignored)

  def predict(self, outputs: jax.Array) -> jax.Array:
    """[b, y, x, 1] inverse depths of patches."""
    return self.metres(outputs)[..., None]


Task = Depth | DptDepth


def read_layers(depth_of_model: int, count: int) -> int | tuple[int, ...]:
  """The last block, or several evenly over the backbone, from the first on.

  Source: DINOv2 and DINOv3; of 24 blocks 4, 11, 17 and 23, by a slip that the
    released heads keep.
  """
  if count == 1:
    return 1
  if (depth_of_model, count) == (24, 4):
    return 4, 11, 17, 23
  return tuple(i * depth_of_model // count - 1 for i in range(1, count + 1))


def weights(values: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
  """Losses whose weight is not 0."""
  return tuple((name, weight) for name, weight in values.items() if weight)
