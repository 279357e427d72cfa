"""One attention for every model; the implementation follows the platform."""

import functools
import logging

import einops
import jax
import jax.numpy as jnp

from dinojax.core import errors
from dinojax.kernels import attention_gpu
from dinojax.kernels import attention_planned
from dinojax.kernels import attention_tpu
from dinojax.kernels import rotary

IMPLEMENTATIONS = ('xla', 'head_major', 'tpu', 'gpu', 'cudnn', 'gpu_cudnn')
PLANNED = 'planned'  # shapes of 'cudnn' alone, see attention_planned
# About the second-level cache of a CPU core.
_CACHE_BYTES = 2**20
# Scores of one image beyond the first are made a block of queries at a time,
# and again for gradients; a block has about the second.
_WHOLE_BYTES, _BLOCK_BYTES = 2**30, 2**26
# What cuDNN takes on every GPU since Ampere.
_CUDNN_HEAD_DIM, _CUDNN_UNIT = 128, 8
_CUDNN_DTYPES = (jnp.bfloat16, jnp.float16)
# Tokens up to which the GPU kernel is faster than cuDNN, by width of a head.
# An H200 took, of cuDNN's time for value and gradient: heads of 64: 0.33 at 50
# tokens, 0.76 at 257, 1.07 at 577; heads of 128: 0.66 at 50, 1.5 at 201.
_GPU_TOKENS = {64: 512, 128: 64}


def choose(platform: str, width: int, num_heads: int) -> str:
  """Chooses the implementation for a model's heads on 'cpu', 'gpu' or 'tpu'.

  On CPU and GPU it was the fastest that was measured (docs/performance.md).
  """
  if platform == 'tpu' and attention_tpu.fits(width, num_heads):
    return 'tpu'
  if platform == 'gpu' and _fits_cudnn(width, num_heads):
    return 'gpu_cudnn' if attention_gpu.fits(width, num_heads) else 'cudnn'
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
    implementation: one of IMPLEMENTATIONS; see `pick`.

  Returns:
    [b, n, h·d] in the dtype of `qkv`.
  """
  name = pick(
      implementation, qkv.shape[1], qkv.shape[2] // 3, num_heads, qkv.dtype)
  if name == 'tpu':
    return attention_tpu.attend(qkv, num_heads=num_heads, rope=rope)
  if name == 'gpu':
    return attention_gpu.attend(qkv, num_heads=num_heads, rope=rope)
  mix = {'xla': jax.nn.dot_product_attention, 'head_major': _head_major,
         'cudnn': _cudnn, PLANNED: attention_planned.mix}[name]
  if name in ('xla', 'head_major') and (
      _scores_bytes(qkv.shape[1], num_heads) > _WHOLE_BYTES):
    mix = _in_blocks
  return mix(*heads(qkv, num_heads, rope)).reshape(*qkv.shape[:2], -1)


def attend_some(qkv: jax.Array, looks: jax.Array, *, num_heads: int,
                rope: rotary.Rope | None = None,
                implementation: str = 'xla') -> jax.Array:
  """`attend`, where the first tokens see the last ones in part.

  Args:
    qkv: see `attend`.
    looks: [b, q, p] bool: which of the last p tokens each of the first q sees;
      these see all others, and others see everything.
    num_heads: see `attend`.
    rope: see `attend`.
    implementation: see `attend`; kernels that take no mask are not used.
  """
  q, k, v = heads(qkv, num_heads, rope)
  first, length = looks.shape[1], qkv.shape[1]
  seen = jnp.pad(looks, ((0, 0), (0, 0), (length - looks.shape[2], 0)),
                 constant_values=True)[:, None]
  if implementation == 'head_major':
    whole = some = _head_major
  else:
    whole = some = jax.nn.dot_product_attention
  if _scores_bytes(length, num_heads) > _WHOLE_BYTES:
    whole = _in_blocks
  out = jnp.concatenate([some(q[:, :first], k, v, mask=seen),
                         whole(q[:, first:], k, v)], axis=1)
  return out.reshape(*qkv.shape[:2], -1)


def _scores_bytes(length: int, num_heads: int) -> int:
  """Bytes of the scores of one image in float32."""
  return 4 * num_heads * length * length


def pick(implementation: str, length: int, width: int, num_heads: int,
         dtype: jnp.dtype) -> str:
  """Picks the implementation that runs for a shape, and logs it once.

  'xla' runs anywhere, 'head_major' is fastest on CPU, 'tpu' and 'gpu' are
  the kernels in attention_tpu and attention_gpu, 'cudnn' is NVIDIA's;
  'gpu_cudnn' is 'gpu' for few tokens and 'cudnn' for many. More tokens than a
  kernel takes, or float32 for cuDNN, go to 'xla'.

  Raises:
    UserError: unknown implementation, or one that cannot take these heads.
  """
  _check(implementation, width, num_heads)
  name, reason = implementation, None
  if name == 'tpu' and length > attention_tpu.max_tokens(dtype):
    most = attention_tpu.max_tokens(dtype)
    name, reason = 'xla', f'tpu takes {most:,} of {dtype} at most'
  elif name == 'gpu_cudnn':
    few = _GPU_TOKENS[width // num_heads]
    name = 'gpu' if length <= few else 'cudnn'
  if name == 'cudnn' and dtype not in _CUDNN_DTYPES:
    name, reason = 'xla', f'cudnn takes bfloat16 and float16, not {dtype}'
  if name in ('xla', 'head_major') and (
      _scores_bytes(length, num_heads) > _WHOLE_BYTES):
    reason = f'{reason}; in blocks' if reason else 'in blocks'
  _say(name, length, reason)
  return name


@functools.cache  # once, not at every trace
def _say(name: str, length: int, reason: str | None):
  logging.getLogger(__name__).info(
      'attention: %s for %s tokens%s', name, f'{length:,}',
      f' ({reason})' if reason else '')


def _check(implementation: str, width: int, num_heads: int):
  def refuse(wanted: str):
    raise errors.UserError(
        f'model.attention={implementation!r} takes {wanted}, not {num_heads} '
        f'heads in {width}: use "xla", or "auto"')

  if implementation not in (*IMPLEMENTATIONS, PLANNED):
    raise errors.UserError(
        f'model.attention={implementation!r} is not known: use one of '
        f'{", ".join(IMPLEMENTATIONS)}, or "auto"')
  if implementation == 'tpu' and not attention_tpu.fits(width, num_heads):
    refuse(f'heads of {" or ".join(map(str, attention_tpu.HEAD_DIMS))} in a '
           f'width divisible by {attention_tpu.LANES}')
  if implementation in ('gpu', 'gpu_cudnn') and not attention_gpu.fits(
      width, num_heads):
    refuse(f'heads of {" or ".join(map(str, attention_gpu.HEAD_DIMS))}')
  if implementation == 'cudnn' and not _fits_cudnn(width, num_heads):
    refuse(f'heads of {_CUDNN_HEAD_DIM} at most that are divisible by '
           f'{_CUDNN_UNIT}')


def _fits_cudnn(width: int, num_heads: int) -> bool:
  head_dim = width // num_heads
  return head_dim <= _CUDNN_HEAD_DIM and not head_dim % _CUDNN_UNIT


def heads(qkv: jax.Array, num_heads: int, rope: rotary.Rope | None
          ) -> tuple[jax.Array, jax.Array, jax.Array]:
  """[b, n, 3·h·d] to queries, keys and values [b, n, h, d], rotated."""
  qkv = qkv.reshape(*qkv.shape[:2], 3, num_heads, -1)
  q, k, v = (qkv[:, :, i] for i in range(3))
  if rope is not None:
    q, k = rotary.rotate(q, rope), rotary.rotate(k, rope)
  return q, k, v


def _cudnn(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  """cuDNN's, which trains on even lengths only: one token more, masked."""
  batch, length = q.shape[:2]
  fused = functools.partial(
      jax.nn.dot_product_attention, implementation='cudnn')
  if length % 2 == 0:
    return fused(q, k, v)
  q, k, v = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (q, k, v))
  lengths = jnp.full(batch, length, jnp.int32)
  return fused(q, k, v, query_seq_lengths=lengths,
               key_value_seq_lengths=lengths)[:, :length]


def _in_blocks(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  """Some queries of one image at a time: scores are never whole in memory."""
  n, h = q.shape[1:3]
  rows = max(min(_BLOCK_BYTES // (4 * h * n), n), 1)
  blocks = jnp.pad(q, ((0, 0), (0, -n % rows), (0, 0), (0, 0)))
  blocks = einops.rearrange(blocks, 'b (s n) h d -> b s n h d', n=rows)

  def image(qkv):
    blocks, k, v = qkv
    mix = jax.checkpoint(lambda q: jax.nn.dot_product_attention(q, k, v))
    return jax.lax.map(mix, blocks)

  out = jax.lax.map(image, (blocks, k, v))
  return einops.rearrange(out, 'b s n h d -> b (s n) h d')[:, :n]


def _head_major(q: jax.Array, k: jax.Array, v: jax.Array,
                mask: jax.Array | None = None) -> jax.Array:
  """Matrices of heads, normalised after the second product.

  Dividing [n, d] by the row sums is cheaper than dividing [n, n]. Where the
  scores of one image fill a cache, images go one after the other.
  """
  def mix(q, k, v, mask=None):
    q, k, v = (jnp.moveaxis(x, -2, -3) for x in (q, k, v))  # [b, h, n, d]
    scores = jnp.einsum('...nd,...md->...nm', q, k,
                        preferred_element_type=jnp.float32)
    if mask is not None:
      scores = jnp.where(mask, scores, -jnp.inf)
    peak = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    weights = jnp.exp(scores - peak)
    total = weights.sum(-1, keepdims=True)
    out = jnp.einsum('...nm,...md->...nd', weights.astype(v.dtype), v,
                     preferred_element_type=jnp.float32) / total
    return jnp.moveaxis(out.astype(v.dtype), -3, -2)

  q = q * q.shape[-1] ** -0.5
  rows = (q, k, v) if mask is None else (q, k, v, mask)
  if 4 * q.shape[-2] * q.shape[-3] * k.shape[-3] < _CACHE_BYTES:
    return mix(*rows)
  return jax.lax.map(lambda row: mix(*row), rows)
