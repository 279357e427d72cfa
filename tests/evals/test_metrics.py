"""Metrics against the reference values, and against known answers."""

import numpy as np
import pytest

from dinojax.evals import linear
from dinojax.evals import metrics
from dinojax.evals import retrieval
from tests import golden


def test_classification_metrics_equal_the_reference():
  case = golden.load('classification_metrics')
  logits, targets = case.inputs['logits'], case.inputs['targets']
  functions = {
      'mean_accuracy': lambda k: metrics.accuracy(logits, targets, k),
      'mean_per_class_accuracy': lambda k: metrics.mean_per_class_accuracy(
          logits, targets, k),
      'per_class_accuracy': lambda k: metrics.per_class_accuracy(
          logits, targets, k),
      'imagenet_real': lambda k: metrics.any_match_accuracy(
          logits, case.inputs['real_targets'], k),
      'mrr': lambda k: metrics.mean_reciprocal_rank(logits, targets),
      'map_voc2007': lambda k: metrics.voc2007_map(
          case.inputs['multilabel_probs'],
          case.inputs['multilabel_targets'])}
  for name in case.outputs:
    _, metric, top = name.split('/')
    case.check(name, functions[metric](int(top.removeprefix('top-'))),
               rtol=1e-6, atol=1e-6)


def test_retrieval_equals_the_reference():
  case = golden.load('retrieval_map')
  scores = retrieval.similarities(
      case.inputs['query'], case.inputs['database'])
  positive = case.inputs['positives']
  ap = retrieval.average_precision(scores, positive)
  case.check('ap_sklearn', ap)
  case.check('map_sklearn', ap.mean())
  revisited = retrieval.average_precision(
      scores, positive, junk=case.inputs['junk'], trapezoid=True)
  case.check('ap_revisitop_trapezoid_junk_removed', revisited)
  case.check('map_revisitop', revisited.mean())


@pytest.mark.parametrize('num_layers', [1, 4])
@pytest.mark.parametrize('average', [False, True])
def test_probe_inputs_equal_the_reference(num_layers, average):
  case = golden.load('linear_probe_features')
  layers = [{'cls': case.inputs[f'layer{i}/cls'],
             'patches': case.inputs[f'layer{i}/patch']} for i in range(4)]
  name = f'n{num_layers}_avgpool{int(average)}'
  features = linear.probe_input(layers, num_layers, average)
  case.check(name, features)
  case.check(f'{name}_logits', linear.logits(
      features, case.inputs[f'{name}/weight'].T, case.inputs[f'{name}/bias']))


@pytest.mark.parametrize('generation', ['v2', 'v3'])
def test_the_grid_of_classifiers_equals_the_reference(generation):
  case = golden.load('linear_probe_features')
  config = case.meta['config']
  grid = linear.grid(
      generation, config['batch_size'], config['learning_rates'])
  assert [linear.name(c) for c in grid] == list(
      case.outputs[f'{generation}_classifier_names'])
  case.check(f'{generation}_lrs', [c['lr'] for c in grid], rtol=1e-6, atol=0)


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
  found = np.array([[True, False, False]])
  for trapezoid in (False, True):
    assert retrieval.average_precision(
        scores, found, trapezoid=trapezoid)[0] == 1
