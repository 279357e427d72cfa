"""Boxes as arrays: their two forms, how far they overlap, and their changes.

A box is (centre x, centre y, width, height) unless it is given by its corners
(left, top, right, bottom). Lengths are pixels, or parts of an image.
"""

import math

import jax
import jax.numpy as jnp

Array = jax.Array
# Natural logarithm of the greatest change of a side.
MOST_GROWTH = math.log(1 / 0.016)
_MARGIN = 0.1  # added to sides where a change is measured, and nowhere else
_EPSILON = 1e-5


def corners(boxes: Array) -> Array:
  """[..., 4] corners of boxes."""
  center, half = boxes[..., :2], boxes[..., 2:] / 2
  return jnp.concatenate([center - half, center + half], axis=-1)


def of_corners(edges: Array) -> Array:
  """[..., 4] boxes with these corners."""
  low, high = edges[..., :2], edges[..., 2:]
  return jnp.concatenate([(low + high) / 2, high - low], axis=-1)


def clipped(boxes: Array, extent: Array) -> Array:
  """The parts of boxes [..., 4] inside an image.

  Args:
    boxes: boxes.
    extent: [..., 2] width and height of the image.
  """
  edges = corners(boxes)
  zero = jnp.zeros_like(extent)
  return of_corners(jnp.concatenate([
      jnp.clip(edges[..., :2], zero, extent),
      jnp.clip(edges[..., 2:], zero, extent)], axis=-1))


def overlap(boxes: Array, others: Array) -> tuple[Array, Array]:
  """Intersection over union of boxes with others, and the area of the union.

  Args:
    boxes: [..., 4].
    others: [..., 4], to which they are broadcast; for all pairs, boxes
      [n, 1, 4] and others [1, m, 4].
  """
  ours, theirs = corners(boxes), corners(others)
  low = jnp.maximum(ours[..., :2], theirs[..., :2])
  high = jnp.minimum(ours[..., 2:], theirs[..., 2:])
  both = jnp.prod(jnp.maximum(high - low, 0), axis=-1)
  area = lambda edges: jnp.prod(edges[..., 2:] - edges[..., :2], axis=-1)
  union = area(ours) + area(theirs) - both
  return both / jnp.where(union > 0, union, 1.0), union


def generalized_overlap(boxes: Array, others: Array) -> Array:
  """[...] IoU less the part of the hull that neither box covers, −1 to 1.

  Args:
    boxes: see `overlap`.
    others: see `overlap`.

  Source: Generalized intersection over union (arXiv 1902.09630).
  """
  ours, theirs = corners(boxes), corners(others)
  low = jnp.minimum(ours[..., :2], theirs[..., :2])
  high = jnp.maximum(ours[..., 2:], theirs[..., 2:])
  hull = jnp.prod(jnp.maximum(high - low, 0), axis=-1)
  share, union = overlap(boxes, others)
  return share - (hull - union) / jnp.where(hull > 0, hull, 1.0)


def moved(boxes: Array, changes: Array, extent: Array | None = None) -> Array:
  """[..., 4] boxes after changes that are relative to their sides.

  Args:
    boxes: [..., 4].
    changes: [..., 4] shifts of the centre in sides of the box, and logarithms
      of the growth of both sides.
    extent: [..., 2] width and height of the image that they are cut to; None:
      they may reach beyond.

  Source: Plain-DETR.
  """
  center = boxes[..., :2] + boxes[..., 2:] * changes[..., :2]
  sides = boxes[..., 2:] * jnp.exp(
      jnp.clip(changes[..., 2:], -MOST_GROWTH, MOST_GROWTH))
  out = jnp.concatenate([center, sides], axis=-1)
  return out if extent is None else clipped(out, extent)


def change(boxes: Array, targets: Array) -> Array:
  """[..., 4] the changes that lead from boxes to targets, as losses see them.

  Args:
    boxes: [..., 4].
    targets: [..., 4], broadcast with them.

  Source: Plain-DETR; a tenth of a unit is added to sides here, so that `moved`
    does not lead quite back.
  """
  sides = boxes[..., 2:] + _MARGIN
  return jnp.concatenate([
      (targets[..., :2] - boxes[..., :2]) / sides,
      jnp.log(targets[..., 2:] / sides)], axis=-1)


def logits(parts: Array) -> Array:
  """Logits of parts of an image, which are cut to between 1e-5 and 1 − 1e-5."""
  parts = jnp.clip(parts, 0, 1)
  return jnp.log(jnp.maximum(parts, _EPSILON) / jnp.maximum(
      1 - parts, _EPSILON))
