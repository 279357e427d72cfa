"""Overlap of boxes; numpy."""

import numpy as np


def iou(box: np.ndarray, others: np.ndarray) -> np.ndarray:
  """[r] intersection over union of a box [4] with others [r, 4].

  Boxes are (left, top, right, bottom), without the pixel that the kit of VOC
  adds.
  """
  inside, both = _areas(box, others)
  return inside / (both - inside)


def is_localised(box: np.ndarray, truth: np.ndarray) -> bool:
  """Tells whether a box overlaps a true one by at least half (CorLoc).

  Twice the intersection is compared with the union, without a division, so
  that an overlap of exactly one half counts in any precision.
  """
  inside, both = _areas(box, truth)
  return bool(np.any(2 * inside >= both - inside))


def _areas(box: np.ndarray, others: np.ndarray
           ) -> tuple[np.ndarray, np.ndarray]:
  """Areas of the intersections, and of both boxes together."""
  box, others = np.asarray(box, np.float64), np.asarray(others, np.float64)
  low, high = (np.maximum(box[None, :2], others[:, :2]),
               np.minimum(box[None, 2:], others[:, 2:]))
  area = lambda b: np.prod(b[..., 2:] - b[..., :2], axis=-1)
  return (np.prod(np.maximum(high - low, 0), axis=1),
          area(box) + area(others))
