"""k-NN scores: known answers."""

import numpy as np

from dinojax.evals import knn


def test_more_neighbours_than_features_is_all_of_them():
  train, labels = np.eye(4), np.array([0, 1, 1, 0])
  got = knn.scores(train, labels, train[:2], ks=(2, 200), num_classes=2)
  np.testing.assert_allclose(got[200].sum(1), 1, rtol=1e-5)
  np.testing.assert_array_equal(got[200].argmax(1), [0, 1])


def test_the_earlier_of_equal_neighbours_counts_in_any_tiling(monkeypatch):
  # Nine equal rows: only their order decides which two vote.
  train, labels = np.ones((9, 3)), np.arange(9)
  for tile in (2, 4, 65536):
    monkeypatch.setattr(knn, '_TRAIN_TILE', tile)
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
