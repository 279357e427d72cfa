"""k-NN scores: known answers."""

import jax
import numpy as np
import pytest

from dinojax.evals import knn
from dinojax.features import nearest as nearest_lib
from dinojax.parallel import mesh as mesh_lib


def test_more_neighbours_than_features_is_all_of_them():
  train, labels = np.eye(4), np.array([0, 1, 1, 0])
  got = knn.scores(train, labels, train[:2], ks=(2, 200), num_classes=2)
  np.testing.assert_allclose(got[200].sum(1), 1, rtol=1e-5)
  np.testing.assert_array_equal(got[200].argmax(1), [0, 1])


def test_the_earlier_of_equal_neighbours_counts_in_any_tiling(monkeypatch):
  # Nine equal rows: only their order decides which two vote.
  train, labels = np.ones((9, 3)), np.arange(9)
  for tile in (2, 4, 65536):
    monkeypatch.setattr(nearest_lib, '_TRAIN_TILE', tile)
    got = knn.scores(train, labels, np.ones((1, 3)), ks=(2,), num_classes=9)
    np.testing.assert_allclose(got[2][0], [0.5, 0.5] + [0] * 7, atol=1e-6)


def test_length_of_features_does_not_matter():
  rng = np.random.default_rng(0)
  train, test = rng.normal(size=(40, 6)), rng.normal(size=(5, 6))
  labels, scale = rng.integers(0, 3, 40), rng.uniform(0.1, 10, (40, 1))
  kwargs = dict(ks=(10,), num_classes=3)
  np.testing.assert_allclose(
      knn.scores(train * scale, labels, 3 * test, **kwargs)[10],
      knn.scores(train, labels, test, **kwargs)[10], rtol=1e-4)


def test_a_row_need_not_vote_for_itself():
  train, labels = np.eye(4) + 0.1, np.array([0, 1, 1, 0])
  got = knn.scores(train, labels, train, ks=(1, 3), num_classes=2)
  np.testing.assert_array_equal(got[1].argmax(1), labels)
  got = knn.scores(train, labels, train, ks=(3, 9), num_classes=2,
                   skip_first=True)
  # The three others: one of the same class, two of the other, all alike.
  np.testing.assert_allclose(
      got[3], np.where(labels[:, None] == [0, 1], 1 / 3, 2 / 3), rtol=1e-4)
  np.testing.assert_array_equal(got[9], got[3])


def test_several_labels_share_a_vote():
  train = np.eye(3)
  labels = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1]], np.float32)
  got = knn.scores(train, labels, train, ks=(1,), num_classes=3)
  np.testing.assert_array_equal(got[1], labels)


@pytest.mark.parametrize('devices', [1, 3, 8])
def test_neighbours_are_those_of_a_sort_on_every_mesh(devices, monkeypatch):
  """Whole numbers, so many ties: order and similarities to the last bit."""
  monkeypatch.setattr(nearest_lib, '_TRAIN_TILE', 32)
  rng = np.random.default_rng(0)
  train = rng.integers(-1, 2, (333, 4)).astype(np.float32)
  train[:, :3] = [1, 0, 0]  # rows keep their length but for one number
  train *= 1 / np.linalg.norm(train, axis=1, keepdims=True)
  test = rng.integers(-2, 3, (9, 4)).astype(np.float32)
  mesh = mesh_lib.make(devices=jax.devices()[:devices])
  for k in (1, 7, 50, 333):
    similarity, index = nearest_lib.nearest(
        train, test, k, mesh, cosine=False)
    exact = np.float32(test) @ np.float32(train).T
    want = np.argsort(-exact.round(5), axis=1, kind='stable')[:, :k]
    np.testing.assert_array_equal(index, want)
    np.testing.assert_allclose(
        similarity, np.take_along_axis(exact, want, 1), atol=1e-6)


def test_the_best_rows_may_all_be_in_a_block():
  rng = np.random.default_rng(1)
  train = rng.normal(size=(400, 8))
  train[100:116] = np.ones(8) + 0.01 * rng.normal(size=(16, 8))
  _, index = nearest_lib.nearest(train, np.ones((2, 8)), 16)
  assert sorted(index[0]) == list(range(100, 116))
