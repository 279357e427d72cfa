"""Every implementation is softmax(q kᵀ / √d) v, and so is its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.core import errors
from dinojax.kernels import attention

# The second one's scores exceed the limit for mixing images in one product.
SHAPES = [(6, 10, 2, 8), (2, 210, 6, 8)]


def inputs(shape, dtype=jnp.float32, scale=6):
  # Scores up to 150: a softmax without its maximum would overflow.
  keys = jax.random.split(jax.random.key(0), 4)
  return [scale * jax.random.normal(k, shape, dtype) for k in keys]


def exact(q, k, v):
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  scores = np.einsum('bnhd,bmhd->bhnm', q, k) / np.sqrt(q.shape[-1])
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  return np.einsum('bhnm,bmhd->bnhd', weights, v)


@pytest.mark.parametrize('name', attention.IMPLEMENTATIONS)
@pytest.mark.parametrize('shape', SHAPES)
def test_forward_is_exact(name, shape):
  q, k, v, _ = inputs(shape)
  out = attention.attend(q, k, v, implementation=name)
  # A score of 150 is rounded to 1e-5, which its weight shows as a factor.
  np.testing.assert_allclose(out, exact(q, k, v), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('shape', SHAPES)
def test_gradients_of_all_implementations_agree(shape):
  q, k, v, cotangent = inputs(shape)
  def gradients(name):
    f = lambda *qkv: jnp.sum(
        cotangent * attention.attend(*qkv, implementation=name))
    return jax.grad(f, argnums=(0, 1, 2))(q, k, v)
  want = gradients('xla')
  for name in attention.IMPLEMENTATIONS:
    for got, expected in zip(gradients(name), want, strict=True):
      np.testing.assert_allclose(got, expected, rtol=1e-4, atol=2e-3)


def test_bfloat16_stays_within_its_rounding():
  q, k, v, _ = inputs(SHAPES[0], jnp.bfloat16, scale=1)
  for name in attention.IMPLEMENTATIONS:
    out = attention.attend(q, k, v, implementation=name)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(out, np.float64), exact(q, k, v), rtol=0.02, atol=0.02)


def test_an_unknown_name_is_refused():
  q, k, v, _ = inputs(SHAPES[0])
  with pytest.raises(errors.UserError, match='head_major'):
    attention.attend(q, k, v, implementation='flash')
