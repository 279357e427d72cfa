"""EoMT's network: what holds for any weights. Numbers: tests/kinds/eomt.py."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.core import tree
from dinojax.kernels import resample
from dinojax.models import vit
from dinojax.models.dense import eomt
from dinojax.models.dense import queries
from dinojax.parallel import mesh as mesh_lib
from tests import close

GRID, IMAGES = (3, 2), 8
BACKBONE = vit.ViTConfig(
    16, 3, 2, 8, num_registers=1, position='rope', mask_k_bias=True,
    ffn_hidden=24)
CONFIG = eomt.Config(BACKBONE, 3, num_queries=5, num_blocks=2)


@functools.cache
def made():
  """Parameters, none of them at its start, and tokens."""
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(lambda: eomt.init(jax.random.key(0), CONFIG))
  draw = lambda leaf: np.float32(0.4 * rng.normal(size=leaf.shape))
  return jax.tree.map(draw, shapes), np.float32(rng.normal(
      size=(IMAGES, 2 + GRID[0] * GRID[1], 16)))


@functools.partial(jax.jit, static_argnames='config')
def run(params, tokens, opened=None, config=CONFIG):
  return eomt.apply(params, config, tokens, GRID, opened)


def test_the_names_are_those_of_the_backbone():
  params, _ = made()
  shapes = dict(tree.items(jax.eval_shape(
      lambda: eomt.init(jax.random.key(0), CONFIG))))
  assert {name for name, _ in tree.items(params)} == set(shapes)
  assert shapes['blocks/attn/qkv/kernel'].shape == (2, 16, 48)
  whole = {'blocks': {'x': np.arange(3)}, 'norm': 7, 'cls_token': 1}
  some = eomt.taken(whole, CONFIG)
  np.testing.assert_array_equal(some['blocks']['x'], [1, 2])
  assert some['norm'] == 7 and set(some) == {'blocks', 'norm'}


def test_queries_in_another_order_answer_in_that_order():
  params, tokens = made()
  order = np.array([3, 0, 4, 1, 2])
  (*_, want), _ = run(params, tokens)
  (*_, got), _ = run(params | {'queries': params['queries'][order]}, tokens)
  np.testing.assert_allclose(got.classes, want.classes[:, order], atol=1e-4)
  np.testing.assert_allclose(got.masks, want.masks[:, order], atol=1e-4)


def test_of_masks_that_hide_nothing_nothing_is_left():
  """All queries opened is masks off; and masks do change something."""
  params, tokens = made()
  off, _ = run(params, tokens,
               config=dataclasses.replace(CONFIG, masked=False))
  opened, _ = run(params, tokens, jnp.ones((IMAGES, 2, 5), bool))
  masked, _ = run(params, tokens)
  assert (len(off), len(opened), len(masked)) == (1, 3, 3)
  close.close(opened[-1], off[-1], of_largest=1e-5)
  assert np.abs(masked[-1].masks - off[-1].masks).max() > 1e-2
  # The first predictions are made before any block.
  close.close(masked[0], opened[0], of_largest=1e-6)


def test_a_query_that_is_opened_is_so_in_its_block_alone():
  params, tokens = made()
  second = np.zeros((IMAGES, 2, 5), bool)
  second[:, 1] = True
  masked, _ = run(params, tokens)
  got, _ = run(params, tokens, jnp.asarray(second))
  close.close(got[1], masked[1], of_largest=1e-5)
  assert np.abs(got[2].masks - masked[2].masks).max() > 1e-2


def test_masks_at_patches_are_the_masks_resized():
  params, tokens = made()
  tokens = np.concatenate([np.repeat(
      np.asarray(params['queries'])[None], len(tokens), axis=0), tokens], 1)
  predicted, small = jax.jit(lambda params, tokens: queries.predict(
      params, tokens, 5, GRID))(params, tokens)
  want = resample.resize_linear(predicted.masks[..., None], GRID)[..., 0]
  close.close(small, want.reshape(small.shape), of_largest=1e-5)
  np.testing.assert_array_equal(queries.allowed(small), small > 0)


def test_images_know_nothing_of_each_other():
  params, tokens = made()
  other = tokens.copy()
  other[-1] = 1e3  # padding, whatever it holds
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:-1], b[:-1]),
               run(params, tokens), run(params, other))


def test_steps_to_masks_follow_from_the_patch_or_are_given():
  params, tokens = made()
  out, _ = run(params, tokens)
  assert out[-1].masks.shape == (IMAGES, 5, 6, 4)
  config = dataclasses.replace(CONFIG, num_upscales=2)
  more = jax.eval_shape(lambda: eomt.apply(
      eomt.init(jax.random.key(0), config), config, tokens, GRID)[0])
  assert more[-1].masks.shape == (IMAGES, 5, 12, 8)


def test_rates_fall_from_the_last_block():
  np.testing.assert_allclose(
      eomt.layer_factors(4, 2), [0.512, 0.64, 0.8, 1], rtol=1e-6)
  np.testing.assert_allclose(
      eomt.layer_factors(4, 2, full=True), [0.512, 0.64, 1, 1], rtol=1e-6)
  assert [eomt.usual_blocks(n) for n in (2, 12, 24, 40)] == [2, 3, 4, 5]


@pytest.mark.slow  # probes/test_eomt.py has the head on a mesh
@pytest.mark.parametrize('sizes', [(2, 4), (8, 1)])
def test_a_mesh_changes_nothing(sizes):
  params, tokens = made()
  opened = np.random.default_rng(1).random((IMAGES, 2, 5)) < 0.5

  def learned(mesh):
    def loss(params, tokens, opened):
      out, x = eomt.apply(params, CONFIG, tokens, GRID, opened)
      return sum(jnp.sum(jnp.sin(each.masks)) + jnp.sum(each.classes ** 2)
                 for each in out) + jnp.sum(x ** 3), out

    with mesh_lib.activate(mesh):
      split = jax.NamedSharding(mesh, mesh_lib.ROWS)
      return jax.device_get(jax.jit(jax.grad(loss, has_aux=True))(
          jax.device_put(params, jax.NamedSharding(mesh, jax.P())),
          *jax.device_put((tokens, opened), split)))

  close.close(learned(mesh_lib.make(*sizes)),
              learned(mesh_lib.make(devices=jax.devices()[:1])),
              of_largest=1e-5)
