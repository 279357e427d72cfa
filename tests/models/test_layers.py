"""The parts of a block against float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.models import layers

X = np.linspace(-12, 12, 4001)
CDF = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in X])


def test_gelu_is_the_exact_one():
  got = layers.gelu(jnp.asarray(X, jnp.float32))
  np.testing.assert_allclose(got, X * CDF, rtol=2e-6, atol=1e-6)


def test_gelu_has_its_own_gradient():
  slope = CDF + X * np.exp(-X * X / 2) / math.sqrt(2 * math.pi)
  got = jax.vmap(jax.grad(layers.gelu))(jnp.asarray(X, jnp.float32))
  np.testing.assert_allclose(got, slope, rtol=2e-6, atol=2e-6)


def test_gelu_keeps_only_its_input_for_the_backward_pass():
  x = jnp.ones((3, 5))
  _, backward = jax.vjp(layers.gelu, x)
  assert [leaf.shape for leaf in jax.tree.leaves(backward)
          if leaf.size > 1] == [(3, 5)]


def test_gelu_rounds_bfloat16_once():
  x = jnp.asarray(X, jnp.bfloat16)
  want = layers.gelu(x.astype(jnp.float32)).astype(jnp.bfloat16)
  np.testing.assert_array_equal(
      np.asarray(layers.gelu(x), np.float32), np.asarray(want, np.float32))
