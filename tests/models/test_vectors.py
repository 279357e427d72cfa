"""Gradients of what all rows share are sums in float32."""

import dataclasses
import re

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.models import convnext
from dinojax.models import heads
from dinojax.models import layers
from dinojax.models import network
from dinojax.models import vectors
from dinojax.models import vit
from dinojax.parallel import mesh as mesh_lib

ROWS, WIDTH = 32, 8
MASK = np.arange(ROWS * 128).reshape(ROWS, 128) % 3 > 0


def rows(seed, dtype):
  """[r, n, d], one sign, so that nothing cancels; a few are large."""
  x = np.random.default_rng(seed).uniform(1, 2, (ROWS, 128, WIDTH))
  x[::7, ::5] *= 64
  return jnp.asarray(x, dtype)


# Ours, and what differentiation makes of the plain form.
FORMS = {
    'add': (vectors.add, lambda x, v: x + v.astype(x.dtype)[None, None]),
    'scale': (vectors.scale, lambda x, v: x * v.astype(x.dtype)[None, None]),
    'replace': (lambda x, v: vectors.replace(x, MASK, v),
                lambda x, v: jnp.where(
                    MASK[..., None], v.astype(x.dtype)[None, None], x)),
    'repeat': (
        lambda x, v: vectors.repeat(
            jnp.tile(v[None], (128, 1)), ROWS, x.dtype),
        lambda x, v: jnp.broadcast_to(v.astype(x.dtype), x.shape))}


def run(form, dtype):
  """Value, and gradients of rows and vector."""
  vector = jnp.linspace(0.5, 2, WIDTH)
  with jax.numpy_rank_promotion('allow'):
    out, back = jax.vjp(jax.jit(form), rows(0, dtype), vector)
    return out, *back(rows(1, dtype))


def exact(name):
  """The gradient of the vector, of the bfloat16 rows, in float64."""
  wide = lambda seed: np.asarray(rows(seed, jnp.bfloat16), np.float64)
  change = wide(1)
  change *= {'scale': wide(0), 'replace': MASK[..., None]}.get(name, 1)
  return change.sum((0, 1))


@pytest.mark.parametrize('name', FORMS)
def test_in_float32_nothing_changes(name):
  for got, want in zip(*(run(form, jnp.float32) for form in FORMS[name]),
                       strict=True):
    assert got.dtype == want.dtype
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize('name', FORMS)
def test_sums_of_bfloat16_rows_are_float32(name):
  ours, plain = (run(form, jnp.bfloat16) for form in FORMS[name])
  for got, want in zip(ours[:2], plain[:2], strict=True):
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, want)
  error = lambda grad: np.abs(np.asarray(grad) / exact(name) - 1).max()
  assert error(ours[2]) < 1e-5
  assert error(plain[2]) > 0.01  # what this is for


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float32])
def test_a_layer_norm_is_that_of_flax_with_float32_sums(dtype):
  rng = np.random.default_rng(0)
  scale, bias = rng.normal(1, 0.3, (2, 16)).astype(np.float32)
  x, change = rng.normal(size=(2, 2048, 16)).astype(dtype)

  def made(module, *args, **options):
    norm = module(*args, epsilon=1e-6, dtype=dtype, rngs=nnx.Rngs(0), **options)
    norm.scale[...], norm.bias[...] = scale, bias
    return norm

  ours = made(layers.LayerNorm, 16)
  plain = made(nnx.LayerNorm, 16, use_fast_variance=False)
  np.testing.assert_array_equal(
      np.asarray(ours(x), np.float32), np.asarray(plain(x), np.float32))
  grads = lambda norm: nnx.grad(
      lambda norm: (norm(x).astype(jnp.float32) * change).sum())(norm)
  wide = np.asarray(x, np.float64)
  wide -= wide.mean(-1, keepdims=True)
  wide /= np.sqrt((wide ** 2).mean(-1, keepdims=True) + 1e-6)
  exact = {'bias': np.asarray(change, np.float64).sum(0),
           'scale': (np.asarray(change, np.float64) * wide).sum(0)}

  def off(norm, name):
    grad = np.asarray(grads(norm)[name][...], np.float64)
    return np.abs(grad - exact[name]).max() / np.abs(exact[name]).max()

  for name in exact:
    assert off(ours, name) < 2e-6, name
  if dtype == jnp.bfloat16:
    assert off(plain, 'bias') > 1e-3  # what this is for


VIT = dict(embed_dim=16, depth=1, num_heads=2, patch_px=4, num_registers=1)
HEAD = heads.HeadConfig(8, hidden_dim=8, bottleneck_dim=4)
BACKBONES = {
    'v2': vit.ViTConfig(**VIT, image_px=16),
    'v3': vit.ViTConfig(**VIT, position='rope', norm='rmsnorm', ffn='swiglu',
                        mask_k_bias=True, untie_cls_and_patch_norms=True),
    'convnext': convnext.ConvNeXtConfig((1, 1, 1, 1), (8, 8, 16, 16))}


@pytest.mark.parametrize('name', BACKBONES)
def test_a_bfloat16_network_sums_no_gradient_in_bfloat16(name):
  config = network.NetworkConfig(
      dataclasses.replace(BACKBONES[name], dtype='bfloat16'), HEAD, HEAD)
  mesh = mesh_lib.make(devices=jax.devices()[:1])
  array = lambda dtype, *shape: jax.ShapeDtypeStruct(
      shape, dtype, sharding=jax.NamedSharding(mesh, mesh_lib.ROWS))
  rows = {'crops': {'global': array(jnp.float32, 2, 32, 32, 3)},
          'masks': {'global': array(jnp.bool_, 2, 64)},
          'mask_index': array(jnp.int32, 1, 3)}
  with mesh_lib.activate(mesh):
    net = network.Functional(
        lambda rngs: network.Network(config, rngs=rngs), mesh)

    def loss(params, rows):
      out = net.outputs(params, rows, train=True, patches=name != 'convnext')
      return sum(x.sum(dtype=jnp.float32) for x in jax.tree.leaves(out))

    text = jax.jit(jax.grad(loss)).lower(net.shapes, rows).as_text()
  assert 'bf16' in text
  assert not re.findall(
      r'applies stablehlo\.add [^\n]*-> tensor<[\dx]*bf16>', text)
