"""Attention on an NVIDIA GPU: the kernel against cuDNN, XLA and PyTorch.

  python -m bench.attention_gpu [--tokens=50,201] [--heads=16x64,32x128]
  python -m bench.attention_gpu --blocks=64x64x4x2,128x64x8x2

All begin with the fused projection [b, n, 3·h·d] in bfloat16 and end with the
values, or with the projection's gradient. A form is compared with float32
attention before it is timed, and left out if it is wrong. Prints one JSON line
a figure; the last line counts wrong forms, and so does the exit status.
--blocks times the kernel once more for every tokens × others × warps × stages.
"""

import argparse
from collections.abc import Callable
import functools
import importlib.util
import json
import statistics
import sys
import time
from unittest import mock

import jax
import jax.numpy as jnp

from dinojax.kernels import attention
from dinojax.kernels import attention_gpu
from dinojax.kernels import reference

TOKENS = (50, 201, 257, 1374, 2309)
HEADS = ('16x64', '32x128')
# Of values and gradients of unit normal inputs, relative to the largest.
TOLERANCE = {'bfloat16': 2e-2, 'float32': 2e-5}
_CALLS = 4  # of a program, so that starting it counts for little


def main() -> int:
  """Compares, times, prints."""
  options = parse()
  device = jax.devices()[0]
  if device.platform != 'gpu' and not options.interpret:
    print('error: JAX finds no GPU: run this where `nvidia-smi` shows one, '
          'with `pip install "jax[cuda12]"`, or with --interpret',
          file=sys.stderr)
    return 2
  wrong = 0
  for heads in options.heads.split(','):
    num_heads, head_dim = map(int, heads.split('x'))
    for length in map(int, options.tokens.split(',')):
      for line in measure(length, num_heads, head_dim, options):
        wrong += not line['right']
        print(json.dumps({
            'bench': 'attention_gpu', 'device': device.device_kind,
            'tokens': length, 'heads': heads, **line}), flush=True)
  print(json.dumps({'bench': 'attention_gpu', 'wrong': wrong}))
  return 1 if wrong else 0


def parse() -> argparse.Namespace:
  """The options."""
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument('--tokens', default=','.join(map(str, TOKENS)))
  parser.add_argument('--heads', default=','.join(HEADS))
  parser.add_argument('--total_tokens', type=int, default=2**15,
                      help='of a batch; the batch follows')
  parser.add_argument('--repeats', type=int, default=7)
  parser.add_argument('--blocks', default='', help='more forms of the kernel')
  parser.add_argument('--interpret', action='store_true',
                      help='runs everything on any platform; times mean '
                      'nothing')
  return parser.parse_args()


def measure(length: int, num_heads: int, head_dim: int, options):
  """Yields the figures of all forms for one shape."""
  batch = max(options.total_tokens // length, 1)
  forms = {name: functools.partial(form, num_heads=num_heads)
           for name, form in our_forms(options).items()}
  width = num_heads * head_dim
  yield from exact(length, num_heads, head_dim, options)
  shape = (batch, length, 3 * width)
  seconds = {}
  for name, form in forms.items():
    gap = compare(form, num_heads, (min(batch, 2), *shape[1:]), 'bfloat16')
    line = {'form': name, 'batch': batch, 'dtype': 'bfloat16', 'gap': gap,
            'right': gap <= TOLERANCE['bfloat16']}
    if not line['right']:
      yield line
      continue
    for direction, run in programs(form, shape):
      seconds[name, direction] = clock(run, options.repeats)
      yield line | figures(
          seconds, name, direction, 4.0 * batch * length**2 * width)
  peer = torch_forms(shape, num_heads) if not options.interpret else None
  if peer is None:
    yield {'form': 'torch', 'right': True, 'skipped': 'no torch with CUDA'}
    return
  for direction, run in peer.items():
    seconds['torch', direction] = clock_torch(run, options.repeats)
    yield {'form': 'torch', 'batch': batch, 'dtype': 'bfloat16',
           'right': True} | figures(
               seconds, 'torch', direction, 4.0 * batch * length**2 * width)


def our_forms(options) -> dict[str, Callable]:
  """Functions of (qkv, num_heads) by name."""
  form = lambda name: functools.partial(attention.attend, implementation=name)
  kernel = functools.partial(
      attention_gpu.attend, interpret=options.interpret)
  forms = {'cudnn': form('cudnn'), 'gpu': kernel, 'xla': form('xla')}
  if options.interpret:
    del forms['cudnn']
  for text in options.blocks.split(',') if options.blocks else ():
    cut = attention_gpu.Blocks(*map(int, text.split('x')))
    forms[f'gpu {text}'] = functools.partial(_with_blocks, kernel, cut)
  return forms


def _with_blocks(kernel, cut, qkv, **kwargs):
  with mock.patch.object(attention_gpu, 'blocks', lambda *_: cut):
    return kernel(qkv, **kwargs)


def both(form: Callable, qkv: jax.Array, cotangent: jax.Array):
  """Values, and the gradient of the projection."""
  out, back = jax.vjp(form, qkv)
  return out, back(cotangent)[0]


def inputs(shape: tuple[int, ...], dtype: str, seed: int = 0):
  """The projection and a cotangent, random."""
  keys = jax.random.split(jax.random.key(seed))
  return (jax.random.normal(keys[0], shape).astype(dtype),
          jax.random.normal(
              keys[1], (*shape[:2], shape[2] // 3)).astype(dtype))


def compare(form: Callable, num_heads: int, shape: tuple[int, ...],
            dtype: str) -> float:
  """Largest difference from float32, relative to the largest entry."""
  def oracle(qkv):
    out = reference.attention(*attention.heads(qkv, num_heads, None))
    return out.reshape(*qkv.shape[:2], -1)

  given = inputs(shape, dtype)
  got = jax.jit(functools.partial(both, form))(*given)
  want = jax.jit(functools.partial(both, oracle))(
      *(x.astype(jnp.float32) for x in given))
  gaps = [jnp.abs(a.astype(jnp.float32) - b).max() / jnp.abs(b).max()
          for a, b in zip(got, want, strict=True)]
  return float(jnp.stack(gaps).max())


def exact(length: int, num_heads: int, head_dim: int, options):
  """The kernel in float32, where rounding hides nothing."""
  form = functools.partial(attention_gpu.attend, num_heads=num_heads,
                           interpret=options.interpret)
  gap = compare(form, num_heads, (1, length, 3 * num_heads * head_dim),
                'float32')
  yield {'form': 'gpu', 'dtype': 'float32', 'gap': gap,
         'right': gap <= TOLERANCE['float32']}


def programs(form: Callable, shape: tuple[int, ...]):
  """(direction, function of nothing) of several calls on unlike inputs."""
  many = [inputs(shape, 'bfloat16', seed) for seed in range(_CALLS)]
  forward = jax.jit(lambda many: [form(qkv) for qkv, _ in many])
  step = jax.jit(lambda many: [both(form, *given) for given in many])
  yield 'forward', functools.partial(forward, many)
  yield 'both', functools.partial(step, many)


def clock(run: Callable, repeats: int) -> float:
  """Seconds of one call: the median of `repeats`."""
  jax.block_until_ready(run())
  times = []
  for _ in range(repeats):
    began = time.perf_counter()
    results = [run() for _ in range(4)]
    jax.block_until_ready(results)
    times.append((time.perf_counter() - began) / (4 * _CALLS))
  return statistics.median(times)


def figures(seconds: dict, name: str, direction: str, flops: float) -> dict:
  """What is printed of one time.

  Args:
    seconds: by (form, direction).
    name: of the form.
    direction: 'forward', or 'both' for value and gradient.
    flops: of the forward's two products; the gradient has five more.
  """
  duration, peer = seconds[name, direction], seconds.get(('cudnn', direction))
  work = flops * (3.5 if direction == 'both' else 1)
  return {'direction': direction, 'us': round(1e6 * duration, 1),
          'tflops': round(work / duration / 1e12, 1),
          'times_cudnn': round(duration / peer, 3) if peer else None}


def torch_forms(shape: tuple[int, ...],
                num_heads: int) -> dict[str, Callable] | None:
  """PyTorch's scaled_dot_product_attention, or None without its CUDA."""
  if importlib.util.find_spec('torch') is None:
    return None
  import torch
  if not torch.cuda.is_available():
    return None
  qkv = torch.randn(shape, device='cuda', dtype=torch.bfloat16,
                    requires_grad=True)
  cotangent = torch.randn_like(qkv[:, :, :shape[2] // 3])

  def forward():
    parts = qkv.view(*shape[:2], 3, num_heads, -1).permute(2, 0, 3, 1, 4)
    out = torch.nn.functional.scaled_dot_product_attention(*parts.unbind(0))
    return out.transpose(1, 2).reshape(cotangent.shape)

  def inference():
    with torch.inference_mode():
      return forward()

  def step():
    qkv.grad = None
    forward().backward(cotangent)

  return {'forward': inference, 'both': step}


def clock_torch(run: Callable, repeats: int) -> float:
  """Seconds of one call: the median of `repeats`."""
  import torch
  run()
  torch.cuda.synchronize()
  times = []
  for _ in range(repeats):
    began = time.perf_counter()
    for _ in range(4 * _CALLS):
      run()
    torch.cuda.synchronize()
    times.append((time.perf_counter() - began) / (4 * _CALLS))
  return statistics.median(times)


if __name__ == '__main__':
  sys.exit(main())
