"""Losses of boxes that are matched to objects, of every prediction alone.

Objects of an image fill [b, t, …], as `present` tells. A prediction is a class
logit for every class, each a yes or no, and a box.
"""

from collections.abc import Mapping
import dataclasses

import jax
import jax.numpy as jnp
import optax

from dinojax.losses import assignment
from dinojax.losses import boxes as boxes_lib
from dinojax.parallel import sharding

Array = jax.Array
ALPHA, GAMMA = 0.25, 2.0
# Of changes of boxes; of boxes as parts of an image L1 weighs five times this.
WEIGHTS: Mapping[str, float] = {'class': 2.0, 'box': 1.0, 'overlap': 2.0}
PARTS_WEIGHTS: Mapping[str, float] = WEIGHTS | {'box': 5.0}
_EPSILON = 1e-8
_WORST = 1e6


@dataclasses.dataclass(frozen=True)
class Objects:
  """Objects of images.

  Attributes:
    classes: [b, t] int32.
    boxes: [b, t, 4], in the units of the predictions.
    present: [b, t] bool.
  """

  classes: Array
  boxes: Array
  present: Array

  def as_foreground(self) -> 'Objects':
    """The same objects, all of the class 0."""
    return dataclasses.replace(self, classes=jnp.zeros_like(self.classes))


@dataclasses.dataclass(frozen=True)
class Predicted:
  """Boxes of queries.

  Attributes:
    classes: [b, q, k] logits.
    boxes: [b, q, 4].
    before: [b, q, 4] boxes that were changed; None: boxes are parts of an
      image, and L1 compares them.
    changes: [b, q, 4] changes of `before`, which L1 compares; or None.
  """

  classes: Array
  boxes: Array
  before: Array | None = None
  changes: Array | None = None


jax.tree_util.register_dataclass(
    Objects, data_fields=('classes', 'boxes', 'present'), meta_fields=())
jax.tree_util.register_dataclass(
    Predicted, data_fields=('classes', 'boxes', 'before', 'changes'),
    meta_fields=())


def losses(predicted: Predicted, objects: Objects, *, copies: int = 1,
           rows: Array | None = None,
           weights: Mapping[str, float] | None = None) -> dict[str, Array]:
  """Losses of one prediction over the whole batch.

  Args:
    predicted: see Predicted.
    objects: see Objects.
    copies: queries that learn an object.
    rows: [b] weights of the images, 0 for padding; None: all count.
    weights: weights of class, box and overlap in the costs of the matching;
      None: those of what is predicted.

  Returns:
    class, box and overlap, not weighted, divided by the number of objects in
    the batch, every copy of one counted, at least 1.

  Source: Plain-DETR.
  """
  if rows is not None:
    objects = dataclasses.replace(
        objects, present=objects.present & (rows > 0)[:, None])
  wanted = match(predicted, objects, copies, weights)
  each = sharding.by_rows(jax.vmap(_of_image), predicted, objects, wanted)
  if rows is not None:
    each = {name: jnp.where(rows > 0, value, 0.0)
            for name, value in each.items()}
  count = jnp.maximum(
      copies * jnp.sum(objects.present.astype(jnp.float32)), 1)
  return {name: value.sum() / count for name, value in each.items()}


def weighted(each: Mapping[str, Array],
             weights: Mapping[str, float]) -> Array:
  """The sum of losses by their weights."""
  return sum(weights[name] * value for name, value in each.items())


def usual_weights(predicted: Predicted) -> Mapping[str, float]:
  """Weights for what L1 compares."""
  return PARTS_WEIGHTS if predicted.changes is None else WEIGHTS


def match(predicted: Predicted, objects: Objects, copies: int = 1,
          weights: Mapping[str, float] | None = None) -> Array:
  """[b, q] the object of every query; −1: none.

  The sum of the costs is least; see `losses` for the arguments. No gradient
  passes.
  """
  weights = weights or usual_weights(predicted)

  def of_image(predicted, objects):
    costs = cost(predicted, objects, weights)
    return assignment.assign(costs.T, objects.present, copies)

  return sharding.by_rows(
      jax.vmap(of_image), *jax.tree.map(
          jax.lax.stop_gradient, (predicted, objects)), differentiable=False)


def cost(predicted: Predicted, objects: Objects,
         weights: Mapping[str, float]) -> Array:
  """[q, t] costs of pairing a query with an object, in one image.

  Args:
    predicted: classes [q, k], boxes [q, 4] and the rest, of one image.
    objects: classes [t] and the rest, of one image.
    weights: see `losses`.
  """
  share = jax.nn.sigmoid(predicted.classes.astype(jnp.float32))
  yes = ALPHA * (1 - share) ** GAMMA * -jnp.log(share + _EPSILON)
  no = (1 - ALPHA) * share ** GAMMA * -jnp.log(1 - share + _EPSILON)
  targets = jnp.where(objects.present[:, None], objects.boxes, 1.0)[None]
  ours = predicted.boxes[:, None]
  if predicted.changes is None:
    away = jnp.abs(ours - targets)
  else:
    away = jnp.abs(predicted.changes[:, None] - boxes_lib.change(
        predicted.before[:, None], targets))
  out = (weights['class'] * (yes - no)[:, objects.classes]
         + weights['box'] * away.sum(-1)
         - weights['overlap'] * boxes_lib.generalized_overlap(ours, targets))
  return jnp.nan_to_num(jnp.clip(out, -_WORST, _WORST), nan=_WORST)


def focal(logits: Array, targets: Array) -> Array:
  """[...] sigmoid focal loss of logits against targets 0 or 1.

  Source: RetinaNet (arXiv 1708.02002), with its alpha and gamma.
  """
  logits = logits.astype(jnp.float32)
  crossed = optax.sigmoid_binary_cross_entropy(logits, targets)
  share = jax.nn.sigmoid(logits)
  wrong = share * (1 - targets) + (1 - share) * targets
  return crossed * wrong ** GAMMA * (
      ALPHA * targets + (1 - ALPHA) * (1 - targets))


def _of_image(predicted: Predicted, objects: Objects,
              wanted: Array) -> dict[str, Array]:
  """Sums of an image.

  Args:
    predicted: see `cost`.
    objects: see `cost`.
    wanted: [q] the object of every query, −1 for none.
  """
  matched, index = wanted >= 0, jnp.maximum(wanted, 0)
  kinds = jnp.arange(predicted.classes.shape[1])[None]
  is_class = matched[:, None] & (objects.classes[index][:, None] == kinds)
  targets = jnp.where(matched[:, None], objects.boxes[index], 1.0)
  ours = predicted.boxes.astype(jnp.float32)
  if predicted.changes is None:
    away = jnp.abs(ours - targets)
  else:
    away = jnp.abs(predicted.changes - boxes_lib.change(
        predicted.before, targets))
  total = lambda x: jnp.sum(jnp.where(matched, x, 0.0))
  return {'class': jnp.sum(focal(
      predicted.classes, is_class.astype(jnp.float32))),
          'box': total(away.sum(-1)), 'overlap': total(
              1 - boxes_lib.generalized_overlap(ours, targets))}
