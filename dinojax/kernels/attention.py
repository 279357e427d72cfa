"""One attention for every model; the implementation follows the platform."""

import jax
import jax.numpy as jnp

from dinojax.core import errors
from dinojax.kernels import attention_tpu
from dinojax.kernels import rotary

IMPLEMENTATIONS = ('xla', 'head_major', 'tpu')
# About the second-level cache of a CPU core.
_CACHE_BYTES = 2**20


def choose(platform: str, width: int, num_heads: int) -> str:
  """What measured best on 'cpu', 'gpu' or 'tpu' for a model's heads."""
  if platform == 'tpu' and attention_tpu.fits(width, num_heads):
    return 'tpu'
  return 'head_major' if platform == 'cpu' else 'xla'


def attend(qkv: jax.Array, *, num_heads: int,
           rope: rotary.Rope | None = None,
           implementation: str = 'xla') -> jax.Array:
  """softmax(q kᵀ / √d) v of fused heads, softmax in float32.

  Args:
    qkv: [b, n, 3·h·d]: queries, keys and values of all heads.
    num_heads: h.
    rope: sin and cos [p, d], or [g, p, d] for g equal groups of images, that
      rotate the last p tokens of queries and keys.
    implementation: 'xla' (any platform), 'head_major' (fastest on CPU) or
      'tpu' (a kernel, see attention_tpu; longer sequences than it takes go
      to 'xla').

  Returns:
    [b, n, h·d] in the dtype of `qkv`.

  Raises:
    UserError: unknown implementation, or one that cannot take these heads.
  """
  if implementation == 'tpu':
    if not attention_tpu.fits(qkv.shape[-1] // 3, num_heads):
      raise errors.UserError(
          f"model.attention='tpu' takes heads of "
          f'{" or ".join(map(str, attention_tpu.HEAD_DIMS))} in a width '
          f'divisible by {attention_tpu.LANES}, not {num_heads} heads in '
          f'{qkv.shape[-1] // 3}: use "xla", or "auto"')
    if qkv.shape[1] <= attention_tpu.MAX_TOKENS:
      return attention_tpu.attend(qkv, num_heads=num_heads, rope=rope)
    implementation = 'xla'
  parts = heads(qkv, num_heads, rope)
  if implementation == 'xla':
    out = jax.nn.dot_product_attention(*parts)
  elif implementation == 'head_major':
    out = _head_major(*parts)
  else:
    raise errors.UserError(
        f'model.attention={implementation!r} is not known: use one of '
        f'{", ".join(IMPLEMENTATIONS)}, or "auto"')
  return out.reshape(*qkv.shape[:2], -1)


def heads(qkv: jax.Array, num_heads: int, rope: rotary.Rope | None
          ) -> tuple[jax.Array, jax.Array, jax.Array]:
  """[b, n, 3·h·d] to queries, keys and values [b, n, h, d], rotated."""
  qkv = qkv.reshape(*qkv.shape[:2], 3, num_heads, -1)
  q, k, v = (qkv[:, :, i] for i in range(3))
  if rope is not None:
    q, k = rotary.rotate(q, rope), rotary.rotate(k, rope)
  return q, k, v


def _head_major(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  """Matrices of heads, normalised after the second product.

  Dividing [n, d] by the row sums is cheaper than dividing [n, n]. Where the
  scores of one image fill a cache, images go one after the other.
  """
  def mix(q, k, v):
    q, k, v = (jnp.moveaxis(x, -2, -3) for x in (q, k, v))  # [b, h, n, d]
    scores = jnp.einsum('...nd,...md->...nm', q, k,
                        preferred_element_type=jnp.float32)
    peak = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    weights = jnp.exp(scores - peak)
    total = weights.sum(-1, keepdims=True)
    out = jnp.einsum('...nm,...md->...nd', weights.astype(v.dtype), v,
                     preferred_element_type=jnp.float32) / total
    return jnp.moveaxis(out.astype(v.dtype), -3, -2)

  q = q * q.shape[-1] ** -0.5
  scores_bytes = 4 * q.shape[-2] * q.shape[-3] * k.shape[-3]
  if scores_bytes < _CACHE_BYTES:
    return mix(q, k, v)
  return jax.lax.map(lambda qkv: mix(*qkv), (q, k, v))
