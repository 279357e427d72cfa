"""The GPU kernel as Triton compiles it, on a machine without a GPU.

  pip install triton
  python -m bench.attention_gpu_compiled [--architectures=80,90]

XLA brings a Triton of its own, so the figures are near what runs and not the
same: registers of a thread, bytes of a thread's stack (what did not fit),
shared memory of a program, and instructions of Hopper's tensor cores (wgmma)
or of older ones (mma). Prints one JSON line a kernel.
"""

import argparse
import functools
import importlib.util
import json
import pathlib
import re
import subprocess
import sys
import tempfile
from unittest import mock

import jax
from jax._src.pallas.triton import lowering
import jax.numpy as jnp

from dinojax.kernels import attention_gpu


def main() -> int:
  """Compiles and prints."""
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument('--architectures', default='80,90')
  parser.add_argument('--tokens', default='50,257,1374')
  options = parser.parse_args()
  if importlib.util.find_spec('triton') is None:
    print('error: this needs the compiler: `pip install triton`',
          file=sys.stderr)
    return 2
  for dtype in ('bfloat16', 'float32'):
    for head_dim in attention_gpu.HEAD_DIMS:
      for length in map(int, options.tokens.split(',')):
        for architecture in map(int, options.architectures.split(',')):
          for line in measure(length, head_dim, dtype, architecture):
            print(json.dumps({
                'bench': 'attention_gpu_compiled', 'dtype': dtype,
                'head_dim': head_dim, 'tokens': length, **line}), flush=True)
  return 0


def measure(length: int, head_dim: int, dtype: str, architecture: int):
  """Yields the figures of the forward and the backward kernel."""
  for name, text in modules(length, head_dim, dtype).items():
    cut = attention_gpu.blocks(
        length, head_dim, jnp.dtype(dtype), name.endswith('backward'))
    yield {'architecture': f'sm_{architecture}', 'kernel': name,
           'own': cut.rows, 'other': cut.other, 'warps': cut.warps,
           'stages': cut.stages, **compiled(text, cut, architecture)}


def modules(length: int, head_dim: int, dtype: str) -> dict[str, str]:
  """Programs in Triton's language, by the kernel's name."""
  lower, programs = lowering.lower_jaxpr_to_triton_module, {}

  def keep(jaxpr, *args, **kwargs):
    result = lower(jaxpr, *args, **kwargs)
    programs[jaxpr.debug_info.func_name] = result.module.operation.get_asm()
    return result

  form = functools.partial(attention_gpu.attend, num_heads=16)
  step = jax.jit(lambda qkv: jax.vjp(form, qkv)[1](form(qkv)))
  qkv = jax.ShapeDtypeStruct((2, length, 48 * head_dim), dtype)
  with mock.patch.object(lowering, 'lower_jaxpr_to_triton_module', keep):
    step.trace(qkv).lower(lowering_platforms=('cuda',))
  return programs


def compiled(text: str, cut: attention_gpu.Blocks, architecture: int) -> dict:
  """What the assembler says of a program."""
  import triton
  from triton.backends import compiler
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    (folder / 'kernel.ttir').write_text(text)
    kernel = triton.compile(
        str(folder / 'kernel.ttir'),
        target=compiler.GPUTarget('cuda', architecture, 32),
        options={'num_warps': cut.warps, 'num_stages': cut.stages})
    (folder / 'kernel.cubin').write_bytes(kernel.asm['cubin'])
    tool, = pathlib.Path(triton.__file__).parent.glob('**/bin/cuobjdump')
    used = subprocess.run(
        [tool, '--dump-resource-usage', folder / 'kernel.cubin'],
        capture_output=True, text=True, check=True).stdout
  number = lambda name: int(re.search(rf'{name}:(\d+)', used).group(1))
  ptx = kernel.asm['ptx']
  return {'registers': number('REG'), 'stack_bytes': number('STACK'),
          'shared_kib': round(kernel.metadata.shared / 1024, 1),
          'wgmma': ptx.count('wgmma.mma_async'), 'mma': ptx.count('mma.sync')}


if __name__ == '__main__':
  sys.exit(main())
