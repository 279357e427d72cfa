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
    k, cost = len(centroids), 0.0
    total, counts = np.zeros(centroids.shape), np.zeros(k, np.int64)
    far = _Farthest(min(self._farthest, k), centroids.shape[1])
    for _, x in self._blocks():
      label, distance = _nearest(x, centroids, exact=exact)
      added, number = _sums(x, label, k)
      total += added
      counts += number
      cost += float(distance.sum(dtype=np.float64))
      far.add(x, distance)
    return total, counts, cost, far.rows

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


def _sums(x: np.ndarray, label: np.ndarray, k: int
          ) -> tuple[np.ndarray, np.ndarray]:
  """[k, d] sums of rows by label, each in the order of its rows, and counts."""
  from scipy import sparse  # a quarter second
  # Sixteen bits are sorted by their digits, in a tenth of the time.
  narrow = label.astype(np.uint16) if k <= 2**16 else label
  counts = np.bincount(label, minlength=k)
  ends = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
  chosen = sparse.csr_array(
      (np.ones(len(x), np.float32),
       np.argsort(narrow, kind='stable').astype(np.int32), ends), (k, len(x)))
  return chosen @ x, counts


class _Farthest:
  """Rows far from their centroids, the farthest first; of equal the first.

  Attributes:
    rows: [r, d].
  """

  def __init__(self, most: int, width: int):
    """Keeps so many rows."""
    self._most = most
    self.rows = np.zeros((0, width), np.float32)
    self._distance = np.zeros(0, np.float32)

  def add(self, x: np.ndarray, distance: np.ndarray):
    """Looks at the rows of a block, [r, d] and [r] squared distances."""
    full = len(self._distance) == self._most
    inside = np.flatnonzero(distance > (self._distance[-1] if full else 0))
    if len(inside) > self._most:
      least = np.partition(distance[inside], -self._most)[-self._most]
      inside = inside[distance[inside] >= least]
    if not len(inside):
      return
    together = np.concatenate([self._distance, distance[inside]])
    order = np.argsort(-together, kind='stable')[:self._most]
    self.rows = np.concatenate([self.rows, x[inside]])[order]
    self._distance = together[order]
