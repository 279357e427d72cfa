"""What the backward pass keeps changes memory and work, never the result."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.models import layers
from dinojax.models import network
from dinojax.models import vit
from dinojax.parallel import mesh as mesh_lib

CONFIG = vit.ViTConfig(
    embed_dim=32, depth=3, num_heads=2, patch_px=4, image_px=16,
    layerscale=1.0, position='rope', attention='xla')
ONE = 1, 1  # device
IMAGES = np.random.default_rng(0).normal(size=(8, 16, 16, 3)).astype('float32')


@functools.cache
def gradients(kind, shape):
  """Gradients of a sum over patches, and the program that gave them."""
  config = dataclasses.replace(CONFIG, remat=kind)
  mesh = mesh_lib.make(*shape, devices=jax.devices()[:shape[0] * shape[1]])
  with mesh_lib.activate(mesh):
    model = network.Functional(lambda rngs: vit.ViT(config, rngs=rngs), mesh)
    params = jax.jit(model.init, out_shardings=jax.tree.map(
        lambda s: jax.NamedSharding(mesh, s), model.specs,
        is_leaf=lambda x: isinstance(x, jax.P)))(jax.random.key(0))
    rows = jax.device_put(IMAGES, jax.NamedSharding(mesh, mesh_lib.ROWS))

    def loss(params, rows):
      out = model.apply(params, rows, lambda net, rows: net(
          {'global': rows}, train=True)['global']['patches'])
      return jnp.sum(jnp.sin(out))

    traced = jax.jit(jax.grad(loss)).trace(params, rows)
    run = traced.lower().compile()
    return jax.device_get(run(params, rows)), str(traced.jaxpr)


@pytest.mark.parametrize('shape', [
    ONE, pytest.param((2, 4), marks=pytest.mark.slow, id='mesh')])
@pytest.mark.parametrize('kind', ['dots', *(
    pytest.param(kind, marks=pytest.mark.slow)
    for kind in layers.REMAT if kind not in ('none', 'dots'))])
def test_gradients_are_those_of_a_pass_that_keeps_everything(kind, shape):
  want, _ = gradients('none', ONE)
  got, _ = gradients(kind, shape)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def test_dots_repeats_no_product_with_weights():
  # Scores are computed again, attended values are not.
  products = {k: len(re.findall('dot_general', gradients(k, ONE)[1]))
              for k in layers.REMAT}
  assert products['dots'] == products['none'] + 1
  assert products['blocks'] > products['dots'] + 3


def test_offload_keeps_the_inputs_of_blocks_on_the_host():
  stored = '[3,8,17,32]'  # three blocks, 8 images of 1 + 16 tokens
  kept = {k: set(re.findall(rf'f32(<host>)?{re.escape(stored)}',
                            gradients(k, ONE)[1])) for k in layers.REMAT}
  assert kept['offload'] == {'<host>'} and kept['blocks'] == {''}
