"""One attention for every model; the implementation follows the platform."""

import jax
import jax.numpy as jnp

from dinojax.core import errors

IMPLEMENTATIONS = ('xla', 'per_image')


def choose(platform: str) -> str:
  """The implementation that measured best on 'cpu', 'gpu' or 'tpu'."""
  return 'per_image' if platform == 'cpu' else 'xla'


def attend(q: jax.Array, k: jax.Array, v: jax.Array, *,
           implementation: str = 'xla') -> jax.Array:
  """softmax(q kᵀ / √d) v, softmax in float32.

  Args:
    q: [b, n, h, d] queries; k and v alike.
    k: keys.
    v: values.
    implementation: 'xla' (any platform) or 'per_image' (fastest on CPU).

  Returns:
    [b, n, h, d] in the dtype of `v`.

  Raises:
    UserError: unknown implementation.
  """
  if implementation == 'xla':
    return jax.nn.dot_product_attention(q, k, v)
  if implementation == 'per_image':
    return _per_image(q, k, v)
  raise errors.UserError(
      f'model.attention={implementation!r} is not known: use one of '
      f'{", ".join(IMPLEMENTATIONS)}, or "auto"')


def _per_image(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  """Head-major matrices, normalised after the second product.

  One image's scores stay in the cache of a CPU core, and dividing [n, d] by
  the row sums is cheaper than dividing [n, n].
  """
  def one(qkv):
    q, k, v = (x.transpose(1, 0, 2) for x in qkv)  # [h, n, d]
    scores = jnp.einsum('hnd,hmd->hnm', q, k,
                        preferred_element_type=jnp.float32)
    peak = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    weights = jnp.exp(scores - peak)
    total = weights.sum(-1, keepdims=True)
    out = jnp.einsum('hnm,hmd->hnd', weights.astype(v.dtype), v,
                     preferred_element_type=jnp.float32) / total
    return out.astype(v.dtype).transpose(1, 0, 2)

  q = q * q.shape[-1] ** -0.5
  return jax.lax.map(one, (q, k, v))
