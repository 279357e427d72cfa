"""Copy detection, from tokens to average precision."""

import numpy as np

from dinojax.metrics import copies
from dinojax.metrics import retrieval
from tests import golden


@golden.kind('copydays_descriptor')
def copydays_descriptor(case):
  c, x, out = case.config, case.inputs, {}
  described = {
      name: np.asarray(copies.descriptors(
          x[f'{name}/tokens'][:, 0], x[f'{name}/tokens'][:, 1:],
          power=c['gem_power'], floor=c['gem_floor']))
      for name in ('original', 'strong', 'distractors', 'whitening')}
  join = lambda *names: np.concatenate([described[name] for name in names])
  query, database = join('original', 'strong'), join('original', 'distractors')
  white = lambda rows: copies.whitened(
      rows, described['whitening'], c['eigenvalue_floor'])
  similarity = retrieval.similarities(white(query), white(database))
  count = len(described['original'])
  of = np.concatenate([np.arange(count), x['strong/original_index']])
  precision = copies.average_precision(
      similarity, of[:, None] == np.arange(len(database)), c['top'])
  out |= {'queries_raw': query, 'database_raw': database,
          'similarity': similarity}
  for name, rows in (('original', precision[:count]),
                     ('strong', precision[count:])):
    out |= {f'ap_{name}': rows, f'map_{name}': retrieval.mean(rows)}
  return out
