"""One attention for every model; the implementation follows the platform."""

import jax
import jax.numpy as jnp

from dinojax.core import errors

IMPLEMENTATIONS = ('xla', 'head_major')
# About the second-level cache of a CPU core.
_CACHE_BYTES = 2**20


def choose(platform: str) -> str:
  """The implementation that measured best on 'cpu', 'gpu' or 'tpu'."""
  return 'head_major' if platform == 'cpu' else 'xla'


def attend(q: jax.Array, k: jax.Array, v: jax.Array, *,
           implementation: str = 'xla') -> jax.Array:
  """softmax(q kᵀ / √d) v, softmax in float32.

  Args:
    q: [b, n, h, d] queries; k and v alike.
    k: keys.
    v: values.
    implementation: 'xla' (any platform) or 'head_major' (fastest on CPU).

  Returns:
    [b, n, h, d] in the dtype of `v`.

  Raises:
    UserError: unknown implementation.
  """
  if implementation == 'xla':
    return jax.nn.dot_product_attention(q, k, v)
  if implementation == 'head_major':
    return _head_major(q, k, v)
  raise errors.UserError(
      f'model.attention={implementation!r} is not known: use one of '
      f'{", ".join(IMPLEMENTATIONS)}, or "auto"')


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
