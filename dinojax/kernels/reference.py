"""Attention in plain jnp: the oracle every kernel is tested against."""

import jax
import jax.numpy as jnp


def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  """softmax(q kᵀ / √d) v of [b, n, h, d], in float32."""
  scores = jnp.einsum(
      'bnhd,bmhd->bhnm', q, k, precision='highest',
      preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
  weights = jax.nn.softmax(scores, axis=-1)
  return jnp.einsum(
      'bhnm,bmhd->bnhd', weights, v.astype(jnp.float32), precision='highest')
