"""Bytes that attention moves on a TPU, forward and backward, compiled here.

  pip install libtpu
  python -m bench.attention_tpu --topology=v5e:2x2 --batch=32 --tokens=257

No TPU runs: these are the compiler's figures for one chip. A custom call's
own operands and results are added, each buffer once, and the cost that a
kernel states for itself counts for nothing.
"""

import argparse
import functools
import json
import math
import re
import time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.kernels import attention
from dinojax.kernels import attention_tpu
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import topologies

_SIZES = {'bf16': 2, 'f32': 4, 's32': 4, 'pred': 1}
_ARRAY = re.compile(rf'\b({"|".join(_SIZES)})\[([\d,]*)\]')


def main():
  """Prints one JSON line."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--topology', default='v5e:2x2')
  parser.add_argument('--batch', type=int, default=32)
  parser.add_argument('--tokens', type=int, default=257,
                      help='one and a square')
  parser.add_argument('--heads', type=int, default=16)
  parser.add_argument('--head_dim', type=int, default=64)
  args = parser.parse_args()
  mesh = mesh_lib.make(devices=topologies.devices(args.topology)[:1])
  width = args.heads * args.head_dim
  array = lambda dtype, *shape: jax.ShapeDtypeStruct(
      shape, dtype, sharding=jax.NamedSharding(mesh, jax.P()))
  qkv = array(jnp.bfloat16, args.batch, args.tokens, 3 * width)
  cotangent = array(jnp.bfloat16, args.batch, args.tokens, width)
  patches = math.isqrt(args.tokens - 1) ** 2
  tables = [array(jnp.float32, patches, args.head_dim)] * 2
  out = {'bench': 'attention_tpu', **vars(args),
         'floor_gb': round(11 * math.prod(cotangent.shape) * 2 / 1e9, 3)}
  for name, rope in (('tpu', False), ('tpu', True), ('xla', False),
                     ('xla', True)):
    out[name + '_rope' * rope] = measure(
        mesh, functools.partial(
            attention.attend, num_heads=args.heads, implementation=name),
        qkv, cotangent, tables if rope else [])
  print(json.dumps(out))


def measure(mesh: jax.sharding.Mesh, attend, qkv, cotangent,
            tables: list) -> dict:
  """Of value and gradient, with the value used."""
  def both(qkv, cotangent, *tables):
    out, back = jax.vjp(lambda qkv: attend(qkv, rope=tables or None), qkv)
    return out, *back(cotangent)

  began, stated = time.monotonic(), attention_tpu.pl.CostEstimate
  silent = lambda **cost: stated(**cost | {'bytes_accessed': 0})
  with mesh_lib.activate(mesh), mock.patch.object(
      attention_tpu.pl, 'CostEstimate', silent):
    program = jax.jit(both).lower(qkv, cotangent, *tables).compile()
  calls, called = custom_calls(program.as_text())
  around = program.cost_analysis()['bytes accessed']
  return {
      'gb': round((around + called) / 1e9, 3), 'custom_calls': calls,
      'temporaries_mib': round(
          program.memory_analysis().temp_size_in_bytes / 2**20, 1),
      'compile_s': round(time.monotonic() - began, 1)}


def custom_calls(text: str) -> tuple[int, float]:
  """How many kernels a program holds, and bytes that they read and write."""
  shapes = {}
  for line in text.splitlines():
    made = re.match(r'\s*(?:ROOT )?(%[\w.\-]+) = (.*?) [\w\-]+\(', line)
    if made:
      shapes[made.group(1)] = made.group(2)
  count, total = 0, 0.0
  for line in text.splitlines():
    call = re.match(r'\s*(?:ROOT )?%[\w.\-]+ = (.*?) custom-call\((.*?)\), '
                    r'custom_call_target="tpu_custom_call"', line)
    if call:
      operands = set(re.findall(r'%[\w.\-]+', call.group(2)))
      count += 1
      total += num_bytes(call.group(1)) + sum(
          num_bytes(shapes[name]) for name in operands)
  return count, total


def num_bytes(shape: str) -> float:
  """Bytes of all arrays of an HLO shape."""
  return sum(
      float(np.prod([int(n) for n in sizes.split(',') if n])) * _SIZES[dtype]
      for dtype, sizes in _ARRAY.findall(shape))


if __name__ == '__main__':
  main()
