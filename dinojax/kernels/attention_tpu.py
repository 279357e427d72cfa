"""Attention on TPU, on the fused projection: one kernel for ViT lengths.

A program is some images and 128 lanes of the projection, that is two heads of
64 or one of 128. Keys and values of an image lie in VMEM whole, so a row's
softmax is complete and nothing is rescaled; the backward recomputes it and
needs the projection alone. Nothing is transposed or padded in HBM: queries,
keys and values are lanes of the same array, and so are their gradients.
"""

import functools

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from dinojax.kernels import rotary

LANES = 128
HEAD_DIMS = (64, 128)
_ROWS_PER_PROGRAM = 512  # images of few tokens share a program
_SCORES = 2**19  # entries of a chunk of scores, 2 MiB
_KEYS = 1024  # whose gradients are added at a time, in long sequences
_UNROLLED = 1  # chunk; more are a loop, which compiles faster
_VMEM_BYTES = 64 * 2**20
_MASKED = -1e30

_NT = (((1,), (1,)), ((), ()))
_NN = (((1,), (0,)), ((), ()))
_TN = (((0,), (0,)), ((), ()))


# Keys, values and their gradients lie in VMEM whole: compiled for heads of both
# widths, 16,389 tokens fit the 64 MiB of a v5p; with RoPE's tables, 8,101.
MAX_TOKENS = 16_400
_ROTATED_INSIDE = 8192  # longer sequences are rotated before the kernel
# From here on a program computes for so long that fetching the next one's
# inputs meanwhile, which takes their space twice, gains nothing.
_SINGLE_BUFFERED = 4096


def max_tokens(dtype: jnp.dtype) -> int:
  """Tokens that fit, in two bytes each number or in four."""
  return MAX_TOKENS * 2 // max(jnp.dtype(dtype).itemsize, 2)


def fits(width: int, num_heads: int) -> bool:
  """Tells whether the kernel takes this projection: its heads fill lanes."""
  return width % LANES == 0 and width // num_heads in HEAD_DIMS


def attend(qkv: jax.Array, *, num_heads: int,
           rope: tuple[jax.Array, jax.Array] | None = None,
           segments: jax.Array | None = None,
           interpret: bool = False) -> jax.Array:
  """softmax(q kᵀ / √d) v of fused heads; softmax in float32.

  Args:
    qkv: [b, n, 3·h·d]: queries, keys and values of all heads.
    num_heads: h.
    rope: sin and cos [p, d], or [g, p, d] for g equal groups of images, that
      rotate the last p tokens of queries and keys.
    segments: [b, n] int32; tokens attend within their segment.
    interpret: runs on any platform, slowly; for tests.

  Returns:
    [b, n, h·d] in the dtype of `qkv`.
  """
  batch, length, fused = qkv.shape
  width = fused // 3
  head_dim = width // num_heads
  if not fits(width, num_heads):
    raise ValueError(
        f'heads of {head_dim} in a width of {width} do not fill lanes of '
        f'{LANES}: the kernel takes head widths of 64 and 128')
  if rope is not None and length > _ROTATED_INSIDE * 2 // max(
      qkv.dtype.itemsize, 2):
    parts = qkv.reshape(batch, length, 3, num_heads, head_dim)
    turned = [rotary.rotate(parts[:, :, i], rope) for i in range(2)]
    qkv = jnp.stack([*turned, parts[:, :, 2]], axis=2).reshape(qkv.shape)
    rope = None
  tables = None if rope is None else _tables(rope, length, head_dim)
  groups = 1 if rope is None else tables[0].shape[0]
  spec = _Spec(head_dim, _images(batch // groups, length), groups,
               interpret)
  if segments is not None:
    segments = segments.astype(jnp.int32)
  # Under shard_map, tables that are alike everywhere must say that they
  # differ, as the images do.
  tables, segments = jax.tree.map(
      lambda x: _vary_like(x, qkv), (tables, segments))
  return _attend(qkv, tables, segments, spec)


def _vary_like(x: jax.Array, other: jax.Array) -> jax.Array:
  varying = lambda x: jax.typeof(x).manual_axis_type.varying
  missing = tuple(varying(other) - varying(x))
  return lax.pcast(x, missing, to='varying') if missing else x


def _images(rows: int, length: int) -> int:
  """Images of a program: a divisor of the rows that share a table."""
  most = max(_ROWS_PER_PROGRAM // length, 1)
  return max(i for i in range(1, min(most, rows) + 1) if rows % i == 0)


def _tables(rope, length: int, head_dim: int):
  """sin and cos for all tokens and lanes, [g, n, 128]; first tokens stay."""
  out = []
  for table, first in zip(rope, (0.0, 1.0), strict=True):
    table = table[None] if table.ndim == 2 else table
    lead = length - table.shape[1]
    table = jnp.pad(table, ((0, 0), (lead, 0), (0, 0)), constant_values=first)
    out.append(jnp.tile(table, (1, 1, LANES // head_dim)))
  return tuple(out)


class _Spec:
  """Shapes and options that a kernel is compiled for; hashable."""

  def __init__(self, head_dim: int, images: int, groups: int,
               interpret: bool):
    self.head_dim, self.images = head_dim, images
    self.groups, self.interpret = groups, interpret

  def __hash__(self):
    return hash(tuple(vars(self).values()))

  def __eq__(self, other):
    return vars(self) == vars(other)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attend(qkv, tables, segments, spec):
  return _forward(qkv, tables, segments, spec)


def _attend_forward(qkv, tables, segments, spec):
  return _forward(qkv, tables, segments, spec), (qkv, tables, segments)


def _attend_backward(spec, residuals, cotangent):
  qkv, tables, segments = residuals
  return _backward(qkv, tables, segments, cotangent, spec), None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _call(kernel, qkv, tables, segments, extra, spec: _Spec, *, out_shape,
          out_specs, scratch, products: int):
  """pallas_call over (images, lanes) with the inputs that are there."""
  batch, length, fused = qkv.shape
  width = fused // 3
  tiles, images = width // LANES, spec.images
  once = pl.Buffered(1) if length > _SINGLE_BUFFERED else None
  lanes = lambda part: pl.BlockSpec(
      (images, length, LANES), lambda b, t: (b, 0, t + part * tiles),
      pipeline_mode=once)
  args, specs = [qkv] * 3 + extra, [lanes(i) for i in range(3)]
  specs += [lanes(0)] * len(extra)
  if tables is not None:
    per_group = batch // spec.groups // images  # programs
    table = pl.BlockSpec(
        (1, length, LANES), lambda b, t: (lax.div(b, per_group), 0, 0),
        pipeline_mode=once)
    args, specs = args + list(tables), specs + [table] * 2
  if segments is not None:
    args += [segments[:, :, None], segments[:, None, :]]
    specs += [pl.BlockSpec((images, length, 1), lambda b, t: (b, 0, 0)),
              pl.BlockSpec((images, 1, length), lambda b, t: (b, 0, 0))]
  size = qkv.dtype.itemsize
  moved = (len(extra) + (3 if len(extra) else 1) + 3) * batch * length * width
  cost = pl.CostEstimate(
      flops=2 * products * batch * length * length * width,
      transcendentals=batch * length * length * (width // spec.head_dim),
      bytes_accessed=moved * size + sum(
          t.size * t.dtype.itemsize for t in tables or ()))
  return pl.pallas_call(
      functools.partial(
          kernel, spec=spec, width=width, has_rope=tables is not None,
          has_segments=segments is not None),
      grid=(batch // images, tiles), in_specs=specs, out_specs=out_specs(lanes),
      out_shape=jax.ShapeDtypeStruct(
          out_shape, qkv.dtype,
          manual_axis_type=jax.typeof(qkv).manual_axis_type),
      scratch_shapes=scratch, cost_estimate=cost,
      compiler_params=pltpu.CompilerParams(
          dimension_semantics=('parallel', 'parallel'),
          vmem_limit_bytes=_VMEM_BYTES),
      interpret=pltpu.InterpretParams() if spec.interpret else False,
      name='vit_attention' if not extra else 'vit_attention_backward',
  )(*args)


def _forward(qkv, tables, segments, spec):
  batch, length, fused = qkv.shape
  return _call(
      _forward_kernel, qkv, tables, segments, [], spec,
      out_shape=(batch, length, fused // 3),
      out_specs=lambda lanes: lanes(0), scratch=[], products=2)


def _backward(qkv, tables, segments, cotangent, spec):
  length = qkv.shape[1]
  part = pltpu.VMEM((spec.images, length, LANES), qkv.dtype)
  total = pltpu.VMEM((length, spec.head_dim), jnp.float32)
  blocks = []
  if length > _SINGLE_BUFFERED:
    blocks = [pltpu.VMEM((_chunk_rows(length), length), qkv.dtype)] * 2
  return _call(
      _backward_kernel, qkv, tables, segments, [cotangent], spec,
      out_shape=qkv.shape,
      out_specs=lambda lanes: pl.BlockSpec(memory_space=pl.ANY),
      scratch=[part, part, part, total, total,
               pltpu.SemaphoreType.DMA((3,)), *blocks],
      products=5)


class _Refs:
  """The references of a kernel by name."""

  def __init__(self, refs, num_extra: int, has_rope: bool,
               has_segments: bool):
    refs = list(refs)
    take = lambda count: [refs.pop(0) for _ in range(count)]
    self.q, self.k, self.v = take(3)
    self.extra = take(num_extra)
    self.tables = take(2) if has_rope else None
    self.segments = take(2) if has_segments else None
    self.rest = refs


def _forward_kernel(*refs, spec, width, has_rope, has_segments):
  del width
  r = _Refs(refs, 0, has_rope, has_segments)
  out, = r.rest

  def image(b, _):
    for lanes in _heads(spec):
      k = _rotated(r.k[b, :, lanes], r.tables, slice(None), lanes)
      v = r.v[b, :, lanes]

      def chunk(rows, lanes=lanes, k=k, v=v):
        exps, total = _softmax_parts(r, b, rows, lanes, k, spec)
        mixed = _dot(exps.astype(v.dtype), v, _NN)
        out[b, rows, lanes] = (mixed * (1 / total)).astype(out.dtype)

      _for_chunks(r.q.shape[1], chunk)
    return _

  _for_images(spec.images, image)


def _backward_kernel(*refs, spec, width, has_rope, has_segments):
  r = _Refs(refs, 1, has_rope, has_segments)
  out, dq, dk, dv, sum_k, sum_v, semaphores, *blocks = r.rest
  cotangent, = r.extra

  def image(b, _):
    for lanes in _heads(spec):
      k = _rotated(r.k[b, :, lanes], r.tables, slice(None), lanes)
      v = r.v[b, :, lanes]
      sum_k[...] = jnp.zeros_like(sum_k)
      sum_v[...] = jnp.zeros_like(sum_v)

      def chunk(rows, lanes=lanes, k=k, v=v):
        if blocks and r.tables is None:  # too long to be held over the loop
          k, v = r.k[b, :, lanes], r.v[b, :, lanes]
        exps, total = _softmax_parts(r, b, rows, lanes, k, spec)
        weights = exps * (1 / total)
        q = _rotated(r.q[b, rows, lanes], r.tables, rows, lanes)
        given = cotangent[b, rows, lanes]
        slope = _dot(given, v, _NT)
        slope = weights * (slope - jnp.sum(
            weights * slope, axis=-1, keepdims=True))
        slope = (slope * spec.head_dim ** -0.5).astype(k.dtype)
        dq[b, rows, lanes] = _rotated_back(
            _dot(slope, k, _NN), r.tables, rows, lanes).astype(dq.dtype)
        weights = weights.astype(v.dtype)
        if not blocks:
          sum_k[...] += _dot(slope, q, _TN)
          sum_v[...] += _dot(weights, given, _TN)
          return
        num_rows = q.shape[0]
        for block, part in zip(blocks, (slope, weights), strict=True):
          block[:num_rows] = part

        def add(keys):
          sum_k[keys] += _dot(blocks[0][:num_rows, keys], q, _TN)
          sum_v[keys] += _dot(blocks[1][:num_rows, keys], given, _TN)

        _in_parts(k.shape[0], _KEYS, add)

      _for_chunks(r.q.shape[1], chunk)
      dk[b, :, lanes] = _rotated_back(
          sum_k[...], r.tables, slice(None), lanes).astype(dk.dtype)
      dv[b, :, lanes] = sum_v[...].astype(dv.dtype)
    return _

  _for_images(spec.images, image)
  images = pl.ds(pl.program_id(0) * spec.images, spec.images)
  copies = [
      pltpu.make_async_copy(
          part, out.at[images, :, pl.ds(
              i * width + pl.program_id(1) * LANES, LANES)],
          semaphores.at[i]) for i, part in enumerate((dq, dk, dv))]
  for copy in copies:
    copy.start()
  for copy in copies:
    copy.wait()


def _softmax_parts(r, b, rows, lanes, k, spec):
  """exp(scores − their maximum) [m, n] and its sums [m, 1], float32."""
  q = _rotated(r.q[b, rows, lanes], r.tables, rows, lanes)
  scores = _dot(q, k, _NT) * spec.head_dim ** -0.5
  if r.segments is not None:
    of_rows, of_columns = r.segments
    same = of_rows[b, rows, :] == of_columns[b, :, :]
    scores = jnp.where(same, scores, _MASKED)
  exps = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
  return exps, jnp.sum(exps, axis=-1, keepdims=True)


def _rotated(x, tables, rows, lanes):
  """x·cos + turn(x)·sin, rounded as the tables' dtype asks."""
  if tables is None:
    return x
  sin, cos = (t[0, rows, lanes].astype(jnp.float32) for t in tables)
  cut = _rounder(tables[0].dtype)
  wide = cut(x.astype(jnp.float32))
  return cut(cut(wide * cos) + cut(_turn(wide) * sin)).astype(x.dtype)


def _rotated_back(grad, tables, rows, lanes):
  """The transpose of `_rotated`, float32."""
  if tables is None:
    return grad
  sin, cos = (t[0, rows, lanes].astype(jnp.float32) for t in tables)
  return grad * cos - _turn(grad * sin)


def _turn(x):
  """(x₁, x₂) to (−x₂, x₁), halves of a head; its transpose is its negative."""
  first, second = jnp.split(x, 2, axis=-1)
  return jnp.concatenate([-second, first], axis=-1)


def _rounder(dtype):
  if dtype == jnp.float32:
    return lambda x: x
  return lambda x: x.astype(dtype).astype(jnp.float32)


def _dot(a, b, dimensions):
  # Stated, because a default of 'highest' fails to compile for bfloat16.
  exact = a.dtype == jnp.float32
  return lax.dot_general(
      a, b, dimensions, preferred_element_type=jnp.float32,
      precision=lax.Precision.HIGHEST if exact else lax.Precision.DEFAULT)


def _heads(spec: _Spec):
  return [slice(i, i + spec.head_dim)
          for i in range(0, LANES, spec.head_dim)]


def _for_images(count: int, body):
  if count == 1:
    body(0, 0)
  else:
    lax.fori_loop(0, count, body, 0)


def _chunk_rows(length: int) -> int:
  """Rows of scores that fit beside keys and values."""
  return min(max(_SCORES // length // 16 * 16, 16), length)


def _for_chunks(length: int, body):
  """`body` over the rows, as many at a time as `_chunk_rows`."""
  _in_parts(length, _chunk_rows(length), body)


def _in_parts(length: int, size: int, body):
  """`body` over slices of `size`, and one of what is left."""
  whole, rest = divmod(length, size)
  if whole <= _UNROLLED:
    for i in range(whole):
      body(slice(i * size, (i + 1) * size))
  else:
    def step(i, carry):
      body(pl.ds(pl.multiple_of(i * size, size), size))
      return carry
    lax.fori_loop(0, whole, step, 0)
  if rest:
    body(slice(whole * size, length))
