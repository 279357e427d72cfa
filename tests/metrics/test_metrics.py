"""Metrics: known answers."""

import numpy as np
import pytest

from dinojax.metrics import classification as metrics
from dinojax.metrics import retrieval


def test_perfect_and_worst_answers():
  labels = np.array([0, 1, 2, 2])
  right, wrong = np.eye(3)[labels], -np.eye(3)[labels]
  assert metrics.accuracy(right, labels) == 1
  assert metrics.accuracy(wrong, labels) == 0
  assert metrics.mean_reciprocal_rank(wrong, labels) == pytest.approx(1 / 3)
  assert metrics.voc2007_map(right, np.eye(3)[labels]) == 1
  assert np.isnan(metrics.per_class_accuracy(right, labels * 0)[1:]).all()


def test_a_query_without_a_positive_has_no_precision():
  scores = np.array([[0.9, 0.1, 0.5]])
  assert np.isnan(retrieval.average_precision(
      scores, np.zeros((1, 3), bool)))[0]
  positive = np.array([[True, False, False]])
  for trapezoid in (False, True):
    assert retrieval.average_precision(
        scores, positive, trapezoid=trapezoid)[0] == 1


def test_ranks_of_images_and_their_texts():
  """Against sorted lists; what all share is last."""
  rng = np.random.default_rng(0)
  image, text = rng.normal(size=(7, 5)), rng.normal(size=(20, 5))
  owner = rng.integers(0, 6, 20)  # the last image has no text
  image, text = retrieval.unit(image), retrieval.unit(text)
  by_image, by_text = retrieval.ranks(image, text, owner)
  scores = image @ text.T
  for i in range(7):
    order = owner[np.argsort(-scores[i], kind='stable')] == i
    assert by_image[i] == (order.argmax() if order.any() else 20)
  for j in range(20):
    order = np.argsort(-scores[:, j], kind='stable')
    assert by_text[j] == np.flatnonzero(order == owner[j])[0]
  same = retrieval.ranks(np.ones((4, 1)), np.ones((4, 1)), np.arange(4))
  np.testing.assert_array_equal(same, 3)
