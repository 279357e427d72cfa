"""The text tower and the vision head: meshes, draws, what reads what.

Numbers: tests/kinds/text.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.models import network
from dinojax.models.text import tower
from dinojax.models.text import vision_head
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import sharding
from tests import close

TEXT = tower.Config(
    width=32, depth=2, num_heads=2, context=9, vocabulary=200, embed_dim=64,
    dropout=0.25)
VISION = vision_head.Config(
    width=32, depth=2, num_heads=2, embed_dim=96, drop_path_rate=0.5)
IDS = np.random.default_rng(0).integers(0, 200, (16, 9), dtype=np.int32)


def tokens(images=16):
  rng = np.random.default_rng(1)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  return {'cls': draw(images, 32), 'registers': draw(images, 2, 32),
          'patches': draw(images, 6, 32)}


def one_device():
  return mesh_lib.make(devices=jax.devices()[:1])


def learned(mesh, module, config, rows, call):
  """Embeddings of rows, and gradients of the parameters."""
  with mesh_lib.activate(mesh):
    net = network.functional(module, config, mesh)
    params = jax.jit(net.init, out_shardings=sharding.shardings(
        net.shapes, mesh))(jax.random.key(0))

    def loss(params, rows):
      out = net.apply(params, rows, call)
      return jnp.sum(jnp.sin(3 * out)), out

    grads, out = jax.jit(jax.grad(loss, has_aux=True))(
        params, jax.device_put(rows, jax.NamedSharding(mesh, mesh_lib.ROWS)))
    assert jax.tree.map(lambda x: x.sharding.spec, grads) == jax.tree.map(
        lambda x: x.sharding.spec, params)
    return jax.device_get((out, grads, params))


CALLS = {
    'text': (tower.Tower, TEXT, {
        'ids': IDS, 'draws': tower.draw(jax.random.key(1), TEXT, 16)},
             lambda net, rows: net(rows['ids'], rows['draws'])),
    'vision': (vision_head.VisionHead, VISION, tokens() | {
        'draws': vision_head.draw(
            jax.random.key(1), VISION, num_groups=8, rows=2)},
               lambda net, rows: net(rows)['embedding'])}


@pytest.mark.slow  # in make test probes/test_align.py makes both on a mesh
@pytest.mark.parametrize('name', CALLS)
def test_a_mesh_changes_nothing(name):
  alone = learned(one_device(), *CALLS[name])
  for shape in ((8, 1), (2, 4)):
    close.close(learned(mesh_lib.make(*shape), *CALLS[name]), alone,
                of_largest=1e-5)


def test_parameters_are_split():
  specs = dict(sharding.tree.items(network.functional(
      tower.Tower, TEXT, mesh_lib.make(2, 4)).specs))
  assert specs['token_embedding'][1] == specs['blocks/mlp/fc1/kernel'][2] == (
      'fsdp')


def embedded(module, config, rows, call):
  mesh = one_device()
  with mesh_lib.activate(mesh):
    net = network.functional(module, config, mesh)
    params = jax.jit(net.init)(jax.random.key(0))
    rows = jax.device_put(rows, jax.NamedSharding(mesh, mesh_lib.ROWS))
    return jax.device_get(jax.jit(lambda params, rows: net.apply(
        params, rows, call))(params, rows)), params


def text_net(**changes):
  config = dataclasses.replace(TEXT, dropout=0.0, **changes)
  return lambda ids, call: embedded(tower.Tower, config, ids, call)[0]


def test_causal_tokens_see_only_those_before():
  others = IDS.copy()
  others[:, 5] = (others[:, 5] + 7) % 200
  read = lambda net, ids: net.tokens(ids)
  for causal in (True, False):
    run = text_net(causal=causal)
    change = np.abs(run(IDS, read) - run(others, read)).max((0, 2))
    assert (change[5:] > 1e-4).all()
    assert (change[:5] == 0).all() == causal


@pytest.mark.parametrize('pooling, place', [
    # A golden case reads the last.
    pytest.param('first', 0, marks=pytest.mark.slow),
    pytest.param('last', 8, marks=pytest.mark.slow), ('argmax', 3)])
def test_a_token_is_read(pooling, place):
  ids = np.full((2, 9), 3, np.int32)
  ids[:, [3, 6]] = 199  # the largest, twice: the first counts
  run = text_net(pooling=pooling)
  every = run(ids, lambda net, ids: net.projection(net.tokens(ids)))
  got = run(ids, lambda net, ids: net(ids))
  np.testing.assert_allclose(got, every[:, place], atol=1e-5)


def test_a_short_text_takes_the_first_places():
  run = text_net()
  read = lambda net, ids: net.tokens(ids)
  np.testing.assert_allclose(
      run(IDS[:, :4], read), run(IDS, read)[:, :4], atol=1e-5)
  with pytest.raises(ValueError, match='texts of 10 tokens, and the tower'):
    run(np.zeros((1, 10), np.int32), read)


def test_dropout_keeps_the_mean():
  draws = tower.draw(jax.random.key(0), TEXT, 64)
  assert draws['dropout'].shape == (64, 9, 32)
  assert abs(float(draws['dropout'].mean()) - 0.75) < 0.01
  assert tower.draw(
      jax.random.key(0), dataclasses.replace(TEXT, dropout=0.0), 64) == {}


def test_what_is_drawn_first_is_as_published():
  config = dataclasses.replace(
      TEXT, width=128, depth=8, layerscale=0.1, vocabulary=1000, head_depth=1)
  params = jax.jit(network.functional(
      tower.Tower, config, one_device()).init)(jax.random.key(0))
  leaves = dict(sharding.tree.items(params))
  std = {name: float(x.std()) for name, x in leaves.items()}
  d = 128
  for name, want in {
      'token_embedding': 0.02, 'positions': 0.01,
      'blocks/attn/qkv/kernel': d ** -0.5,
      'blocks/attn/proj/kernel': d ** -0.5 / 4,
      'blocks/mlp/fc1/kernel': (2 * d) ** -0.5,
      'blocks/mlp/fc2/kernel': d ** -0.5 / 4,
      'head_blocks/attn/proj/kernel': d ** -0.5,
      'head_blocks/mlp/fc2/kernel': d ** -0.5,
      'projection/kernel': d ** -0.5,
      'blocks/mlp/fc1/bias': (3 * d) ** -0.5,  # uniform up to 1/√inputs
      'blocks/mlp/fc2/bias': (12 * d) ** -0.5}.items():
    assert std[name] == pytest.approx(want, rel=0.1), name
  assert not leaves['blocks/attn/proj/bias'].any()
  assert (leaves['blocks/ls1/gamma'] == np.float32(0.1)).all()
  assert 'head_blocks/ls1/gamma' not in leaves


def test_a_head_without_layers_pools_what_it_gets():
  rows = tokens(2)
  mean, cls = rows['patches'].mean(1), rows['cls']
  gem = (np.maximum(rows['patches'], 1e-6) ** 3).mean(1) ** (1 / 3)
  for changes, want in (
      ({}, [cls, mean]), ({'pooling': 'max'}, [cls, rows['patches'].max(1)]),
      ({'pooling': 'gem', 'use_cls': False, 'embed_dim': 32}, [gem]),
      ({'use_patches': False, 'embed_dim': 32}, [cls])):
    config = dataclasses.replace(
        VISION, **{'depth': 0, 'embed_dim': 64} | changes)
    got, params = embedded(
        vision_head.VisionHead, config, rows, lambda net, rows: net(rows))
    assert not params
    np.testing.assert_allclose(
        got['embedding'], np.concatenate(want, axis=1), rtol=1e-5)
    np.testing.assert_array_equal(got['patches'], rows['patches'])


def test_a_head_that_drops_nothing_is_the_same_for_all_groups():
  still = dataclasses.replace(VISION, drop_path_rate=0.0)
  assert vision_head.draw(
      jax.random.key(0), still, num_groups=2, rows=4) == {}
  draws = vision_head.draw(jax.random.key(0), VISION, num_groups=2, rows=5)
  assert {x.shape for x in draws.values()} == {(2, 2, 2)}


def test_layers_of_the_backbone():
  assert VISION.layers(24) == (23,)
  second = dataclasses.replace(VISION, patch_layer=2)
  assert second.layers(24) == (22, 23)
  first, last = tokens(1), tokens(1)
  got = vision_head.inputs([first, last])
  assert got['cls'] is last['cls'] and got['patches'] is first['patches']
  assert got['registers'] is first['registers']


def test_mistakes_are_sentences():
  wrong = dataclasses.replace(TEXT, width=30, num_heads=4, remat='all')
  assert len(list(wrong.mistakes())) == 2 and not list(TEXT.mistakes())
  wrong = dataclasses.replace(
      VISION, width=30, num_heads=4, embed_dim=65)
  assert len(list(wrong.mistakes())) == 2
  none = dataclasses.replace(VISION, use_cls=False, use_patches=False)
  assert 'set one of them' in next(none.mistakes())


@pytest.mark.slow  # compiles all that the tests above do once more
def test_bfloat16_is_near():
  for module, config, rows, call in CALLS.values():
    want, got = (embedded(module, dataclasses.replace(
        config, dtype=dtype), rows, call)[0]
                 for dtype in ('float32', 'bfloat16'))
    assert got.dtype == np.float32
    np.testing.assert_allclose(
        got, want, atol=0.03 * np.abs(want).max())
