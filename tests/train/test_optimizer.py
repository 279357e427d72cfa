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
  for name in params['part']:
    case.check(f'{version}/exp_avg/{name}', opt['mu']['part'][name])
    case.check(f'{version}/exp_avg_sq/{name}', opt['nu']['part'][name])


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


def test_factors_of_a_convnext_equal_reference():
  case = golden.load('param_groups')
  tree_of = lambda values: torch_names.nest({
      convnext(str(name)): np.full(1, value) for name, value in zip(
          case.outputs['v3_convnext/names'], values, strict=True)})
  decays = tree_of(case.outputs['v3_convnext/wd_multiplier'])
  got = optimizer.multipliers(
      {'backbone': decays}, depth=0, layerwise_decay=0.9)
  for (name, value), (_, want) in zip(
      tree.items(got.weight_decay['backbone']), tree.items(decays),
      strict=True):
    assert value == want[0], name
  assert set(jax.tree.leaves(got.lr)) == {1.0}
  assert not any(jax.tree.leaves(got.last_layer))


def convnext(name):
  """Our path: the reference has indices for the modules between stages."""
  *parents, leaf = name.split('.')
  if parents[0] == 'downsample_layers':
    norm_first = parents[1] != '0'
    parents[2] = 'norm' if (parents[2] == '0') == norm_first else 'conv'
  if leaf == 'weight':
    leaf = 'scale' if parents[-1] == 'norm' else 'kernel'
  return '/'.join([*parents, leaf])


@pytest.mark.parametrize('path', [
    'backbone/mystery', 'backbone/blocks/mystery/kernel',
    'backbone/blocks/norm1/mystery', 'dino_head/last_layer/mystery',
    'neck/mlp/fc0/kernel'])
def test_an_unknown_parameter_is_named(path):
  with pytest.raises(ValueError, match=f'covers parameter {path}:'):
    optimizer.multipliers(torch_names.nest({path: np.zeros((2, 3))}), depth=2)


def test_another_depth_is_named():
  params = torch_names.nest({'backbone/blocks/norm1/scale': np.zeros((3, 4))})
  with pytest.raises(ValueError, match=r'norm1/scale of shape \(3, 4\)'):
    optimizer.multipliers(params, depth=2)


@pytest.mark.parametrize('depth, decay, want', [
    (24, 0.9, (0.07179, 0.01436, 0.07977, 0.9)),
    (40, 0.98, (0.43679, 0.08736, 0.44570, 0.98))])
def test_published_factors(depth, decay, want):
  params = torch_names.nest({
      'backbone/cls_token': np.zeros(4),
      'backbone/patch_embed/kernel': np.zeros((2, 2, 3, 4)),
      'backbone/blocks/attn/qkv/kernel': np.zeros((depth, 4, 12))})
  lr = optimizer.multipliers(
      params, depth=depth, layerwise_decay=decay).lr['backbone']
  blocks = lr['blocks']['attn']['qkv']['kernel']
  assert blocks.shape == (depth, 1, 1)
  np.testing.assert_allclose(
      [lr['cls_token'], lr['patch_embed']['kernel'], *blocks[[0, -1], 0, 0]],
      want, atol=5e-6)


def test_decay_follows_the_rate_of_the_parameter():
  params = {'dino_head': {
      'mlp': {'fc0': {'kernel': jnp.ones((2, 2)), 'bias': jnp.ones(2)}},
      'last_layer': {'kernel': jnp.ones((2, 2))}}}
  adam = optimizer.AdamW(optimizer.multipliers(params, depth=0))
  grads = jax.tree.map(jnp.zeros_like, params)
  new, opt = adam.update(
      grads, adam.init(params), params, lr=0.1, last_layer_lr=0.0,
      weight_decay=0.5)
  head = new['dino_head']
  np.testing.assert_allclose(head['mlp']['fc0']['kernel'], 1 - 0.1 * 0.5)
  np.testing.assert_array_equal(head['mlp']['fc0']['bias'], 1)
  np.testing.assert_array_equal(head['last_layer']['kernel'], 1)
  assert int(opt['count']) == 1


def test_moments_grow_while_the_last_layer_is_frozen():
  params = {'dino_head': {'last_layer': {'kernel': jnp.ones((2, 2))}}}
  adam = optimizer.AdamW(optimizer.multipliers(params, depth=0))
  new, opt = adam.update(
      params, adam.init(params), params, lr=0.1, last_layer_lr=0.0,
      weight_decay=0.5)
  np.testing.assert_array_equal(new['dino_head']['last_layer']['kernel'], 1)
  np.testing.assert_allclose(
      opt['mu']['dino_head']['last_layer']['kernel'], 0.1, rtol=1e-6)


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
  assert optimizer.clip_per_part(grads, None)[0] is grads


def test_select_keeps_everything_when_false():
  old, new = {'a': jnp.zeros(2)}, {'a': jnp.full((2,), jnp.nan)}
  kept = jax.jit(optimizer.select)(jnp.asarray(False), new, old)
  np.testing.assert_array_equal(kept['a'], 0)
