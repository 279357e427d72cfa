"""k-NN scores against the references' and known answers."""

import numpy as np
import pytest

from dinojax.evals import knn
from tests import golden


@pytest.mark.parametrize('version', ['v2', 'v3'])
def test_scores_equal_the_references(version):
  case = golden.load('knn_classifier')
  config = case.meta['config']
  got = knn.scores(
      case.inputs['train_features'], case.inputs['train_labels'],
      case.inputs['test_features'], ks=config['ks'],
      temperature=config['T'], num_classes=config['num_classes'])
  for k in config['ks']:
    case.check(f'{version}/probas_k{k}', got[k])
    want = float(case.outputs[f'top1_accuracy_k{k}'])
    accuracy = knn.accuracy(got[k], case.inputs['test_labels'])
    assert accuracy == pytest.approx(want * (100 if want <= 1 else 1))


def test_scores_depend_on_the_largest_k_as_in_the_reference():
  case = golden.load('knn_classifier')
  alone = knn.scores(
      case.inputs['train_features'], case.inputs['train_labels'],
      case.inputs['test_features'], ks=(10,), num_classes=6)[10]
  case.check('v3_ks_only_10/probas_k10', alone)
  np.testing.assert_allclose(alone.sum(1), 1, rtol=1e-5)
  assert np.abs(alone - case.outputs['v3/probas_k10']).max() > 1e-3


def test_length_of_features_does_not_matter():
  case = golden.load('knn_classifier')
  scale = np.random.default_rng(0).uniform(0.1, 10, (120, 1))
  got = knn.scores(
      case.inputs['train_features'] * scale, case.inputs['train_labels'],
      case.inputs['test_features'] * 3, ks=(10, 20), num_classes=6)
  case.check('v3/probas_k20', got[20])


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


def test_accuracy_of_the_best_classes():
  scores = np.array([[3, 2, 1], [3, 2, 1], [3, 2, 1], [1, 1, 1]])
  labels = [0, 1, 2, 1]
  assert knn.accuracy(scores, labels) == 25
  assert knn.accuracy(scores, labels, top=2) == 75
  assert knn.accuracy(scores, labels, top=3) == 100
