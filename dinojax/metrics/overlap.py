"""Overlap of boxes; numpy."""

import numpy as np


def iou(box: np.ndarray, others: np.ndarray) -> np.ndarray:
  """[r] intersection over union of a box [4] with others [r, 4].

  Boxes are (left, top, right, bottom), without the pixel that the kit of VOC
  adds.
  """
  box, others = np.asarray(box, np.float64), np.asarray(others, np.float64)
  low, high = (np.maximum(box[None, :2], others[:, :2]),
               np.minimum(box[None, 2:], others[:, 2:]))
  inside = np.prod(np.maximum(high - low, 0), axis=1)
  area = lambda b: np.prod(b[..., 2:] - b[..., :2], axis=-1)
  return inside / (area(box) + area(others) - inside)


def is_localised(box: np.ndarray, truth: np.ndarray) -> bool:
  """Tells whether a box overlaps a true one by at least half (CorLoc).

  Compared as 2·intersection ≥ union on what may be whole numbers, so that an
  overlap of exactly one half counts in any precision.
  """
  box, truth = np.asarray(box, np.float64), np.asarray(truth, np.float64)
  low, high = (np.maximum(box[None, :2], truth[:, :2]),
               np.minimum(box[None, 2:], truth[:, 2:]))
  inside = np.prod(np.maximum(high - low, 0), axis=1)
  area = lambda b: np.prod(b[..., 2:] - b[..., :2], axis=-1)
  return bool(np.any(3 * inside >= area(box) + area(truth)))
