"""Attention to a map: both ways are the softmax with the terms added."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.kernels import blocks
from dinojax.kernels import map_attention
from tests import close

IMAGES, HEADS, QUERIES, WIDTH, SIDES = 3, 2, 5, 4, (3, 4)
WAYS = {'sums': map_attention._SUMS, 'product': map_attention._PRODUCT}


def drawn(scale=1.0):
  rng, heads = np.random.default_rng(0), IMAGES * HEADS
  normal = lambda *shape: np.float32(rng.normal(size=shape))
  y, x = SIDES
  inside = np.ones((IMAGES, y, x), bool)
  inside[1, 2:] = inside[1, :, 3:] = False
  return (normal(heads, QUERIES, WIDTH), normal(heads, y * x, WIDTH),
          normal(heads, y * x, WIDTH), scale * normal(heads, QUERIES, x),
          scale * normal(heads, QUERIES, y), inside)


def plain(q, k, v, columns, rows, inside):
  """The whole softmax, by JAX's own gradient."""
  logits = jnp.einsum('gnd,gmd->gnm', q, k)
  terms = columns[:, :, None] + rows[..., None] + jnp.repeat(
      jnp.where(inside, 0, -100.0), HEADS, axis=0)[:, None]
  shares = jax.nn.softmax(logits + terms.reshape(logits.shape), axis=-1)
  return jnp.einsum('gnm,gmd->gnd', shares, v)


def gradients(function, given):
  loss = lambda *args: jnp.sum(jnp.sin(function(*args, given[5])))
  return jax.jit(jax.value_and_grad(loss, argnums=range(5)))(*given[:5])


@pytest.mark.parametrize('heads', [1, 4, 6])
@pytest.mark.parametrize('way', WAYS)
def test_it_is_the_softmax_with_the_terms_added(way, heads, monkeypatch):
  """At 4 heads a time the last block has two that are nobody's."""
  monkeypatch.setattr(map_attention, '_SUMS', WAYS[way])
  monkeypatch.setattr(blocks, '_size', lambda count, row_bytes: heads)
  given = drawn()
  close.close(gradients(map_attention.attend, given), gradients(plain, given),
              of_largest=2e-6)


@pytest.mark.parametrize('way', WAYS)
def test_of_terms_that_are_far_apart_the_largest_is_all(way, monkeypatch):
  """Exponents lie thousands apart; gradients of shares of 1 are rounding."""
  monkeypatch.setattr(map_attention, '_SUMS', WAYS[way])
  given = drawn(1e3)
  jax.tree.map(lambda got, want: np.testing.assert_allclose(
      got, want, rtol=1e-5, atol=2e-6), gradients(
          map_attention.attend, given), gradients(plain, given))


def test_nothing_as_large_as_logits_is_kept():
  *given, inside = drawn()
  _, pull = jax.vjp(lambda *args: map_attention.attend(*args, inside), *given)
  assert max(x.size for x in jax.tree.leaves(pull)) < (
      IMAGES * HEADS * QUERIES * SIDES[0] * SIDES[1])


@pytest.mark.parametrize('platform, looped', [('cpu', True), ('tpu', False)])
def test_only_cpus_take_heads_in_blocks(platform, looped, monkeypatch):
  monkeypatch.setattr(blocks, '_CACHE_BYTES', 1)
  given = drawn()
  text = jax.jit(lambda *args: gradients(map_attention.attend, args)).trace(
      *given).lower(lowering_platforms=(platform,)).as_text()
  assert ('stablehlo.while' in text) == looped
