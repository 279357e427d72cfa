"""Rotation of queries and keys by RoPE's tables."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Rope = tuple[jax.Array, jax.Array]  # sin, cos: [p, d] or [g, p, d]


def rounder(dtype: jnp.dtype) -> Callable[[jax.Array], jax.Array]:
  """Rounds float32 values to `dtype`, and stays in float32.

  The compiler may keep bfloat16 intermediates in float32; this it may not,
  so bfloat16 RoPE has the references' values on every platform.
  """
  info = jnp.finfo(dtype)
  if info.bits == 32:
    return lambda x: x
  return lambda x: jax.lax.reduce_precision(
      x.astype(jnp.float32), info.nexp, info.nmant)


def rotate(x: jax.Array, rope: Rope) -> jax.Array:
  """Rotates queries or keys; leading tokens (CLS, registers) pass.

  Args:
    x: [r, n, h, d]; its last p tokens are patches.
    rope: sin and cos [p, d], or [g, p, d] for g equal groups of rows.
  """
  sin, cos = rope
  num_patches = sin.shape[-2]
  cut = rounder(sin.dtype)
  # The references cast every token to the dtype of RoPE, not only patches.
  x32 = cut(x.astype(jnp.float32))
  kept, patches = jnp.split(x32, [x.shape[1] - num_patches], axis=1)
  if sin.ndim == 3:
    group = patches.shape[0] // sin.shape[0]
    sin, cos = (jnp.repeat(t, group, axis=0) for t in (sin, cos))
  else:
    sin, cos = sin[None], cos[None]
  sin, cos = (t[:, :, None, :].astype(jnp.float32) for t in (sin, cos))
  first, second = jnp.split(patches, 2, axis=-1)
  turned = jnp.concatenate([-second, first], axis=-1)
  patches = cut(cut(patches * cos) + cut(turned * sin))
  return jnp.concatenate([kept, patches], axis=1).astype(x.dtype)
