"""k-means: what float64 gives, on any mesh, in any tiles and order."""

import dataclasses

import numpy as np
import pytest

from dinojax.core import errors
from dinojax.curate import kmeans
from dinojax.curate import seeds
from dinojax.parallel import mesh as mesh_lib


def blobs(count=1000, k=7, width=5, offset=0.0, seed=0):
  rng = np.random.default_rng(seed)
  centers = rng.normal(size=(k, width)) * 3
  rows = centers[rng.integers(0, k, count)] + rng.normal(size=(count, width))
  return (rows + offset).astype(np.float32)


def plain(rows, centroids, iterations):
  """Lloyd's iteration in float64."""
  rows, centroids = rows.astype(np.float64), centroids.astype(np.float64)
  for step in range(iterations + 1):
    squares = np.square(rows[:, None] - centroids[None]).sum(-1)
    label = squares.argmin(1)
    if step == iterations:
      return centroids, label
    for i in np.unique(label):
      centroids[i] = rows[label == i].mean(0)


@pytest.mark.parametrize('offset', [0.0, 1e3])
def test_it_is_float64s(offset):
  rows = blobs(offset=offset)
  got = kmeans.fit(rows, rows[:7], iterations=9)
  centroids, label = plain(rows, rows[:7], 9)
  # Of numbers around 1,000 float32 holds six hundred-thousandths.
  np.testing.assert_allclose(
      got.centroids, centroids, atol=1e-5 + 1e-7 * offset)
  np.testing.assert_array_equal(kmeans.assign(rows, got.centroids)[0], label)
  means = np.stack([rows[label == i].astype(np.float64).mean(0)
                    for i in range(7)])
  assert got.inertia == pytest.approx(
      np.square(rows - means[label]).sum(), rel=1e-5)
  np.testing.assert_array_equal(got.counts, np.bincount(label))


@pytest.mark.parametrize('sizes', [(8, 1), (2, 4)])
def test_mesh_tiles_and_order_change_nothing(sizes, monkeypatch):
  rows = blobs()
  want = kmeans.fit(rows, rows[:7], iterations=5)
  label, distance = kmeans.assign(rows, want.centroids)
  monkeypatch.setattr(kmeans, '_CPU_SCORES', 0)  # tiles of 128 rows a device
  mesh = mesh_lib.make(*sizes)
  got = kmeans.fit(rows, rows[:7], iterations=5, mesh=mesh)
  np.testing.assert_allclose(got.centroids, want.centroids, atol=2e-6)
  np.testing.assert_array_equal(got.counts, want.counts)
  other = kmeans.assign(rows, want.centroids, mesh=mesh)
  np.testing.assert_array_equal(other[0], label)
  np.testing.assert_allclose(other[1], distance, rtol=1e-5)
  turned = kmeans.fit(rows[::-1], rows[:7], iterations=5, mesh=mesh)
  np.testing.assert_allclose(turned.centroids, want.centroids, atol=2e-6)


def test_rows_come_from_a_file_in_half_precision(tmp_path):
  rows = blobs(3000).astype(np.float16)
  np.save(tmp_path / 'rows.npy', rows)
  held = np.load(tmp_path / 'rows.npy', mmap_mode='r')
  got = kmeans.fit(held, rows[:7].astype(np.float32), iterations=3)
  want = kmeans.fit(rows.astype(np.float32), rows[:7], iterations=3)
  np.testing.assert_array_equal(got.centroids, want.centroids)


def test_inertia_never_rises_and_may_end_early():
  costs, rows = [], blobs()
  got = kmeans.fit(rows, rows[:7], iterations=100, tolerance=1e-6,
                   passed=lambda _, cost: costs.append(cost))
  assert got.iterations < 60 and len(costs) == got.iterations + 1
  assert all(b <= a * (1 + 1e-6) for a, b in zip(costs, costs[1:],
                                                 strict=False))


def test_without_a_tolerance_a_cost_that_rises_ends_nothing(monkeypatch):
  sums, costs = kmeans._Tiles.sums, iter(range(1, 9))
  monkeypatch.setattr(kmeans._Tiles, 'sums', lambda *args: (
      dataclasses.replace(sums(*args), cost=float(next(costs)))))
  rows = blobs(50)
  assert kmeans.fit(rows, rows[:3], iterations=5).iterations == 5


def test_empty_clusters_go_where_rows_are_far():
  rows = np.concatenate([blobs(200, 2), [[50.0] * 5, [-60.0] * 5]]).astype(
      np.float32)
  start = np.array([rows[0], rows[1], [900.0] * 5, [901.0] * 5])
  stay = kmeans.fit(rows, start, iterations=3, empty='keep')
  np.testing.assert_allclose(stay.centroids[2:], start[2:], rtol=1e-6)
  assert stay.counts[2:].tolist() == [0, 0]
  moved = kmeans.fit(rows, start, iterations=3)
  assert (moved.counts > 0).all() and moved.inertia < stay.inertia / 2


def test_mistakes_are_sentences():
  rows = blobs(10)
  with pytest.raises(errors.UserError, match='5 dimensions and centroids 4'):
    kmeans.fit(rows, rows[:2, :4], iterations=1)
  with pytest.raises(errors.UserError, match='10 rows cannot be divided'):
    kmeans.fit(rows, np.zeros((11, 5)), iterations=1)
  with pytest.raises(errors.UserError, match="empty='drop' is not known"):
    kmeans.fit(rows, rows[:2], iterations=1, empty='drop')


def test_seeds_are_rows_of_many_blobs():
  rows = blobs(2000, k=20, width=16)
  index = seeds.plus_plus(rows, 20, seed=3)
  assert len(np.unique(index)) == 20
  _, distance = kmeans.assign(rows, rows[index])
  _, random = kmeans.assign(rows, rows[:20])
  assert distance.sum() < 0.8 * random.sum()
  np.testing.assert_array_equal(index, seeds.plus_plus(rows, 20, seed=3))


def test_members_are_the_nearest_of_each_cluster():
  got = seeds.members(np.array([1, 0, 1, 1]), np.array([3.0, 1, 2, 1]), 3, 2)
  assert got.tolist() == [1, 3, 2]
