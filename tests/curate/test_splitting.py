"""Clusters divided one by one: rows are near their centroids."""

import numpy as np
import pytest

from dinojax.curate import kmeans
from dinojax.curate import seeds
from dinojax.curate import splitting


def rows_of(count=600, width=6, seed=0):
  rng = np.random.default_rng(seed)
  centers = rng.normal(size=(12, width)) * 5
  return (centers[rng.integers(0, 12, count)]
          + rng.normal(size=(count, width))).astype(np.float32)


def test_every_cluster_is_divided_by_itself():
  rows = rows_of()
  clusters = (rows[:, 0] > 0).astype(np.int32) * 3  # 1 and 2 have no rows
  got = splitting.divide(rows, clusters, 4, iterations=20, seed=0)
  assert got.centroids.shape == (8, 6)
  for cluster, labels in ((0, range(4)), (3, range(4, 8))):
    mine = clusters == cluster
    assert set(got.labels[mine]) == set(labels)
    # At the end every row is nearest to its own centroid, the mean of its rows.
    label, distance = kmeans.assign(rows[mine], got.centroids[labels])
    np.testing.assert_array_equal(label + labels[0], got.labels[mine])
    np.testing.assert_allclose(distance, got.distances[mine], rtol=1e-4)
    for i in labels:
      np.testing.assert_allclose(
          rows[got.labels == i].mean(0), got.centroids[i], atol=1e-5)


def test_it_is_the_k_means_of_others():
  rows = rows_of()
  got = splitting.divide(
      rows, np.zeros(len(rows), int), 5, iterations=7, seed=2)
  mean = rows.astype(np.float64).mean(0)
  initial = rows[seeds.plus_plus(rows - mean, 5, seed=2)]
  want = kmeans.fit(rows, initial, iterations=7)
  np.testing.assert_allclose(got.centroids, want.centroids, atol=1e-5)


def test_small_and_equal_clusters_are_no_fault():
  rows = np.repeat(np.eye(3, dtype=np.float32), [1, 5, 2], axis=0)
  clusters = np.repeat([0, 1, 2], [1, 5, 2])
  got = splitting.divide(rows, clusters, 4, iterations=5, seed=0)
  assert len(got.centroids) == 1 + 4 + 2 and got.distances.max() == 0
  np.testing.assert_array_equal(got.centroids[got.labels], rows)
  nothing = splitting.divide(rows[:0], clusters[:0], 4, iterations=5, seed=0)
  assert nothing.centroids.shape == (0, 3)


@pytest.mark.parametrize('sizes', [
    [5], [0, 0, 0], [3, 9, 1, 40, 0, 2], [1] * 25])
def test_parts_hold_all_clusters_once(sizes, monkeypatch):
  monkeypatch.setattr(splitting, '_PART', 40)
  parts = splitting.parts(np.array(sizes), width=4)
  assert [i for part in parts for i in part] == list(range(len(sizes)))
  # A cluster of any size, and others of ten rows together.
  assert all(sum(sizes[i] for i in part[1:]) <= 10 for part in parts)
