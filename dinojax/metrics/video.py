"""Masks of a video against true ones: region, contour, and their statistics.

Source: the evaluation of DAVIS-2017.
"""

import math

import numpy as np


def region(truth: np.ndarray, mask: np.ndarray,
           void: np.ndarray | None = None) -> np.ndarray:
  """[t] intersection over union J of masks [t, y, x] bool; 1 of two empty.

  Args:
    truth: the true masks.
    mask: the predicted ones.
    void: [t, y, x] bool, pixels that do not count.
  """
  counted = True if void is None else ~void
  both = (truth & mask & counted).sum((1, 2))
  either = ((truth | mask) & counted).sum((1, 2))
  return np.where(either == 0, 1.0, both / np.maximum(either, 1))


def contour(truth: np.ndarray, mask: np.ndarray,
            void: np.ndarray | None = None,
            bound: float = 0.008) -> np.ndarray:
  """[t] contour accuracy F of masks [t, y, x] bool.

  Args:
    truth: the true masks.
    mask: the predicted ones.
    void: [t, y, x] bool, pixels that do not count.
    bound: how far a contour may be off: pixels from 1 on, else a part of the
      diagonal, rounded up to pixels.
  """
  radius = bound if bound >= 1 else math.ceil(
      bound * math.hypot(*truth.shape[1:]))
  if void is not None:
    truth, mask = truth & ~void, mask & ~void
  return np.array([_contour(*pair, int(radius))
                   for pair in zip(truth, mask, strict=True)])


def _contour(truth: np.ndarray, mask: np.ndarray, radius: int) -> float:
  """The harmonic mean of precision and recall of a contour."""
  wanted, given = outline(truth), outline(mask)
  if not wanted.any() or not given.any():
    return float(wanted.any() == given.any())
  precision = dilated(wanted, radius)[given].mean()
  recall = dilated(given, radius)[wanted].mean()
  both = precision + recall
  return 2 * precision * recall / both if both else 0.0


def outline(mask: np.ndarray) -> np.ndarray:
  """[y, x] bool: pixels unlike the right, lower or lower right neighbour."""
  out = np.zeros_like(mask)
  right, down = mask[:, :-1] ^ mask[:, 1:], mask[:-1] ^ mask[1:]
  out[:, :-1] |= right
  out[:-1] |= down
  out[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
  return out


def dilated(mask: np.ndarray, radius: int) -> np.ndarray:
  """[y, x] bool: pixels within `radius` of one of the mask's, as a disk."""
  rows, columns = mask.shape
  # Each row of the disk is a run of pixels: sums of runs tell where any is.
  before = np.zeros((rows, columns + 2 * radius + 1), np.int32)
  before[:, radius + 1:radius + 1 + columns] = mask.cumsum(1)
  before[:, radius + 1 + columns:] = before[:, [radius + columns]]
  out = np.zeros_like(mask)
  for dy in range(-radius, radius + 1):
    half = math.isqrt(radius * radius - dy * dy)
    low = before[:, radius - half:radius - half + columns]
    run = before[:, radius + half + 1:radius + half + 1 + columns] > low
    top, bottom = max(dy, 0), min(rows + dy, rows)
    if top < bottom:
      out[top - dy:bottom - dy] |= run[top:bottom]
  return out


def statistics(values: np.ndarray) -> tuple[float, float, float]:
  """Mean, recall and decay of the values [t] of an object's frames.

  Recall is the share above a half; decay the mean of the first quarter less
  that of the last, quarters sharing a frame with the next.

  Source: db_statistics of DAVIS-2017.
  Differs: it counts frames beyond 256 anew, as its indices are bytes.
  """
  edges = np.round(np.linspace(1, len(values), 5) + 1e-10).astype(int) - 1
  first, last = (values[edges[i]:edges[i + 1] + 1] for i in (0, 3))
  return (float(np.mean(values)), float(np.mean(values > 0.5)),
          float(np.mean(first) - np.mean(last)))
