"""Linear semantic segmentation: a batch norm and a linear layer on patches."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

from dinojax.core import tree
from dinojax.features import spec
from dinojax.kernels import resample
from dinojax.metrics import segmentation as metrics
from dinojax.probes import task as task_lib

_WEIGHT_STD = 0.01
CHOICE = 'patches'
EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class Segment:
  """A linear layer on the normalised patches of one or several blocks.

  Batches have label [b, y, x] int32, IGNORED where nothing is known, and
  weight [b], 0 for rows that are padding.

  Attributes:
    num_classes: classes, k.
    width: width of all layers together.
    layers: how many of the last blocks, or which.
    dropout: probability that a channel of an image is dropped in training.
    momentum: part of a batch in the running statistics.

  Source: DINOv3's LinearHead and its training (one layer), DINOv2's BNHead
    (one, or four joined).
  """

  num_classes: int
  width: int
  layers: int | tuple[int, ...] = 1
  dropout: float = 0.1
  momentum: float = 0.1

  @functools.cached_property
  def choices(self) -> Mapping[str, spec.FeatureSpec]:
    """Maps of the blocks, after the final norm."""
    return {CHOICE: spec.FeatureSpec(('map',), self.layers, 'normed')}

  def init(self, key: jax.Array, widths: Sequence[int],
           choice: str) -> task_lib.Head:
    """Small random weights, no bias, and a norm that changes nothing."""
    del choice
    width = sum(widths)
    return {
        'params': {
            'scale': jnp.ones(width), 'shift': jnp.zeros(width),
            'kernel': _WEIGHT_STD * jax.random.normal(
                key, (width, self.num_classes)),
            'bias': jnp.zeros(self.num_classes)},
        'stats': {'mean': jnp.zeros(width), 'variance': jnp.ones(width)}}

  def prepare(self, batch: tree.Tree, key: jax.Array) -> tree.Tree:
    """Nothing is changed."""
    del key
    return batch

  def draw(self, key: jax.Array, step: jax.Array,
           batch: tree.Tree) -> tree.Tree:
    """Factors [b, d] of channels: 0, or what makes up for those."""
    del step
    shape = (batch['weight'].shape[0], self.width)
    keep = jax.random.bernoulli(key, 1 - self.dropout, shape)
    return {'channels': keep / (1 - self.dropout)}

  def outputs(self, head: task_lib.Head, features: task_lib.Features,
              batch: tree.Tree, draws: tree.Tree | None
              ) -> tuple[jax.Array, tree.Tree]:
    """[b, y, x, k] logits on the grid of the first layer.

    In training the batch's own statistics normalise, and enter the running
    ones, with which everything else is normalised.
    """
    joined = join([layer['map'] for layer in features])
    params, stats = head['params'], head['stats']
    if draws is not None:
      joined = joined * draws['channels'][:, None, None]
      mean, variance = moments(joined, batch['weight'])
      count = jnp.sum(batch['weight']) * joined.shape[1] * joined.shape[2]
      unbiased = variance * count / jnp.maximum(count - 1, 1)
      mix = lambda old, new: old + self.momentum * (new - old)
      stats = {'mean': mix(stats['mean'], mean),
               'variance': mix(stats['variance'], unbiased)}
    else:
      mean, variance = stats['mean'], stats['variance']
    row = lambda x: x[None, None, None]
    normed = (joined - row(mean)) * jax.lax.rsqrt(
        row(variance) + EPSILON) * row(params['scale']) + row(params['shift'])
    return jnp.einsum('byxd,dk->byxk', normed, params['kernel'],
                      precision='highest') + row(params['bias']), stats

  def loss(self, outputs: jax.Array, batch: tree.Tree,
           draws: tree.Tree | None) -> jax.Array:
    """Cross-entropy at the size of the labels, over all of their pixels.

    Pixels without a label add nothing and count all the same.
    """
    del draws
    label = batch['label']
    logits = resample.resize_linear(outputs, label.shape[1:])
    known = label != metrics.IGNORED
    each = optax.softmax_cross_entropy_with_integer_labels(
        logits, jnp.where(known, label, 0))
    weight = batch['weight'].astype(jnp.float32)[:, None, None]
    pixels = jnp.sum(weight) * label.shape[1] * label.shape[2]
    return jnp.sum(jnp.where(known, each, 0.0) * weight) / jnp.maximum(
        pixels, 1.0)

  def settle(self, params: tree.Tree) -> tree.Tree:
    """A linear layer has no limits."""
    return params


def join(maps: Sequence[jax.Array]) -> jax.Array:
  """[b, y, x, Σ d] maps of several layers on the grid of the first, float32."""
  size = maps[0].shape[1:3]
  return jnp.concatenate([
      (x if x.shape[1:3] == size else resample.resize_linear(x, size)).astype(
          jnp.float32) for x in maps], axis=-1)


def moments(maps: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
  """[d] mean and variance over the pixels of the rows that count."""
  weight = weight.astype(jnp.float32)[:, None, None, None]
  count = jnp.maximum(jnp.sum(weight) * maps.shape[1] * maps.shape[2], 1.0)
  mean = jnp.sum(maps * weight, axis=(0, 1, 2)) / count
  spread = jnp.square(maps - mean[None, None, None]) * weight
  return mean, jnp.sum(spread, axis=(0, 1, 2)) / count
