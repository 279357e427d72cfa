"""Vectors of length one."""

import jax
import jax.numpy as jnp


def normalize(x: jax.Array, epsilon: float) -> jax.Array:
  """x / max(‖x‖, epsilon) along the last axis; float32.

  A row of zeros stays zero and its gradient is finite: the square root at
  zero would turn it into NaN.

  Source: torch.nn.functional.normalize.
  """
  x = x.astype(jnp.float32)
  square = jnp.sum(x * x, axis=-1, keepdims=True)
  positive = square > 0
  norm = jnp.sqrt(jnp.where(positive, square, 1.0))
  return x / jnp.maximum(jnp.where(positive, norm, 0.0), epsilon)
