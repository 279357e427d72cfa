"""Centroids to begin with: rows far from each other."""

import numpy as np


def plus_plus(rows: np.ndarray, k: int, *, seed: int = 0,
              first: int | None = None,
              draws: np.ndarray | None = None) -> np.ndarray:
  """Greedy k-means++: of several candidates the one that helps most.

  A candidate is drawn in proportion to its squared distance to the nearest
  centroid so far. It takes k rounds, one after the other: for up to some ten
  thousand centroids.

  Args:
    rows: [n, d].
    k: centroids.
    seed: number of the draw.
    first: row of the first centroid; None: drawn.
    draws: [k − 1, candidates] uniform numbers for every round; None: drawn,
      2 + ⌊ln k⌋ candidates.

  Returns:
    [k] rows, each once unless fewer are different.

  Source: Arthur and Vassilvitskii, k-means++, 2007, with the greedy choice of
  its section on practice.
  """
  rows = np.asarray(rows, np.float64)
  rows = rows - rows.mean(0)
  rng = np.random.default_rng(seed)
  if first is None:
    first = int(rng.integers(len(rows)))
  if draws is None:
    draws = rng.random((k - 1, 2 + int(np.log(k))))
  squares = np.square(rows).sum(1)

  def distances(index: np.ndarray) -> np.ndarray:
    """[candidates, n] squared distances."""
    return np.maximum(
        squares[None] - 2 * rows[index] @ rows.T + squares[index, None], 0)

  chosen, near = [first], distances(np.array([first]))[0]
  for numbers in draws:
    total = np.cumsum(near)
    index = np.minimum(np.searchsorted(
        total, np.asarray(numbers, np.float64) * total[-1]), len(rows) - 1)
    after = np.minimum(near[None], distances(index))
    best = int(after.sum(1).argmin())
    chosen.append(int(index[best]))
    near = after[best]
  return np.array(chosen)


def members(labels: np.ndarray, distances: np.ndarray, k: int,
            count: int) -> np.ndarray:
  """Rows nearest to each centroid: clusters in order, nearest first.

  Two rows are equally far from their mean, and float32 knows six digits of it:
  of rows whose distances agree in five, the first comes first.

  Args:
    labels: [n] cluster of every row.
    distances: [n] to its centroid.
    k: clusters.
    count: rows of each; all of a smaller one.

  Source: Vo et al. 2024, resampled clustering.
  """
  bits = np.asarray(distances, np.float32).view(np.uint32)
  order = np.lexsort(((bits + 64) >> 7, labels))
  start = np.searchsorted(labels[order], np.arange(k))
  place = np.arange(len(order)) - start[labels[order]]
  return order[place < count]
