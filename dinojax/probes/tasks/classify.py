"""Linear classification, of one class an image or of several."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import optax

from dinojax.core import tree
from dinojax.features import spec
from dinojax.probes import task as task_lib

LOSSES = ('ce', 'bce')
_WEIGHT_STD = 0.01


@dataclasses.dataclass(frozen=True)
class Classify:
  """A linear layer on CLS of the last blocks, and the mean patch or not.

  Batches have target: [b] int32, or for 'bce' [b, k] of zeros and ones; and
  weight [b], 0 for rows that are padding.

  Attributes:
    num_classes: classes, k.
    layers: numbers of last blocks that are joined, one choice after another.
    averages: for each, with or without the mean patch of the last block.
    loss_name: 'ce': one class an image; 'bce': several.
    label_smoothing: share of a target that all classes divide, of 'ce'.

  Source: the linear probe of DINOv2 (layers 1 and 4, both averages) and
    DINOv3 (one layer, with the mean patch).
  """

  num_classes: int
  layers: tuple[int, ...] = (1,)
  averages: tuple[bool, ...] = (True,)
  loss_name: str = 'ce'
  label_smoothing: float = 0.0

  @functools.cached_property
  def choices(self) -> Mapping[str, spec.FeatureSpec]:
    """Features by name, such as 'n4_avgpool'."""
    return {choice_name(n, average): spec.FeatureSpec(
        ('cls', 'mean') if average else ('cls',), n, 'normed')
            for n, average in itertools.product(self.layers, self.averages)}

  def init(self, key: jax.Array, widths: Sequence[int],
           choice: str) -> task_lib.Head:
    """Small random weights [k, d], no bias.

    Classes lead: the heads of a sweep are then one product of all their
    classes with the features, and so is its gradient, with nothing turned.
    """
    width = sum(widths) + (widths[-1] if is_averaged(choice) else 0)
    return {'params': {
        'weight': _WEIGHT_STD * jax.random.normal(
            key, (self.num_classes, width)),
        'bias': jnp.zeros(self.num_classes)}, 'stats': {}}

  def prepare(self, batch: tree.Tree, key: jax.Array) -> tree.Tree:
    """Nothing is changed."""
    del key
    return batch

  def draw(self, key: jax.Array, step: jax.Array,
           batch: tree.Tree) -> tree.Tree:
    """Nothing is random."""
    return {}

  def outputs(self, head: task_lib.Head, features: task_lib.Features,
              batch: tree.Tree, draws: tree.Tree | None
              ) -> tuple[jax.Array, tree.Tree]:
    """[b, k] logits, float32."""
    del batch, draws
    joined = spec.probe_input(features, len(features), 'mean' in features[-1])
    params = head['params']
    logits = jnp.einsum('kd,bd->kb', params['weight'], joined, precision=(
        'highest')) + params['bias'][:, None]
    return logits.T, head['stats']

  def loss(self, outputs: jax.Array, batch: tree.Tree,
           draws: tree.Tree | None) -> jax.Array:
    """Mean over the rows that count; of 'bce' over rows and classes."""
    del draws
    if self.loss_name == 'ce' and self.label_smoothing:
      targets = optax.smooth_labels(jax.nn.one_hot(
          batch['target'], self.num_classes), self.label_smoothing)
      each = optax.softmax_cross_entropy(outputs, targets)
    elif self.loss_name == 'ce':
      # Classes first, as they are computed. And no gather, whose gradient is
      # a scatter: of many heads it costs more than the product.
      logits = outputs.T
      right = batch['target'][None] == jnp.arange(self.num_classes)[:, None]
      each = jax.nn.logsumexp(logits, axis=0) - jnp.sum(
          jnp.where(right, logits, 0.0), axis=0)
    else:
      each = jnp.mean(optax.sigmoid_binary_cross_entropy(
          outputs, batch['target'].astype(jnp.float32)), axis=-1)
    weight = batch['weight'].astype(jnp.float32)
    return jnp.sum(each * weight) / jnp.maximum(jnp.sum(weight), 1.0)

  def taken(self, backbone: tree.Tree) -> tree.Tree:
    """Nothing is of the backbone."""
    del backbone
    return {}

  def settle(self, params: tree.Tree) -> tree.Tree:
    """Linear layers have no limits."""
    return params


def choice_name(num_layers: int, average: bool) -> str:
  """'n4_avgpool', or 'n4' without the mean patch."""
  return f'n{num_layers}' + ('_avgpool' if average else '')


def is_averaged(choice: str) -> bool:
  """Tells whether a choice has the mean patch."""
  return choice.endswith('_avgpool')
