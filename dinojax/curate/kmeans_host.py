"""Passes of k-means on processors, where faiss has the fastest products."""

from collections.abc import Iterator

import numpy as np

from dinojax.curate import libraries

_BLOCK = 65_536  # rows in memory as float32
_KEPT_BYTES = 2**29  # of rows that are not read again


class Passes:
  """Rows, block by block, on the cores of this process.

  Attributes:
    shift: [d] float64, the mean of the rows.
  """

  def __init__(self, rows, shift: np.ndarray, farthest: int):
    """Keeps rows.

    Args:
      rows: see kmeans.Rows.
      shift: mean of the rows.
      farthest: rows far from their centroids that `sums` gives, at most.
    """
    self._rows, self.shift, self._farthest = rows, shift, farthest
    self._kept: list[tuple[int, np.ndarray]] = []

  def nearest(self, centroids: np.ndarray) -> Iterator[tuple]:
    """First row, last row, centroids and squared distances of a block."""
    for start, x in self._blocks():
      yield start, start + len(x), *_nearest(x, centroids)

  def sums(self, centroids: np.ndarray, *, exact: bool) -> tuple:
    """One pass over all rows.

    Args:
      centroids: [k, d], less the mean of the rows.
      exact: False: distances have six digits of the rows' lengths, not of
        themselves, which is enough between passes.

    Returns:
      [k, d] float64 sums of centred rows, [k] counts, the sum of squared
      distances, and the rows [r, d] farthest from their centroids.
    """
    from scipy import sparse  # a quarter second
    k, cost = len(centroids), 0.0
    total, counts = np.zeros(centroids.shape), np.zeros(k, np.int64)
    far, best = np.zeros((0, centroids.shape[1]), np.float32), np.zeros(0)
    for _, x in self._blocks():
      label, distance = _nearest(x, centroids, exact=exact)
      ones = np.ones(len(x), np.float32)
      total += sparse.csr_array(
          (ones, (label, np.arange(len(x)))), (k, len(x))) @ x
      counts += np.bincount(label, minlength=k)
      cost += float(distance.sum(dtype=np.float64))
      # Rows of earlier blocks come first, so that of equal ones they stay.
      best = np.concatenate([best, distance])
      order = np.argsort(-best, kind='stable')[:min(self._farthest, k)]
      order = order[best[order] > 0]
      inside = order - (len(best) - len(x))
      far = np.where((inside >= 0)[:, None], x[np.maximum(inside, 0)],
                     far[np.minimum(order, len(far) - 1)] if len(far) else 0)
      best = best[order]
    return total, counts, cost, far

  def _blocks(self) -> Iterator[tuple[int, np.ndarray]]:
    """First row and centred rows, which are kept where they are few."""
    if self._kept:
      yield from self._kept
      return
    count, width = self._rows.shape
    for start in range(0, count, _BLOCK):
      x = np.asarray(self._rows[start:start + _BLOCK], np.float32)
      block = start, x - self.shift.astype(np.float32)[None]
      if 4 * count * width <= _KEPT_BYTES:
        self._kept.append(block)
      yield block


def _nearest(x: np.ndarray, centroids: np.ndarray, *, exact: bool = True
             ) -> tuple[np.ndarray, np.ndarray]:
  """Nearest of [k, d] centroids for rows [r, d], and squared distances."""
  faiss = libraries.faiss()
  centroids = np.ascontiguousarray(centroids, np.float32)
  distance, label = faiss.knn(x, centroids, 1, faiss.METRIC_L2)
  label = label[:, 0].astype(np.int32)
  if not exact:
    return label, distance[:, 0]
  off = x - centroids[label]
  return label, np.einsum('rd,rd->r', off, off)
