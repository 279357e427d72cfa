"""Centroids to begin with: rows far from each other."""

import jax
import numpy as np

from dinojax.core import errors
from dinojax.curate import draws as draws_lib
from dinojax.curate import kmeans

STARTS = ('auto', 'random', 'plus_plus', 'parallel')
_ROUNDS, _OVERSAMPLED = 5, 2.0  # of k-means‖
_STREAM = 41  # of random numbers
# Products, rows times clusters, that greedy k-means++ takes seconds for.
_PLUS_PLUS = 2**24
# Centroids beyond which choosing among the candidates of k-means‖, on the host,
# takes longer than the passes; empty clusters are put elsewhere then.
_PARALLEL = 20_000
_BLOCK = 65_536


def initial(rows: kmeans.Rows, k: int, *, seed: int = 0, start: str = 'auto',
            mesh: jax.sharding.Mesh | None = None) -> np.ndarray:
  """Centroids [k, d] float32 to begin with, rows all.

  Args:
    rows: [n, d].
    k: centroids, at most n.
    seed: number of the draw.
    start: 'random' rows; 'plus_plus', exact greedy k-means++, in k rounds;
      'parallel', k-means‖, in five; 'auto': by the sizes.
    mesh: devices, for k-means‖.

  Raises:
    UserError: another start, or too few rows.
  """
  count = rows.shape[0]
  if start not in STARTS:
    raise errors.UserError(
        f'start={start!r} is not known: give one of {", ".join(STARTS)}')
  if not 1 <= k <= count:
    raise errors.UserError(
        f'{count} rows cannot be divided into {k} clusters: ask for at most '
        f'{count}')
  if start == 'auto':
    start = ('plus_plus' if k * count <= _PLUS_PLUS else
             'parallel' if k <= _PARALLEL else 'random')
  if start == 'random' or k == count:
    keys = draws_lib.keys(np.arange(count), seed, _STREAM)
    return at(rows, np.sort(np.argsort(keys, kind='stable')[:k]))
  if start == 'plus_plus':
    whole = np.asarray(rows[0:count], np.float32)
    return whole[plus_plus(whole, k, seed=seed)]
  return parallel(rows, k, seed=seed, mesh=mesh)


def parallel(rows: kmeans.Rows, k: int, *, seed: int = 0,
             mesh: jax.sharding.Mesh | None = None) -> np.ndarray:
  """Centroids by k-means‖: many candidates at a time, then the best of them.

  Args:
    rows: [n, d].
    k: centroids.
    seed: number of the draw.
    mesh: devices.

  Returns:
    [k, d] float32.

  Source: Bahmani et al., Scalable K-Means++, 2012.
  """
  count = rows.shape[0]
  chance = lambda turn: draws_lib.keys(
      np.arange(count), seed, _STREAM, turn) / 2.0**64
  candidates = at(rows, np.array([int(chance(0).argmin())]))
  labels, near = kmeans.assign(rows, candidates, mesh=mesh)
  for turn in range(1, _ROUNDS + 1):
    total = near.sum(dtype=np.float64)
    if not total:  # every row is a candidate
      break
    more = np.flatnonzero(
        chance(turn) < _OVERSAMPLED * k * (near / total))
    if not len(more):
      continue
    some = at(rows, more)
    label, distance = kmeans.assign(rows, some, mesh=mesh)
    closer = distance < near
    labels = np.where(closer, label + len(candidates), labels)
    near = np.where(closer, distance, near)
    candidates = np.concatenate([candidates, some])
  if len(candidates) < k:  # few rows are different
    return initial(rows, k, seed=seed, start='random')
  weights = np.bincount(labels, minlength=len(candidates))
  return candidates[plus_plus(candidates, k, seed=seed, weights=weights)]


def at(rows: kmeans.Rows, places: np.ndarray) -> np.ndarray:
  """[r, d] float32 rows at ascending places, read block by block."""
  parts = [np.zeros((0, rows.shape[1]), np.float32)]
  for start in range(0, rows.shape[0], _BLOCK):
    inside = places[slice(*np.searchsorted(places, (start, start + _BLOCK)))]
    if len(inside):
      block = rows[start:start + _BLOCK]
      parts.append(np.asarray(block[inside - start], np.float32))
  return np.concatenate(parts)


def plus_plus(rows: np.ndarray, k: int, *, seed: int = 0,
              first: int | None = None,
              draws: np.ndarray | None = None,
              weights: np.ndarray | None = None) -> np.ndarray:
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
    weights: [n], how many rows each of them stands for; None: one.

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
  weights = np.ones(len(rows)) if weights is None else np.asarray(weights)

  def distances(index: np.ndarray) -> np.ndarray:
    """[candidates, n] squared distances."""
    return np.maximum(
        squares[None] - 2 * rows[index] @ rows.T + squares[index, None], 0)

  chosen, near = [first], distances(np.array([first]))[0]
  for numbers in draws:
    total = np.cumsum(near * weights)
    index = np.minimum(np.searchsorted(
        total, np.asarray(numbers, np.float64) * total[-1]), len(rows) - 1)
    after = np.minimum(near[None], distances(index))
    best = int((after @ weights).argmin())
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
