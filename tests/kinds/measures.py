"""Scores of evaluations, from what was predicted."""

import numpy as np

from dinojax.data import few_shot
from dinojax.metrics import classification
from dinojax.metrics import corruption
from dinojax.metrics import overlap
from dinojax.metrics import retrieval
from tests import golden


@golden.kind('any_match_topk')
def any_match_topk(case):
  x = case.inputs
  return {f'top_{k}': classification.any_match_accuracy(
      x['scores'], x['labels'], k) for k in case.config['ks']}


@golden.kind('grouped_any_match')
def grouped_any_match(case):
  x, out = case.inputs, {}
  right = classification.any_match(x['scores'], x['labels'], case.config['k'])
  for name, groups in case.config['groups'].items():
    got = classification.by_group(right, x[f'group/{name}'])
    assert set(got) == set(groups)
    out |= {f'{name}/{group}': value for group, value in got.items()}
  return out | {'all': np.nanmean(right)}


@golden.kind('mce')
def mce(case):
  c, x = case.config, case.inputs
  names = c['corruptions']
  right = classification.in_top(x['scores'], x['labels'], 1)
  accuracy = corruption.accuracies(
      right, x['corruption'], x['level'], len(names), c['levels'])
  relative = corruption.relative_errors(accuracy, x['alexnet_errors'])
  assert tuple(names[:c['standard']]) == corruption.STANDARD
  assert tuple(names) == tuple(corruption.ALEXNET)
  np.testing.assert_allclose(  # the table of the package, of whole rows
      100 * x['alexnet_errors'].mean(1), list(corruption.ALEXNET.values()),
      atol=0.006)
  absent = lambda values: np.nan_to_num(values, nan=-1)
  return {'accuracy': absent(accuracy), 'ce': absent(relative),
          'mce_15': corruption.mean_error(relative, names),
          'mce_all': corruption.mean_error(relative, names, names)}


@golden.kind('voc_11pt_ap')
def voc_11pt_ap(case):
  case.config.only('points', 11)
  x, out = case.inputs, {}
  for name, form in (('dinov3', 'dinov3'), ('kit', 'kit'),
                     ('kit_area', 'area')):
    out[f'{name}/per_class'] = classification.voc2007_precisions(
        x['scores'], x['labels'], form)
    out[f'{name}/map'] = classification.voc2007_map(
        x['scores'], x['labels'], form)
  return out


@golden.kind('revisited_map')
def revisited_map(case):
  x, out = case.inputs, {}
  scores = retrieval.similarities(x['query'], x['database'])
  for setup in ('easy', 'medium', 'hard'):
    precision, at = retrieval.revisited(
        scores, x['kind'], setup, case.config['ks'])
    out |= {f'{setup}/ap': np.nan_to_num(precision, nan=-1),
            f'{setup}/map': retrieval.mean(precision),
            f'{setup}/precision_at': np.nan_to_num(at, nan=-1),
            f'{setup}/mean_precision_at': np.nanmean(at, axis=0)}
  return out


@golden.kind('gap_met')
def gap_met(case):
  c, x, out = case.config, case.inputs, {}
  c.only('shrinkage', 1.0)
  unit = lambda a: a / np.linalg.norm(a, axis=1, keepdims=True)
  white = lambda a: retrieval.whitened(a, x['database'], c['dimensions'])
  for name, prepare in (('raw', unit), ('whitened', white)):
    scores = prepare(x['query']) @ prepare(x['database']).T
    predicted, sure = retrieval.soft_votes(
        scores, x['database_labels'], k=c['k'], temperature=c['temperature'])
    right, known = predicted == x['query_labels'], x['query_labels'] >= 0
    gap = retrieval.global_average_precision
    out |= {f'{name}/prediction': predicted.astype(np.int32),
            f'{name}/confidence': sure,
            f'{name}/gap': gap(sure, right, known),
            f'{name}/gap_no_distractors': gap(
                sure[known], right[known], known[known]),
            f'{name}/accuracy': right[known].mean()}
  return out


@golden.kind('corloc')
def corloc(case):
  case.config.only('threshold', 0.5)
  x = case.inputs
  overlaps = np.full(x['truth'].shape[:2], -1.0)
  found = np.zeros(len(x['box']), bool)
  for i, (box, truth, count) in enumerate(zip(
      x['box'], x['truth'], x['counts'], strict=True)):
    overlaps[i, :count] = overlap.iou(box, truth[:count])
    found[i] = overlap.is_localised(box, truth[:count])
  return {'iou': overlaps, 'found': found,
          'corloc': 100 * found[x['counts'] > 0].mean()}


@golden.kind('few_shot_sampling')
def few_shot_sampling(case):
  """Counts by class are theirs; images that are drawn are ours."""
  c, labels, several = (
      case.config, case.inputs['labels'], case.inputs['multilabel'])
  out, size = {}, labels.max() + 1
  for amount in (*c['shots'], *c['percents']):
    tries = [few_shot.per_class(labels, amount, seed)
             for seed in range(c['tries'])]
    again = few_shot.per_class(labels, amount, 0)
    np.testing.assert_array_equal(tries[0], again)
    assert (np.diff(again) > 0).all()
    counts = {tuple(np.bincount(labels[index], minlength=size))
              for index in tries}
    out[f'per_class_{amount}'], = counts
    out[f'tries_differ_{amount}'] = any(
        not np.array_equal(tries[0], index) for index in tries[1:])
  shots = c['shots'][0]
  out['inclusion_probability'] = np.minimum(
      1, shots / np.bincount(labels))[labels]
  often = np.zeros(len(labels))
  for seed in range(400):
    often[few_shot.per_class(labels, shots, seed)] += 1 / 400
  np.testing.assert_allclose(  # five standard errors
      often, out['inclusion_probability'], atol=5 * 0.5 / 20)
  train, held = few_shot.split(labels, c['val_fraction'], 0)
  assert sorted([*train, *held]) == list(range(len(labels)))
  for name, index in (('train', train), ('val', held)):
    out[f'{name}_per_class'] = np.bincount(labels[index], minlength=size)
  assert c['multilabel'] is True
  part = c['percents'][0]
  drawn = [few_shot.per_label(several, part, seed) for seed in range(40)]
  for name, values in (
      ('images', [len(index) for index in drawn]),
      ('labels', [several[index].sum() for index in drawn])):
    mean, spread = case.outputs[f'multilabel/{name}_mean_std']
    error = spread / np.sqrt(40)
    out[f'multilabel/{name}_mean_std'] = golden.Within(
        np.array([np.mean(values), np.std(values)]),
        # Both means are of 40 tries; a deviation is known to 1/√80 of itself.
        atol=np.array([4 * np.sqrt(2) * error, 4 * np.sqrt(2) * error]))
  out['multilabel/labels_wanted'] = np.int32(part * several.sum())
  return out
