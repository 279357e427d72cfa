"""AdamW, its factors and its guards against the references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.core import tree
from dinojax.train import optimizer
from tests import golden
from tests.models import torch_names


def nested(case, prefix):
  flat = {k.removeprefix(prefix).replace('/', ' '): jnp.asarray(v)
          for k, v in case.inputs.items() if k.startswith(prefix)}
  return {'part': flat}


@pytest.mark.parametrize('version', ['v2', 'v3'])
def test_adamw_with_clipping_equals_reference(version):
  case = golden.load('adamw_steps')
  groups = case.meta['config']['groups']
  params = nested(case, 'p0/')
  pick = lambda key: {'part': {
      name: groups[name][key] for name in params['part']}}
  factors = optimizer.Multipliers(
      pick('lr_multiplier'), pick('wd_multiplier'), pick('is_last_layer'))
  adam = optimizer.AdamW(factors)
  opt = adam.init(params)
  for i in range(5):
    grads, norms = optimizer.clip_per_part(
        nested(case, f'grad{i}/'), case.meta['config']['clip'])
    case.check(f'{version}/clip_norm{i}', norms['part'])
    rates = {k: float(case.inputs[n][i]) for k, n in (
        ('lr', 'lr'), ('last_layer_lr', 'last_layer_lr'),
        ('weight_decay', 'wd'))}
    params, opt = adam.update(grads, opt, params, **rates)
    for name, value in params['part'].items():
      case.check(f'{version}/step{i}/{name}', value)


def by_path(name, case, call):
  """The reference's multipliers under our paths, blocks stacked."""
  names = [str(n) for n in case.outputs[f'{call}/names']]
  values = case.outputs[f'{call}/{name}'].astype(np.float32)
  state = {n: np.full(_rank(n), v) for n, v in zip(names, values,
                                                   strict=True)}
  convert = torch_names.head if 'head' in call else torch_names.backbone
  return convert(state)


def _rank(name):
  if name == 'patch_embed.proj.weight':
    return (1,) * 4
  if name.endswith('_token') or name.endswith('_tokens') or (
      name == 'pos_embed'):
    return (1, 1, 1)
  is_norm = 'norm' in name
  return (1, 1) if 'weight' in name and not is_norm else (1,)


@pytest.mark.parametrize('call', [
    'v2_vit', 'v2_vit_chunked', 'v2_vit_swiglu', 'v3_vit', 'v3_vit_swiglu',
    'v2_dino_head', 'v3_dino_head'])
def test_factors_equal_reference(call):
  case = golden.load('param_groups')
  expected = {key: by_path(key, case, call) for key in (
      'lr_multiplier', 'wd_multiplier', 'is_last_layer')}
  part = 'dino_head' if 'head' in call else 'backbone'
  shapes = {part: expected['lr_multiplier']}
  depth = 0 if part == 'dino_head' else (
      expected['lr_multiplier']['blocks']['norm1']['scale'].shape[0])
  got = optimizer.multipliers(
      shapes, depth=depth, layerwise_decay=0.9, patch_embed_lr_mult=0.2)
  for ours, theirs in ((got.lr, 'lr_multiplier'),
                       (got.weight_decay, 'wd_multiplier'),
                       (got.last_layer, 'is_last_layer')):
    for (name, value), (_, want) in zip(
        tree.items(ours[part]), tree.items(expected[theirs]), strict=True):
      np.testing.assert_allclose(
          np.broadcast_to(value, want.shape).astype(np.float32), want,
          rtol=1e-6, err_msg=f'{name} {theirs}')


def test_an_unknown_parameter_is_named():
  with pytest.raises(ValueError, match='backbone/mystery'):
    optimizer.multipliers({'backbone': {'mystery': np.zeros(3)}}, depth=2)


def test_the_first_bad_leaf_is_named():
  grads = {'a': jnp.ones(3), 'b': {'c': jnp.asarray([1.0, jnp.nan])},
           'd': jnp.asarray([jnp.inf])}
  finite, first = optimizer.finite_report(grads)
  assert not finite
  assert tree.names(grads)[int(first)] == 'b/c'
  finite, first = optimizer.finite_report({'a': jnp.ones(3)})
  assert finite and first == -1


def test_parts_are_clipped_by_themselves():
  grads = {'a': jnp.full((4,), 5.0), 'b': jnp.full((4,), 0.1)}
  clipped, norms = optimizer.clip_per_part(grads, 1.0)
  np.testing.assert_allclose(norms['a'], 10.0)
  np.testing.assert_allclose(optimizer.optax.tree.norm(clipped['a']), 1.0,
                             rtol=1e-5)
  np.testing.assert_array_equal(clipped['b'], grads['b'])


def test_select_keeps_everything_when_false():
  old, new = {'a': jnp.zeros(2)}, {'a': jnp.full((2,), jnp.nan)}
  kept = jax.jit(optimizer.select)(jnp.asarray(False), new, old)
  np.testing.assert_array_equal(kept['a'], 0)
