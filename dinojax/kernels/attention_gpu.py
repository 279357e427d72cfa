"""Attention on NVIDIA GPUs, on the fused projection: a Triton kernel.

A program is a block of tokens of one head. Going over the others block by
block it rescales a running softmax, so nothing of [n, n] is stored. Queries,
keys, values and their gradients are lanes of one array each; tokens beyond
the last are masked in the program, so nothing is transposed or padded.
"""

import dataclasses
import functools
import math

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
import jax.numpy as jnp
import numpy as np

from dinojax.kernels import rotary

HEAD_DIMS = (64, 128)
_MASKED = -1e30  # finite: a block may hold nothing that a token sees
_NO_SEGMENT = -1
_LOG2_E = math.log2(math.e)  # the hardware's exponential is of base 2

# Parts of the projection; of a type that the interpreter indexes by.
_QUERIES, _KEYS, _VALUES = np.arange(3, dtype=np.int32)

_NT = (((1,), (1,)), ((), ()))
_NN = (((1,), (0,)), ((), ()))


@dataclasses.dataclass(frozen=True)
class Blocks:
  """Sizes of a kernel's blocks, and its warps and stages.

  Attributes:
    rows: tokens of a program, a power of two.
    other: tokens that it sees at a time, a power of two.
    warps: warps of a program, of 32 threads each.
    stages: stages of the pipeline that loads blocks ahead of their use.
  """

  rows: int
  other: int
  warps: int
  stages: int = 2


def blocks(length: int, head_dim: int, dtype: jnp.dtype,
           backward: bool) -> Blocks:
  """Few enough for the 99 KiB of shared memory of every GPU since Ampere.

  Compiled, not measured: bench/attention_gpu.py tries others.
  """
  warps = 4 if head_dim == 64 else 8
  if jnp.dtype(dtype).itemsize == 4:
    return Blocks(32, 32, warps)
  if backward:
    return Blocks(64, 64 if head_dim == 64 else 32, warps)
  # Two blocks of 64 cover 65 to 128 tokens as well as one of 128; of many
  # tokens, wide blocks read keys and values half as often.
  return Blocks(128, 64, 8) if length > 512 else Blocks(64, 64, 4)


def fits(width: int, num_heads: int) -> bool:
  """Tells whether the kernel takes heads of this projection."""
  return not width % num_heads and width // num_heads in HEAD_DIMS


def attend(qkv: jax.Array, *, num_heads: int,
           rope: rotary.Rope | None = None,
           segments: jax.Array | None = None,
           interpret: bool = False) -> jax.Array:
  """softmax(q kᵀ / √d) v of fused heads; softmax in float32.

  Args:
    qkv: [b, n, 3·h·d]: queries, keys and values of all heads.
    num_heads: h.
    rope: sin and cos [p, d], or [g, p, d] for g equal groups of images, that
      rotate the last p tokens of queries and keys, before the kernel.
    segments: [b, n] int32, none negative; tokens attend within their segment.
    interpret: runs on any platform, slowly; for tests.

  Returns:
    [b, n, h·d] in the dtype of `qkv`.
  """
  batch, length, fused = qkv.shape
  width = fused // 3
  if not fits(width, num_heads):
    raise ValueError(
        f'{num_heads} heads in a width of {width}: the kernel takes heads of '
        f'{" and ".join(map(str, HEAD_DIMS))}')
  if segments is not None:
    segments = segments.astype(jnp.int32)
  qkv = qkv.reshape(batch, length, 3, num_heads, width // num_heads)
  if rope is not None:
    qkv = _rotated(qkv, rope)
  return _attend(qkv, segments, interpret).reshape(batch, length, width)


def _rotated(qkv, rope):
  """[b, n, 3, h, d] with queries and keys turned.

  Outside the kernel: inside, every block of queries would turn all keys anew.
  """
  q, k = (rotary.rotate(qkv[:, :, i], rope) for i in range(2))
  return jnp.stack([q, k, qkv[:, :, 2]], axis=2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _attend(qkv, segments, interpret):
  return _forward(qkv, segments, interpret)[0]


def _attend_forward(qkv, segments, interpret):
  out, norms = _forward(qkv, segments, interpret)
  return out, (qkv, segments, out, norms)


def _attend_backward(interpret, residuals, cotangent):
  qkv, segments, out, norms = residuals
  # Of every token and head, what the softmax's gradient subtracts. [b, h, n]
  means = jnp.moveaxis(jnp.sum(
      out.astype(jnp.float32) * cotangent.astype(jnp.float32), axis=-1), 1, 2)
  return _backward(qkv, segments, cotangent, norms, means, interpret), None


_attend.defvjp(_attend_forward, _attend_backward)


@dataclasses.dataclass(frozen=True)
class _Spec:
  """Shapes and options that a kernel is compiled for."""

  length: int
  head_dim: int
  blocks: Blocks
  has_segments: bool

  @property
  def scale(self) -> float:
    """Factor of scores, for exponentials of base 2."""
    return self.head_dim ** -0.5 * _LOG2_E

  @property
  def rounds(self) -> int:
    """Blocks of other tokens."""
    return pl.cdiv(self.length, self.blocks.other)


def _call(kernel, qkv, segments, extra, extra_specs, out_shapes, out_specs,
          *, backward: bool, interpret: bool):
  """pallas_call over (blocks of tokens, heads, images)."""
  batch, length, _, num_heads, head_dim = qkv.shape
  cut = blocks(length, head_dim, qkv.dtype, backward)
  spec = _Spec(length, head_dim, cut, segments is not None)
  part = lambda i: pl.BlockSpec(
      (None, length, None, None, head_dim), lambda t, h, b: (b, 0, i, h, 0))
  args, specs = [qkv] * 3, [part(i) for i in range(3)]
  if segments is not None:
    args.append(segments)
    specs.append(pl.BlockSpec((None, length), lambda t, h, b: (b, 0)))
  varying = jax.typeof(qkv).manual_axis_type
  return pl.pallas_call(
      functools.partial(kernel, spec=spec),
      grid=(pl.cdiv(length, cut.rows), num_heads, batch),
      in_specs=specs + extra_specs, out_specs=out_specs,
      out_shape=[jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=varying)
                 for shape, dtype in out_shapes],
      compiler_params=plgpu.CompilerParams(
          num_warps=cut.warps, num_stages=cut.stages),
      interpret=interpret)(*args, *extra)


def _per_head(length: int, head_dim: int) -> pl.BlockSpec:
  """One head of [b, n, h, d]."""
  return pl.BlockSpec(
      (None, length, None, head_dim), lambda t, h, b: (b, 0, h, 0))


def _per_token(length: int) -> pl.BlockSpec:
  """One head of [b, h, n]."""
  return pl.BlockSpec((None, None, length), lambda t, h, b: (b, h, 0))


def _forward(qkv, segments, interpret):
  """Values [b, n, h, d] and log₂ of the softmax's sums [b, h, n]."""
  batch, length, _, num_heads, head_dim = qkv.shape
  return _call(
      _vit_attention, qkv, segments, [], [],
      [((batch, length, num_heads, head_dim), qkv.dtype),
       ((batch, num_heads, length), jnp.float32)],
      [_per_head(length, head_dim), _per_token(length)], backward=False,
      interpret=interpret)


def _backward(qkv, segments, cotangent, norms, means, interpret):
  """The gradient of `qkv`."""
  _, length, _, _, head_dim = qkv.shape
  out, = _call(
      _vit_attention_backward, qkv, segments, [cotangent, norms, means],
      [_per_head(length, head_dim)] + [_per_token(length)] * 2,
      [(qkv.shape, qkv.dtype)],
      [pl.BlockSpec((None, length, 3, None, head_dim),
                    lambda t, h, b: (b, 0, 0, h, 0))], backward=True,
      interpret=interpret)
  return out


def _vit_attention(q_ref, k_ref, v_ref, *refs, spec: _Spec):
  *segments, out_ref, norms_ref = refs
  first, rows = _first_token(spec), spec.blocks.rows
  q = _load(q_ref, first, rows, spec)
  of_rows = _segments(segments, first, rows, spec)

  def step(i, carry):
    mixed, peak, total = carry
    at, other = i * spec.blocks.other, spec.blocks.other
    k, v = (_load(ref, at, other, spec) for ref in (k_ref, v_ref))
    seen = _seen(of_rows, _segments(segments, at, other, spec), at, rows, spec)
    scores = jnp.where(seen, _dot(q, k, _NT) * spec.scale, _MASKED)
    higher = jnp.maximum(peak, jnp.max(scores, axis=1))
    shrink = jnp.exp2(peak - higher)
    exps = jnp.exp2(scores - higher[:, None])
    mixed = mixed * shrink[:, None] + _dot(exps.astype(v.dtype), v, _NN)
    return mixed, higher, total * shrink + jnp.sum(exps, axis=1)

  mixed, peak, total = lax.fori_loop(0, spec.rounds, step, (
      _zeros(spec), jnp.full((rows,), -jnp.inf),
      jnp.zeros((rows,), jnp.float32)))
  _store(out_ref, mixed / total[:, None], first, spec)
  _store(norms_ref, peak + jnp.log2(total), first, spec)


def _vit_attention_backward(q_ref, k_ref, v_ref, *refs, spec: _Spec):
  """A program's tokens as queries, then the same tokens as keys."""
  *segments, given_ref, norms_ref, means_ref, out_ref = refs
  queries = q_ref, given_ref, norms_ref, means_ref
  first, scale = _first_token(spec), spec.head_dim ** -0.5
  of_rows = _segments(segments, first, spec.blocks.rows, spec)
  dq = _queries_gradient(queries, (k_ref, v_ref), segments, of_rows, spec)
  _store(out_ref, dq * scale, first, spec, part=(_QUERIES,))
  dk, dv = _keys_gradient(queries, (k_ref, v_ref), segments, of_rows, spec)
  _store(out_ref, dk * scale, first, spec, part=(_KEYS,))
  _store(out_ref, dv, first, spec, part=(_VALUES,))


def _queries_gradient(queries, keys, segments, of_rows, spec: _Spec):
  first, rows, other = _first_token(spec), spec.blocks.rows, spec.blocks.other
  q, given, norms, means = (_load(ref, first, rows, spec) for ref in queries)

  def step(i, dq):
    at = i * other
    k, v = (_load(ref, at, other, spec) for ref in keys)
    seen = _seen(of_rows, _segments(segments, at, other, spec), at, rows, spec)
    weights = _weights(_dot(q, k, _NT), norms[:, None], seen, spec)
    slope = weights * (_dot(given, v, _NT) - means[:, None])
    return dq + _dot(slope.astype(k.dtype), k, _NN)

  return lax.fori_loop(0, spec.rounds, step, _zeros(spec))


def _keys_gradient(queries, keys, segments, of_rows, spec: _Spec):
  """Gradients of keys and values; scores are transposed, a row is a key."""
  first, rows, other = _first_token(spec), spec.blocks.rows, spec.blocks.other
  k, v = (_load(ref, first, rows, spec) for ref in keys)

  def step(i, sums):
    at = i * other
    q, given, norms, means = (_load(ref, at, other, spec) for ref in queries)
    seen = _seen(of_rows, _segments(segments, at, other, spec), at, rows, spec)
    weights = _weights(_dot(k, q, _NT), norms[None, :], seen, spec)
    slope = weights * (_dot(v, given, _NT) - means[None, :])
    dk, dv = sums
    return (dk + _dot(slope.astype(q.dtype), q, _NN),
            dv + _dot(weights.astype(given.dtype), given, _NN))

  return lax.fori_loop(0, spec.rounds, step, (_zeros(spec), _zeros(spec)))


def _zeros(spec: _Spec):
  return jnp.zeros((spec.blocks.rows, spec.head_dim), jnp.float32)


def _first_token(spec: _Spec):
  return pl.program_id(0) * spec.blocks.rows


def _inside(first, count: int, spec: _Spec):
  """[count] bool: which tokens from `first` on there are."""
  return first + jnp.arange(count, dtype=jnp.int32) < spec.length


def _load(ref, first, count: int, spec: _Spec, other=0):
  """`count` tokens from `first` on of [n] or [n, d]; `other` after the last."""
  inside = _inside(first, count, spec)
  lanes = (slice(None),) * (len(ref.shape) - 1)
  return plgpu.load(
      ref.at[(pl.ds(first, count), *lanes)], other=other,
      mask=inside[:, None] if lanes else inside)


def _store(ref, value, first, spec: _Spec, part: tuple = ()):
  """Tokens from `first` on, to [n], [n, d] or a part of [n, 3, d]."""
  count, *lanes = value.shape
  inside = _inside(first, count, spec)
  plgpu.store(
      ref.at[(pl.ds(first, count), *part, *[slice(None) for _ in lanes])],
      value.astype(ref.dtype), mask=inside[:, None] if lanes else inside)


def _segments(refs, first, count: int, spec: _Spec):
  if not spec.has_segments:
    return None
  return _load(refs[0], first, count, spec, other=_NO_SEGMENT)


def _seen(of_rows, of_other, at, rows: int, spec: _Spec):
  """[rows, other] bool: pairs of one segment that are not beyond the last."""
  inside = _inside(at, spec.blocks.other, spec)[None, :]
  if of_rows is None:
    return jnp.broadcast_to(inside, (rows, spec.blocks.other))
  return inside & (of_rows[:, None] == of_other[None, :])


def _weights(products, norms, seen, spec: _Spec):
  """The softmax again, from its sums."""
  return jnp.where(seen, jnp.exp2(products * spec.scale - norms), 0.0)


def _dot(a, b, dimensions):
  """float32 in, float32 products: not the tensor cores' shorter ones."""
  return lax.dot_general(a, b, dimensions, precision=lax.Precision.HIGHEST,
                         preferred_element_type=jnp.float32)
