"""Clusters that are divided again, each by itself.

So a level of a hundred million clusters is made in two steps: k-means of all
rows into some hundred thousand, then k-means of the rows of each of these.
"""

import itertools
from typing import NamedTuple

import numpy as np

from dinojax.curate import seeds

_PART = 2**24  # values of the rows that are at least in a part


class Divided(NamedTuple):
  """Rows, divided."""

  centroids: np.ndarray  # [k, d] float32
  labels: np.ndarray  # [n] int32
  distances: np.ndarray  # [n] float32, squared


def parts(sizes: np.ndarray, width: int) -> list[range]:
  """Consecutive clusters that are divided in one task.

  Args:
    sizes: [k] rows of every cluster.
    width: values of a row.
  """
  step = max(_PART // width, 1)
  number = (np.cumsum(sizes) - 1) // step
  starts = [0, *(np.flatnonzero(np.diff(number)) + 1).tolist(), len(sizes)]
  return list(map(range, starts[:-1], starts[1:]))


def divide(rows: np.ndarray, clusters: np.ndarray, into: int, *,
           iterations: int, seed: int) -> Divided:
  """Divides the rows of every cluster.

  Args:
    rows: [n, d].
    clusters: [n] cluster of every row.
    into: clusters of each; a cluster of fewer rows has as many as rows.
    iterations: passes of k-means.
    seed: number of the draws; a cluster adds its number.

  Returns:
    Clusters in the order of those that they are of.
  """
  labels = np.zeros(len(rows), np.int32)
  distances, centroids = np.zeros(len(rows), np.float32), []
  order, count = np.argsort(clusters, kind='stable'), 0
  ends = np.flatnonzero(np.diff(clusters[order], prepend=-1, append=-1))
  for start, end in itertools.pairwise(ends.tolist()):
    mine = order[start:end]
    got = _kmeans(rows[mine].astype(np.float64), into, iterations,
                  seed + int(clusters[mine[0]]))
    centroids.append(got.centroids)
    labels[mine], distances[mine] = got.labels + count, got.distances
    count += len(got.centroids)
  return Divided(np.concatenate(centroids) if centroids else np.zeros(
      (0, rows.shape[1]), np.float32), labels, distances)


def _kmeans(rows: np.ndarray, k: int, iterations: int, seed: int) -> Divided:
  """k-means of few rows [n, d] float64, by NumPy."""
  k = min(k, len(rows))
  mean = rows.mean(0)
  rows = rows - mean
  centroids = rows[seeds.plus_plus(rows, k, seed=seed)]
  labels, distances = _nearest(rows, centroids)
  for _ in range(iterations):
    counts = np.bincount(labels, minlength=k)
    sums = (np.arange(k)[:, None] == labels[None]).astype(np.float64) @ rows
    moved = np.where(counts[:, None] > 0,
                     sums / np.maximum(counts, 1)[:, None], centroids)
    free = np.flatnonzero(counts == 0)
    moved[free] = rows[np.argsort(-distances, kind='stable')[:len(free)]]
    if (moved == centroids).all():
      break
    centroids = moved
    labels, distances = _nearest(rows, centroids)
  return Divided((centroids + mean).astype(np.float32),
                 labels.astype(np.int32), distances.astype(np.float32))


def _nearest(rows: np.ndarray, centroids: np.ndarray
             ) -> tuple[np.ndarray, np.ndarray]:
  score = rows @ centroids.T - 0.5 * np.square(centroids).sum(1)
  labels = score.argmax(1)
  return labels, np.square(rows - centroids[labels]).sum(1)
