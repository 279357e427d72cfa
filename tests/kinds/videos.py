"""The attentive probe of video classification."""

import jax
import numpy as np

from dinojax.probes.tasks import attend
from tests import golden


def params_of(weights, prefix=''):
  """Parameters of ours of a state dict of theirs."""
  weights = {name.removeprefix(prefix): value
             for name, value in weights.items() if name.startswith(prefix)}

  def linear(name):
    return {'kernel': np.swapaxes(weights[f'{name}.weight'], -1, -2),
            'bias': weights[f'{name}.bias']}

  norm = lambda name: {'scale': weights[f'{name}.weight'],
                       'bias': weights[f'{name}.bias']}

  def block(name, attention):
    return {'norm1': norm(f'{name}.norm1'), 'norm2': norm(f'{name}.norm2'),
            'fc1': linear(f'{name}.mlp.fc1'),
            'fc2': linear(f'{name}.mlp.fc2')} | {
                key: linear(f'{name}.{attention}.{key}')
                for key in (('q', 'kv') if attention == 'xattn' else
                            ('qkv', 'proj'))}

  cross = 'cross_attention_block'
  whole = f'{cross}.norm1.weight' in weights
  out = {'query': weights['query_tokens'][0],
         'cross': block(cross, 'xattn') if whole else {
             key: linear(f'{cross}.{key}') for key in ('q', 'kv')}}
  count = len({name.split('.')[1] for name in weights
               if name.startswith('blocks.')})
  if count:
    blocks = [block(f'blocks.{i}', 'attn') for i in range(count)]
    out['blocks'] = jax.tree.map(lambda *x: np.stack(x), *blocks)
  return out


@golden.kind('attentive_probe_forward')
def attentive_probe_forward(case):
  c, x = case.config, case.inputs
  pooler = params_of(case.weights['pooler'])
  weights = case.weights['classifier']
  classifier = params_of(weights, 'pooler.')
  assert len(pooler['query']) == c['num_queries_of_pooler']
  assert c['complete_block'] == ('norm1' in pooler['cross'])
  assert c['depth'] == 1 + (len(pooler['blocks']['norm1']['scale'])
                            if 'blocks' in pooler else 0)
  if c['complete_block']:
    width, hidden = pooler['cross']['fc1']['kernel'].shape
    assert hidden == int(width * c['mlp_ratio'])
  c.skip('mlp_ratio')
  pool = jax.jit(lambda params, tokens: attend.pool(
      params, tokens, c['num_heads']))

  def logits(tokens):
    return np.asarray(pool(classifier, tokens))[:, 0] @ weights[
        'linear.weight'].T + weights['linear.bias']

  views = x['view_tokens']
  of_views = logits(views.reshape(-1, *views.shape[2:])).reshape(
      *views.shape[:2], -1)
  return {
      'pooled': pool(pooler, x['tokens']), 'logits': logits(x['tokens']),
      'views_mean_softmax': attend.averaged(of_views),
      'views_mean_logits': attend.averaged(of_views, 'logits')}
