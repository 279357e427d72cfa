"""AdamW, its factors and its guards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.core import tree
from dinojax.engine import optimizer
from dinojax.train import multipliers


def nest(flat):
  """A tree of {path: leaf}."""
  out = {}
  for path, value in flat.items():
    *parents, leaf = path.split('/')
    node = out
    for name in parents:
      node = node.setdefault(name, {})
    node[leaf] = value
  return out


@pytest.mark.parametrize('path', [
    'backbone/mystery', 'backbone/blocks/mystery/kernel',
    'backbone/blocks/norm1/mystery', 'dino_head/last_layer/mystery',
    'neck/mlp/fc0/kernel'])
def test_an_unknown_parameter_is_named(path):
  with pytest.raises(ValueError, match=f'covers parameter {path}:'):
    multipliers.multipliers(nest({path: np.zeros((2, 3))}), depth=2)


def test_another_depth_is_named():
  params = nest({'backbone/blocks/norm1/scale': np.zeros((3, 4))})
  with pytest.raises(ValueError, match=r'norm1/scale of shape \(3, 4\)'):
    multipliers.multipliers(params, depth=2)


@pytest.mark.parametrize('depth, decay, want', [
    (24, 0.9, (0.07179, 0.01436, 0.07977, 0.9)),
    (40, 0.98, (0.43679, 0.08736, 0.44570, 0.98))])
def test_published_factors(depth, decay, want):
  params = nest({
      'backbone/cls_token': np.zeros(4),
      'backbone/patch_embed/kernel': np.zeros((2, 2, 3, 4)),
      'backbone/blocks/attn/qkv/kernel': np.zeros((depth, 4, 12))})
  lr = multipliers.multipliers(
      params, depth=depth, layerwise_decay=decay).lr['backbone']
  blocks = lr['blocks']['attn']['qkv']['kernel']
  assert blocks.shape == (depth, 1, 1)
  np.testing.assert_allclose(
      [lr['cls_token'], lr['patch_embed']['kernel'], *blocks[[0, -1], 0, 0]],
      want, atol=5e-6)


def first_update(grads, params, rule=None, **waits):
  """Parameters and state after an update at rate 0.1 and decay 0.5."""
  rule = rule or optimizer.adamw()
  now = {'lr': jnp.float32(0.1), 'last_layer_lr': jnp.float32(0.0)} | waits
  return rule.update(
      grads, rule.init(params), params,
      {'lr': now['lr'], 'weight_decay': 0.5},
      multipliers.multipliers(params, depth=0).at(now))


def test_decay_follows_the_rate_of_the_parameter():
  params = {'dino_head': {
      'mlp': {'fc0': {'kernel': jnp.ones((2, 2)), 'bias': jnp.ones(2)}},
      'last_layer': {'kernel': jnp.ones((2, 2))}}}
  grads = jax.tree.map(jnp.zeros_like, params)
  new, opt = first_update(grads, params)
  head = new['dino_head']
  np.testing.assert_allclose(head['mlp']['fc0']['kernel'], 1 - 0.1 * 0.5)
  np.testing.assert_array_equal(head['mlp']['fc0']['bias'], 1)
  np.testing.assert_array_equal(head['last_layer']['kernel'], 1)
  assert int(opt['count']) == 1


def test_moments_grow_while_the_last_layer_is_frozen():
  params = {'dino_head': {'last_layer': {'kernel': jnp.ones((2, 2))}}}
  new, opt = first_update(params, params)
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


def test_a_backbone_that_waits_keeps_its_weights_and_its_moments_grow():
  params = {'backbone': {'norm': {'scale': jnp.full(3, 2.0)}},
            'dino_head': {'mlp': {'fc0': {'bias': jnp.full(3, 2.0)}}}}
  new, opt = first_update(params, params, backbone_trains=0.0)
  np.testing.assert_array_equal(new['backbone']['norm']['scale'], 2)
  assert (new['dino_head']['mlp']['fc0']['bias'] < 2).all()
  assert (opt['mu']['backbone']['norm']['scale'] > 0).all()


@pytest.mark.torch
def test_sgd_is_that_of_pytorch():
  import torch
  rng = np.random.default_rng(0)
  start, grads = rng.normal(size=(2, 4)), rng.normal(size=(3, 2, 4))
  theirs = torch.nn.Parameter(torch.tensor(start, dtype=torch.float32))
  rule = torch.optim.SGD([theirs], lr=0.1, momentum=0.8)
  ours = {'w': jnp.asarray(start, jnp.float32)}
  sgd = optimizer.sgd(beta1=0.8)
  state, factors = sgd.init(ours), optimizer.Multipliers({'w': 1.0}, {'w': 0.0})
  for grad in grads:
    theirs.grad = torch.tensor(grad, dtype=torch.float32)
    rule.step()
    ours, state = sgd.update(
        {'w': jnp.asarray(grad, jnp.float32)}, state, ours,
        {'lr': 0.1, 'weight_decay': 0.0}, factors)
  np.testing.assert_allclose(
      ours['w'], theirs.detach().numpy(), rtol=1e-6, atol=1e-7)


def test_a_rate_of_its_own_for_the_momentum():
  params = {'backbone': {'norm': {'scale': jnp.ones(3)}}}
  rule = optimizer.adamw(beta1=0.9)
  factors = optimizer.Multipliers(*[jax.tree.map(lambda _: 1.0, params)] * 2)
  _, state = rule.update(
      params, rule.init(params), params,
      {'lr': 0.1, 'weight_decay': 0.0, 'beta1': jnp.float32(0.5)}, factors)
  np.testing.assert_allclose(
      state['mu']['backbone']['norm']['scale'], 0.5)
