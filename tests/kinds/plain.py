"""Classifiers without steps of training."""

import numpy as np

from dinojax.evals import logistic
from dinojax.evals import selection
from tests import golden


@golden.kind('logistic_regression_sweep')
def logistic_regression_sweep(case):
  c, x = case.config, case.inputs
  c.skip('tol', 'max_iter')  # they converged, and so do we
  labels = {name: x[f'{name}/labels'] for name in ('train', 'val', 'test')}
  several = c['multilabel']
  assert several == (labels['train'].ndim == 2)
  num_classes = (labels['train'].shape[1] if several
                 else max(int(each.max()) for each in labels.values()) + 1)
  sets = {name: selection.Labelled(x[f'{name}/features'], labels[name])
          for name in labels}
  sweep = selection.choose(sets['train'], sets['val'], num_classes,
                           refit=c['refit_on_train_and_val'])
  chances = sweep.final.probabilities(sets['test'].features)
  return {
      'C': np.float32(logistic.STRENGTHS),
      'val_probabilities': np.stack([
          sweep.candidates.probabilities(sets['val'].features, i)
          for i in c['picked']]),
      'val_accuracy': sweep.accuracy, 'best_index': np.int32(sweep.best),
      'weight': sweep.final.weight[0], 'bias': sweep.final.bias[0],
      'test_probabilities': chances,
      'test_accuracy': selection.accuracy(chances, labels['test'])}
