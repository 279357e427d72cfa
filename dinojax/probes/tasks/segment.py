"""Linear semantic segmentation: a batch norm and a linear layer on patches."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from dinojax.augment import distortion
from dinojax.core import tree
from dinojax.metrics import segmentation as metrics
from dinojax.probes.tasks import dense

CHOICE = dense.CHOICE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classes(dense.Dense):
  """A class for every pixel; batches have classes [b, y, x], or IGNORED.

  Attributes:
    distorts: True changes colours in training.
    hue: greatest shift of hue, in turns of the colour circle.
  """

  distorts: bool = False
  hue: float = distortion.HUE

  def prepare(self, batch: tree.Tree, key: jax.Array) -> tree.Tree:
    """Images with other colours, 0 outside, in whole patches."""
    images = batch['image']
    if self.distorts:
      images = self.normalized(distortion.distort(
          self.pixels.levels(images), key, self.hue))
    return batch | {'image': self.placed(images, batch)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment(Classes, dense.Linear):
  """Linear segmentation.

  Source: DINOv3's LinearHead and its training (one layer), DINOv2's BNHead
    (one, or four joined).
  """

  def loss(self, outputs: jax.Array, batch: tree.Tree,
           draws: tree.Tree | None) -> jax.Array:
    """Cross-entropy at the size of the labels, over all of their pixels.

    Pixels without a label add nothing and count all the same.
    """
    del draws
    label = batch['classes'].astype(jnp.int32)
    logits = self.pixels.resize(outputs, label.shape[1:])
    known = label != metrics.IGNORED
    each = optax.softmax_cross_entropy_with_integer_labels(
        logits, jnp.where(known, label, 0))
    weight = batch['weight'].astype(jnp.float32)[:, None, None]
    pixels = jnp.sum(weight) * label.shape[1] * label.shape[2]
    return jnp.sum(jnp.where(known, each, 0.0) * weight) / jnp.maximum(
        pixels, 1.0)

  def predict(self, outputs: jax.Array) -> jax.Array:
    """[b, y, x, k] logits of patches."""
    return outputs
