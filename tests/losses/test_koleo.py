"""KoLeo of rows that lie close together, and of rows that are the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.losses import koleo
from dinojax.models import network
from dinojax.models import vit
from dinojax.parallel import mesh as mesh_lib

GAPS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)


def pairs(gap, width=64):
  """[16, d] float32 rows of any length, in pairs at a distance."""
  rng = np.random.default_rng(0)
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  x = unit(rng.normal(size=(8, width)))
  aside = rng.normal(size=x.shape)
  aside = unit(aside - (aside * x).sum(1, keepdims=True) * x)
  x = np.concatenate([x, unit(x + gap * aside)])
  return np.float32(x * rng.uniform(1, 5, (16, 1)))


def oracle(x):
  """Value and gradient of the references' form, by hand in float64."""
  x, epsilon = x.astype(np.float64), 1e-8
  norm = np.linalg.norm(x, axis=1, keepdims=True)
  unit = x / norm
  dots = unit @ unit.T
  np.fill_diagonal(dots, -1)
  nearest = dots.argmax(1)
  gap = unit - unit[nearest] + epsilon
  distance = np.linalg.norm(gap, axis=1, keepdims=True)
  pull = -gap / (distance * (distance + epsilon)) / len(x)
  change = pull.copy()
  np.add.at(change, nearest, -pull)
  change -= (change * unit).sum(1, keepdims=True) * unit
  return -np.log(distance + epsilon).mean(), change / norm


@jax.jit
def ours(x):
  value, grad = jax.value_and_grad(koleo.koleo)(x[None])
  return value, grad[0], koleo.duplicates(x[None])


def assert_near(got, want, gap):
  """As near as float32 allows: the rounding of a unit vector over the gap."""
  np.testing.assert_allclose(got[0], want[0], atol=1e-7 / gap + 2e-6)
  np.testing.assert_allclose(
      got[1], want[1], rtol=0, atol=1.5e-7 / gap * np.abs(want[1]).max())


def test_near_rows_have_the_value_and_the_gradient_of_float64():
  for gap in GAPS:
    x = pairs(gap)
    assert_near(ours(x), oracle(x), gap)
    assert ours(x)[2] == 0


@pytest.mark.torch
def test_near_rows_are_as_in_torch():
  import torch
  from torch.nn import functional
  for gap in GAPS:
    x = torch.tensor(pairs(gap), requires_grad=True)
    unit = functional.normalize(x, eps=1e-8, dim=-1)
    dots = unit.detach() @ unit.detach().T
    nearest = dots.fill_diagonal_(-1).argmax(1)
    distance = functional.pairwise_distance(unit, unit[nearest], eps=1e-8)
    value = -torch.log(distance + 1e-8).mean()
    value.backward()
    got = ours(pairs(gap))
    assert_near(got, (value.item(), x.grad.numpy()), gap / 2)


def test_rows_that_are_the_same_are_counted_and_pull_nothing():
  x = pairs(1e-2)
  x[8:11] = 3 * x[:3]  # three pairs whose directions are the same
  value, grad, count = ours(x)
  assert count == 6
  alone = np.delete(np.arange(16), [0, 1, 2, 8, 9, 10])
  np.testing.assert_array_equal(np.delete(grad, alone, axis=0), 0)
  assert np.abs(grad[alone]).min() > 0 and np.isfinite(value)


def test_a_bfloat16_network_hands_over_what_its_norm_computes():
  config = vit.ViTConfig(
      embed_dim=32, depth=1, num_heads=2, patch_px=8, image_px=16,
      layerscale=1.0, dtype='bfloat16')
  rng = np.random.default_rng(0)
  grey = rng.integers(0, 250, (2, 16, 16, 3))
  grey[1] = grey[0] + 1
  mesh = mesh_lib.make(devices=jax.devices()[:1])
  with mesh_lib.activate(mesh):
    net = network.Functional(lambda rngs: vit.ViT(config, rngs=rngs), mesh)
    images = jax.device_put(
        np.float32(grey / 57 - 2), jax.NamedSharding(mesh, mesh_lib.ROWS))
    out = jax.device_get(jax.jit(lambda x: net.apply(
        net.init(jax.random.key(0)), x,
        lambda net, x: net({'global': x})['global']))(images))
  stream = np.float64(out['prenorm'][:, 0])
  stream -= stream.mean(1, keepdims=True)
  exact = stream / np.sqrt((stream**2).mean(1, keepdims=True) + 1e-6)
  np.testing.assert_allclose(out['cls'], exact, rtol=1e-5, atol=1e-5)
  distance = lambda x: np.linalg.norm(np.float64(x[0]) - np.float64(x[1]))
  rounded = out['cls'].astype(jnp.bfloat16)
  assert abs(distance(out['cls']) / distance(exact) - 1) < 1e-4
  assert abs(distance(rounded) / distance(exact) - 1) > 1e-2
