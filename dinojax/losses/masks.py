"""Losses of queries that become masks: matched to targets, at sampled points.

A target is a class and a mask. Targets of an image fill [b, t, …] from the
front, as `present` tells. Points are (x, y) in parts of the image; a mask has
values at the centres of its pixels, and is 0 outside.
"""

from collections.abc import Mapping
import dataclasses

import jax
import jax.numpy as jnp
import optax

from dinojax.kernels import resample
from dinojax.losses import assignment
from dinojax.parallel import sharding

Array = jax.Array
WEIGHTS = {'class': 2.0, 'mask': 5.0, 'dice': 5.0}
NO_OBJECT = 0.1  # weight of queries without a target in the loss of classes
NUM_POINTS, OVERSAMPLING, UNCERTAIN = 12_544, 3, 0.75
_WORST = 1e6  # cost of a pair that has none
_HIGHEST = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class Targets:
  """Masks of images.

  Attributes:
    classes: [b, t] int32.
    masks: [b, t, y, x] 0 or 1, of any dtype.
    present: [b, t] bool; targets that are none are 0 and False.
  """

  classes: Array
  masks: Array
  present: Array


@dataclasses.dataclass(frozen=True)
class Points:
  """Points of a prediction, in parts of the image.

  Attributes:
    matching: [b, p, 2] of an image, shared by its masks.
    candidates: [b, t, o·p, 2] of a target, of which the uncertain ones stay.
    fresh: [b, t, p − k, 2] beside them.
  """

  matching: Array
  candidates: Array
  fresh: Array


jax.tree_util.register_dataclass(
    Targets, data_fields=('classes', 'masks', 'present'), meta_fields=())
jax.tree_util.register_dataclass(
    Points, data_fields=('matching', 'candidates', 'fresh'), meta_fields=())


def draw(key: Array, num_images: int, num_targets: int, *,
         num_points: int = NUM_POINTS, oversampling: float = OVERSAMPLING,
         uncertain: float = UNCERTAIN) -> Points:
  """Uniform points of a prediction.

  Args:
    key: random key.
    num_images: images of the batch.
    num_targets: targets of an image, at most.
    num_points: points of a mask.
    oversampling: candidates for each of them.
    uncertain: share of the points that are the most uncertain candidates.
  """
  fresh = num_points - int(uncertain * num_points)
  shapes = ((num_images, num_points),
            (num_images, num_targets, int(oversampling * num_points)),
            (num_images, num_targets, fresh))
  return Points(*(jax.random.uniform(k, (*shape, 2)) for k, shape in zip(
      jax.random.split(key, 3), shapes, strict=True)))


def losses(classes: Array, masks: Array, targets: Targets, points: Points, *,
           rows: Array | None = None, no_object: float = NO_OBJECT,
           weights: Mapping[str, float] = WEIGHTS) -> dict[str, Array]:
  """Losses of one prediction, each over the whole batch.

  Args:
    classes: [b, q, k + 1] logits, the last one of no object.
    masks: [b, q, y, x] logits.
    targets: see Targets, of any size.
    points: see Points.
    rows: [b] weights of the images, 0 for padding; None: all count.
    no_object: weight of queries without a target.
    weights: weights of class, mask and dice in the costs of the matching.

  Returns:
    class, mask and dice, not weighted. Masks are divided by the number of
    targets in the batch, at least 1.

  Source: Mask2Former; its form in transformers, in DINOv2 and in EoMT.
  """
  query = match(classes, masks, targets, points.matching, weights)
  numbers = sharding.by_rows(
      lambda *rows: jax.vmap(lambda *row: _of_image(*row, no_object))(*rows),
      classes, masks, targets, points, query)
  if rows is not None:
    numbers = {name: jnp.where(rows > 0, value, 0.0)
               for name, value in numbers.items()}
  total = {name: value.sum() for name, value in numbers.items()}
  count = jnp.maximum(total['targets'], 1)
  return {'class': total['class'] / jnp.maximum(total['weight'], 1e-6),
          'mask': total['mask'] / count, 'dice': total['dice'] / count}


def match(classes: Array, masks: Array, targets: Targets, points: Array,
          weights: Mapping[str, float] = WEIGHTS) -> Array:
  """[b, t] the query of every target; −1: none, of targets that are none too.

  The sum of the costs is least; see `losses` for the arguments. No gradient
  passes.
  """
  def of_image(classes, masks, labels, wanted, present, points):
    costs = cost(classes, masks, labels, wanted, points, weights)
    target = assignment.assign(costs.T, present)  # of every query
    taken = target[None] == jnp.arange(len(labels))[:, None]
    return jnp.where(taken.any(1), taken.argmax(1), -1).astype(jnp.int32)

  return sharding.by_rows(
      jax.vmap(of_image), *jax.tree.map(jax.lax.stop_gradient, (
          classes, masks, targets.classes, targets.masks, targets.present,
          points)), differentiable=False)


def cost(classes: Array, masks: Array, labels: Array, wanted: Array,
         points: Array, weights: Mapping[str, float] = WEIGHTS) -> Array:
  """[q, t] costs of pairing a query with a target, in one image.

  Args:
    classes: [q, k + 1] logits.
    masks: [q, y, x] logits.
    labels: [t] classes.
    wanted: [t, y, x] masks of the targets, of any size.
    points: [p, 2] points at which masks are compared.
    weights: see `losses`.
  """
  share = jax.nn.softmax(classes.astype(jnp.float32), axis=-1)
  ours, theirs = sample(masks, points), sample(wanted, points)
  product = lambda x, y: jnp.einsum('qp,tp->qt', x, y, precision=_HIGHEST)
  crossed = product(jax.nn.softplus(-ours), theirs) + product(
      jax.nn.softplus(ours), 1 - theirs)
  inside = jax.nn.sigmoid(ours)
  dice = 1 - (2 * product(inside, theirs) + 1) / (
      inside.sum(1)[:, None] + theirs.sum(1)[None] + 1)
  out = (weights['mask'] * crossed / points.shape[0] + weights['dice'] * dice
         - weights['class'] * share[:, labels])
  return jnp.nan_to_num(jnp.clip(out, -_WORST, _WORST), nan=_WORST)


def sample(maps: Array, points: Array) -> Array:
  """[k, p] values of maps [k, y, x] at points [p, 2], bilinear, 0 outside.

  Source: torch's grid_sample, its corners not aligned.
  """
  flat = maps.reshape(len(maps), -1).T  # rows are read at once
  place, share = resample.corners(maps.shape[1:], points, axis=0)
  return jnp.sum(flat[place].astype(jnp.float32) * share[..., None], axis=0).T


def sample_each(maps: Array, points: Array) -> Array:
  """[k, p] values of each map [k, y, x] at points of its own [k, p, 2]."""
  def of_map(flat, points):
    place, share = resample.corners(maps.shape[1:], points, axis=0)
    return jnp.sum(flat[place].astype(jnp.float32) * share, axis=0)

  return jax.vmap(of_map)(maps.reshape(len(maps), -1), points)


def uncertain_points(masks: Array, points: Points) -> Array:
  """[t, p, 2] of an image: the most uncertain candidates, then fresh ones.

  Args:
    masks: [t, y, x] logits of the targets' queries.
    points: points of the image.
  """
  count = points.matching.shape[0] - points.fresh.shape[1]
  logits = sample_each(masks, points.candidates)
  _, best = jax.lax.top_k(-jnp.abs(logits), count)
  taken = jnp.take_along_axis(points.candidates, best[..., None], axis=1)
  return jnp.concatenate([taken, points.fresh], axis=1)


def _of_image(classes: Array, masks: Array, targets: Targets, points: Points,
              query: Array, no_object: float) -> dict[str, Array]:
  """Sums of an image: losses, weights of its queries, targets."""
  matched = query >= 0
  # [q, t]: a query has a target at most.
  pairs = (jnp.arange(len(classes))[:, None] == query[None]) & matched[None]
  has_any = pairs.any(1)
  none = classes.shape[-1] - 1
  label = jnp.where(has_any, (pairs * targets.classes[None]).sum(1), none)
  weight = jnp.where(has_any, 1.0, no_object)
  crossed = optax.softmax_cross_entropy_with_integer_labels(
      classes.astype(jnp.float32), label)
  chosen = masks.astype(jnp.float32)[jnp.maximum(query, 0)]
  at = jax.lax.stop_gradient(uncertain_points(
      jax.lax.stop_gradient(chosen), points))
  ours, theirs = sample_each(chosen, at), sample_each(targets.masks, at)
  each = jnp.mean(jax.nn.softplus(ours) - theirs * ours, axis=1)
  inside = jax.nn.sigmoid(ours)
  dice = 1 - (2 * (inside * theirs).sum(1) + 1) / (
      inside.sum(1) + theirs.sum(1) + 1)
  total = lambda x: jnp.sum(jnp.where(matched, x, 0.0))
  return {'class': jnp.sum(weight * crossed), 'weight': jnp.sum(weight),
          'mask': total(each), 'dice': total(dice),
          'targets': jnp.sum(targets.present.astype(jnp.float32))}
