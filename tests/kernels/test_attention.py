"""Every implementation is softmax(q kᵀ / √d) v, and so is its gradient."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.core import errors
from dinojax.kernels import attention
from dinojax.kernels import attention_tpu
from dinojax.kernels import reference
from tests import close
from tests import compiled

# The second one's scores exceed the limit for mixing images in one product.
SHAPES = [(6, 10, 2, 8), (2, 210, 6, 8)]
PORTABLE = ('xla', 'head_major')
attend = compiled.function(attention.attend)


def inputs(shape, dtype=jnp.float32, scale=6):
  """Fused heads and a cotangent.

  Scores reach 150: a softmax without its maximum would overflow.
  """
  b, n, h, d = shape
  rng = np.random.default_rng(0)
  normal = lambda width: np.float32(
      scale * rng.normal(size=(b, n, width))).astype(dtype)
  return normal(3 * h * d), normal(h * d)


def exact(qkv, num_heads, looks=None):
  """In float64; `looks` [b, n, m] bool hides what is False."""
  b, n, fused = qkv.shape
  qkv = np.asarray(qkv, np.float64).reshape(b, n, 3, num_heads, -1)
  q, k, v = np.moveaxis(qkv, 2, 0)
  scores = np.einsum('bnhd,bmhd->bhnm', q, k) / np.sqrt(q.shape[-1])
  if looks is not None:
    scores = np.where(looks[:, None], scores, -np.inf)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  return np.einsum('bhnm,bmhd->bnhd', weights, v).reshape(b, n, -1)


@pytest.mark.parametrize('name', PORTABLE)
@pytest.mark.parametrize('shape', SHAPES)
def test_forward_is_exact(name, shape):
  qkv, _ = inputs(shape)
  out = attend(qkv, num_heads=shape[2], implementation=name)
  # A score of 150 is rounded to 1e-5, which its weight shows as a factor.
  np.testing.assert_allclose(
      out, exact(qkv, shape[2]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('many', [False, True])
@pytest.mark.parametrize('name', PORTABLE)
def test_some_tokens_see_some_of_the_last(name, many, monkeypatch):
  shape, (first, last) = (2, 90, 2, 8), (5, 60)
  if many:  # images one after the other, queries in blocks
    monkeypatch.setattr(attention, '_WHOLE_BYTES', 4 * 2 * 90 * 89)
    monkeypatch.setattr(attention, '_BLOCK_BYTES', 4 * 2 * 90 * 20)
    monkeypatch.setattr(attention, '_CACHE_BYTES', 4 * 2 * 90 * 4)
  qkv, change = inputs(shape)
  looks = np.random.default_rng(1).random((2, first, last)) < 0.3
  looks[0, 0], looks[1, 1] = False, True  # none of them, and all
  whole = np.ones((2, 90, 90), bool)
  whole[:, :first, -last:] = looks
  run = lambda qkv, looks: attention.attend_some(
      qkv, looks, num_heads=2, implementation=name)
  out, pull = jax.vjp(lambda x: jax.jit(run)(x, looks), jnp.asarray(qkv))
  np.testing.assert_allclose(
      out, exact(qkv, 2, whole), rtol=1e-4, atol=1e-4)
  # Where all is seen it is `attend`, gradients included.
  everything = np.ones_like(looks)
  np.testing.assert_allclose(
      jax.jit(run)(qkv, everything),
      attend(qkv, num_heads=2, implementation=name), rtol=1e-4, atol=1e-4)
  plain = lambda x: jax.nn.dot_product_attention(
      *attention.heads(x, 2, None), mask=whole[:, None]).reshape(2, 90, -1)
  want, = jax.vjp(plain, jnp.asarray(qkv))[1](jnp.asarray(change))
  np.testing.assert_allclose(
      pull(jnp.asarray(change))[0], want, rtol=1e-4,
      atol=1e-5 * float(jnp.abs(want).max()))


@pytest.mark.parametrize('name', PORTABLE)
def test_many_tokens_go_in_blocks_to_the_same_result(name, monkeypatch):
  """Scores are never whole; the last block is padded."""
  shape = (2, 210, 2, 8)
  (qkv, cotangent), heads = inputs(shape), shape[2]

  def run():
    f = lambda x: attention.attend(x, num_heads=heads, implementation=name)
    out, pull = jax.vjp(f, jnp.asarray(qkv))
    text = jax.jit(f).lower(qkv).as_text()
    return out, pull(jnp.asarray(cotangent))[0], '210x210' in text

  *whole, is_whole = run()
  monkeypatch.setattr(attention, '_WHOLE_BYTES', 0)
  monkeypatch.setattr(attention, '_BLOCK_BYTES', 4 * heads * 210 * 64)
  *blocks, has_whole = run()
  assert is_whole and not has_whole
  np.testing.assert_allclose(blocks[0], exact(qkv, heads), rtol=1e-4, atol=1e-4)
  close.close(blocks[1], whole[1], of_largest=1e-5)


@pytest.mark.parametrize('shape', SHAPES)
def test_the_oracle_is_exact(shape):
  qkv, _ = inputs(shape)
  out = jax.jit(lambda qkv: reference.attention(
      *attention.heads(qkv, shape[2], None)))(qkv)
  np.testing.assert_allclose(
      out.reshape(*qkv.shape[:2], -1), exact(qkv, shape[2]), rtol=1e-4,
      atol=1e-4)


@pytest.mark.parametrize('shape', SHAPES)
def test_gradients_of_all_implementations_agree(shape):
  qkv, cotangent = inputs(shape)
  def gradient(name):
    f = functools.partial(
        attention.attend, num_heads=shape[2], implementation=name)
    return jax.jit(jax.grad(lambda qkv: jnp.sum(cotangent * f(qkv))))(qkv)
  want = gradient('xla')
  for name in PORTABLE:
    # The products of scores in the hundreds, in two orders.
    close.close(gradient(name), want, of_largest=5e-5)


def test_bfloat16_stays_within_its_rounding():
  shape = SHAPES[0]
  qkv, _ = inputs(shape, jnp.bfloat16, scale=1)
  for name in PORTABLE:
    out = attend(qkv, num_heads=shape[2], implementation=name)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(out, np.float64), exact(qkv, shape[2]), rtol=0.02,
        atol=0.02)


def test_an_unknown_name_and_heads_that_do_not_fit_are_refused():
  qkv, _ = inputs(SHAPES[0])
  with pytest.raises(errors.UserError, match='head_major'):
    attention.attend(qkv, num_heads=2, implementation='flash')
  for name, wanted in (('tpu', 'heads of 64 or 128 in a width divisible'),
                       ('gpu', 'heads of 64 or 128, not 2 heads in 16')):
    with pytest.raises(errors.UserError, match=wanted):
      attention.attend(qkv, num_heads=2, implementation=name)
  with pytest.raises(errors.UserError, match='heads of 128 at most'):
    attention.pick('cudnn', 257, 512, 2, jnp.dtype('bfloat16'))


@pytest.mark.parametrize('platform, width, num_heads, want', [
    ('cpu', 384, 6, 'head_major'), ('gpu', 384, 6, 'gpu_cudnn'),
    ('gpu', 4096, 32, 'gpu_cudnn'), ('gpu', 512, 4, 'gpu_cudnn'),
    ('gpu', 768, 8, 'cudnn'), ('gpu', 512, 2, 'xla'),
    ('gpu', 36, 3, 'xla'),
    ('tpu', 384, 6, 'tpu'), ('tpu', 1536, 24, 'tpu'), ('tpu', 4096, 32, 'tpu'),
    ('tpu', 192, 3, 'xla'), ('tpu', 128, 4, 'xla')])
def test_the_platform_and_the_heads_choose(platform, width, num_heads, want):
  assert attention.choose(platform, width, num_heads) == want


@pytest.fixture
def log(caplog):
  """What the log says of fresh choices."""
  attention._say.cache_clear()
  caplog.set_level(logging.INFO, attention.__name__)
  yield caplog
  attention._say.cache_clear()


def test_the_shape_picks_and_the_log_says_so_once(log, monkeypatch):
  monkeypatch.setattr(attention_tpu, 'MAX_TOKENS', 8192)
  sizes = dict(width=384, num_heads=6, dtype=jnp.dtype('bfloat16'))
  for _ in range(2):
    assert attention.pick('tpu', 257, **sizes) == 'tpu'
    assert attention.pick('tpu', 16385, **sizes) == 'xla'
  assert log.messages == [
      'attention: tpu for 257 tokens',
      'attention: xla for 16,385 tokens (tpu takes 8,192 of bfloat16 at '
      'most; in blocks)']
  assert attention.pick(
      'tpu', 8192, **sizes | {'dtype': jnp.dtype('float32')}) == 'xla'


def test_few_tokens_go_to_the_gpu_kernel_and_many_to_cudnn():
  pick = lambda length, heads, dtype='bfloat16': attention.pick(
      'gpu_cudnn', length, width=768, num_heads=heads, dtype=jnp.dtype(dtype))
  assert [pick(n, 12) for n in (50, 257, 512, 513, 1374)] == [
      'gpu', 'gpu', 'gpu', 'cudnn', 'cudnn']
  assert [pick(n, 6) for n in (50, 64, 65, 257)] == [
      'gpu', 'gpu', 'cudnn', 'cudnn']
  assert pick(1374, 12, 'float32') == pick(257, 6, 'float32') == 'xla'


def test_float32_does_not_go_to_cudnn(log):
  qkv, _ = inputs(SHAPES[0])
  out = attention.attend(qkv, num_heads=2, implementation='cudnn')
  np.testing.assert_array_equal(
      out, attention.attend(qkv, num_heads=2, implementation='xla'))
  assert log.messages[0] == (
      'attention: xla for 10 tokens (cudnn takes bfloat16 and float16, not '
      'float32)')
