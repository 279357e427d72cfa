"""The ViT: equal numbers however it is computed, and RoPE's known values."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.models import network
from dinojax.models import positions
from dinojax.models import randomness
from dinojax.models import vit
from dinojax.parallel import mesh as mesh_lib
from tests import close

LEARNED = vit.ViTConfig(
    32, 2, 2, 4, image_px=16, drop_path_rate=0.3, layerscale=1.0)
ROPE = dataclasses.replace(
    LEARNED, position='rope', num_registers=2, ffn='swiglu', ffn_hidden=48,
    mask_k_bias=True, rope_shift=0.3, rope_jitter=1.3, rope_rescale=2.0,
    untie_global_and_local_cls_norm=True)


def features_and_gradients(config):
  """Of two crop sizes, everything random on; gradients of a sum."""
  mesh = mesh_lib.make(devices=jax.devices()[:1])
  with mesh_lib.activate(mesh):
    model = network.Functional(lambda rngs: vit.ViT(config, rngs=rngs), mesh)
    rng = np.random.default_rng(0)
    crop = lambda rows, px: np.float32(rng.normal(size=(rows, px, px, 3)))
    rows = {'crops': {'global': crop(4, 16), 'local': crop(6, 8)},
            'masks': {'global': np.arange(64).reshape(4, 16) % 3 == 0},
            'draws': jax.jit(lambda key: randomness.draw(
                key, config, num_groups=2, rows={'global': 2, 'local': 3}))(
                    jax.random.key(1))}
    rows = jax.device_put(rows, jax.NamedSharding(mesh, mesh_lib.ROWS))
    params = jax.jit(lambda key: jax.tree.map(
        lambda x: x + 0.1 * jnp.sin(jnp.arange(x.size)).reshape(x.shape),
        model.init(key)))(jax.random.key(2))

    def loss(params):
      out = model.apply(params, rows, lambda net, rows: net(
          rows['crops'], masks=rows['masks'], draws=rows['draws'],
          train=True))
      return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(out)), out

    grad, out = jax.jit(jax.grad(loss, has_aux=True))(params)
  return out, grad


@functools.cache
def plain(config):
  return features_and_gradients(dataclasses.replace(
      config, attention='xla', packing='tuple', remat='none'))


@pytest.mark.parametrize('config', [
    pytest.param(LEARNED, marks=pytest.mark.slow, id='learned'),
    pytest.param(ROPE, id='rope')])
def test_every_way_to_compute_gives_the_same(config):
  other = features_and_gradients(dataclasses.replace(
      config, attention='head_major', packing='stream', remat='blocks'))
  close.close(other, plain(config), of_largest=1e-5)


@pytest.mark.slow  # DINOv3's golden cases have periods of their own
def test_explicit_periods_replace_the_computed_ones():
  exact = ROPE.periods
  rounded = np.float32(exact).astype(jnp.bfloat16).astype(np.float32)
  config = dataclasses.replace(
      ROPE, rope_periods=tuple(float(x) for x in rounded))
  np.testing.assert_array_equal(config.periods, rounded)
  assert (rounded != exact).any()
  a, b = plain(ROPE)[0], plain(config)[0]
  assert 0 < np.abs(a['global']['cls'] - b['global']['cls']).max() < 0.1


def test_rope_known_values_in_bfloat16():
  # Training notes of the references: token (0, 1) of a 3 × 2 grid.
  periods = positions.rope_periods(64, dtype='bfloat16')
  sin, _ = positions.rope((3, 2), periods, dtype=jnp.bfloat16)
  np.testing.assert_allclose(
      sin[1, :4].astype(np.float32),
      [0.8671875, -0.0009689, -0.7148438, -0.9804688], atol=1e-6)
