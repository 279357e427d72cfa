"""The GPU kernel against the oracle, and that GPUs get it.

On a CPU the kernel is interpreted, which does not go under a checked
shard_map: there it is lowered. With JAX_PLATFORMS=cuda it runs for real.
"""

import dataclasses
import functools
import importlib
import re

import jax
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax._src.pallas.triton import lowering
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.kernels import attention
from dinojax.kernels import attention_gpu
from dinojax.kernels import reference
from dinojax.models import network
from dinojax.models import positions
from dinojax.models import vit
from dinojax.parallel import mesh as mesh_lib
from tests import compiled

INTERPRET = jax.default_backend() != 'gpu'
# The hardware's exponential is right to about 2e-7 of its value.
ATOL = 2e-6 if INTERPRET else 1e-5
TRITON = '__gpu$xla.gpu.triton'
rope_of = compiled.function(positions.rope)


def oracle(qkv, num_heads, rope=None, ends=()):
  """Attention within the segments that end before these tokens."""
  q, k, v = attention.heads(qkv, num_heads, rope)
  cuts = [0, *ends, qkv.shape[1]]
  out = [reference.attention(*(x[:, a:b] for x in (q, k, v)))
         for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
  return jnp.concatenate(out, axis=1).reshape(*qkv.shape[:2], -1)


def check(batch, length, head_dim, *, num_heads=2, scale=1.0, atol=ATOL,
          rope=None, ends=(), dtype=jnp.float32):
  """Values and gradients."""
  rng = np.random.default_rng(length)
  width = num_heads * head_dim
  normal = lambda width: rng.normal(size=(batch, length, width))
  qkv = np.float32(scale * normal(3 * width)).astype(dtype)
  cotangent = np.float32(normal(width)).astype(dtype)
  segments = None
  if ends:
    segments = np.searchsorted(ends, np.arange(length), side='right')
    segments = np.broadcast_to(np.int32(segments), (batch, length))

  def both(f, qkv, cotangent):
    out, back = jax.vjp(f, qkv)
    return out, back(cotangent)[0]

  got = jax.jit(functools.partial(both, functools.partial(
      attention_gpu.attend, num_heads=num_heads, rope=rope,
      segments=segments, interpret=INTERPRET)))(qkv, cotangent)
  assert all(x.dtype == dtype for x in got)
  wide = lambda x: np.asarray(x).astype(np.float32)
  want = jax.jit(functools.partial(both, lambda qkv: oracle(
      qkv, num_heads, rope, ends)))(wide(qkv), wide(cotangent))
  for ours, theirs in zip(got, want, strict=True):
    np.testing.assert_allclose(wide(ours), theirs, rtol=1e-5, atol=atol)


@pytest.mark.parametrize('batch, length, head_dim', [
    (3, 17, 64), (1, 64, 64), (1, 261, 128), *(
        pytest.param(*values, marks=pytest.mark.slow, id=f'{values}')
        for values in ((2, 50, 128), (1, 201, 64), (1, 257, 64)))])
def test_odd_lengths_and_both_head_widths(batch, length, head_dim):
  check(batch, length, head_dim)


@pytest.mark.parametrize('rows, other', [(64, 16), (16, 64)])
def test_blocks_of_any_two_sizes_agree(rows, other, monkeypatch):
  monkeypatch.setattr(
      attention_gpu, 'blocks',
      lambda *_: attention_gpu.Blocks(rows, other, warps=4))
  check(1, 85, 64)


def test_large_scores_do_not_overflow():
  # Scores reach hundreds: a float32 of that size is rounded to 3e-5, which
  # the softmax turns into a factor.
  check(2, 80, 64, scale=6.0, atol=2e-3)


def test_bfloat16_stays_within_its_rounding():
  check(2, 80, 64, dtype=jnp.bfloat16, atol=2e-2)


@pytest.mark.parametrize('groups, head_dim', [(1, 64), (2, 128)])
def test_rope_turns_patches_and_leaves_the_first_tokens(groups, head_dim):
  rope = rope_of((4, 5), positions.rope_periods(head_dim))
  if groups > 1:
    rope = tuple(np.stack([x, x[::-1]]) for x in rope)
  check(4, 25, head_dim, rope=rope)


def test_segments_attend_to_themselves():
  # Some programs begin with blocks that hold nothing their tokens see.
  check(2, 150, 64, ends=(20, 75, 140))


@pytest.fixture(autouse=True)
def pretend_gpu(monkeypatch):
  """From jax 0.12 lowering asks which GPU it is for: an H100, if none."""
  name = 'jax._src.pallas.triton.gpu_info'
  if INTERPRET and importlib.util.find_spec(name):
    known = importlib.import_module(name)
    monkeypatch.setattr(known, 'get_gpu_info', lambda: (
        known.get_gpu_info_from_version(known.GpuVersion.H100)))


def lowered(f, qkv):
  """The program for a GPU, of values and gradients of their sum."""
  total = lambda qkv: jnp.sum(f(qkv).astype(jnp.float32))
  return jax.jit(jax.value_and_grad(total)).trace(qkv).lower(
      lowering_platforms=('cuda',)).as_text()


@pytest.mark.parametrize('dtype', ['bfloat16', 'float32'])
@pytest.mark.parametrize('head_dim', [64, 128])
def test_a_gpu_program_holds_the_kernel_and_pads_nothing(head_dim, dtype):
  text = lowered(functools.partial(
      attention.attend, num_heads=3, implementation='gpu'),
      jnp.zeros((2, 257, 9 * head_dim), dtype))
  assert text.count(TRITON) == 2
  assert '_vit_attention_backward' in text
  assert not re.search('stablehlo.(pad|concatenate)', text)


def test_programs_touch_nothing_beyond_the_last_token(monkeypatch):
  # The interpreter gives every program rows of its own there; a GPU does not.
  lower, modules = lowering.lower_jaxpr_to_triton_module, []

  def spy(*args, **kwargs):
    result = lower(*args, **kwargs)
    modules.append(result.module.operation.get_asm())
    return result

  monkeypatch.setattr(lowering, 'lower_jaxpr_to_triton_module', spy)
  lowered(functools.partial(
      attention_gpu.attend, num_heads=2,
      segments=jnp.zeros((2, 257), jnp.int32)),
      jnp.zeros((2, 257, 384), jnp.bfloat16))
  touching = re.findall('.*tt[.](?:load|store).*', '\n'.join(modules))
  # Values and sums; queries, keys and values of three: 5 stores, and loads.
  assert len([line for line in touching if 'tt.store' in line]) == 5
  for line in touching:
    operands = re.search('tt[.](?:load|store) ([^:{]*)', line).group(1)
    assert operands.count(',') == 2, line


def test_rope_and_segments_alike_on_a_mesh_lower_too():
  mesh = mesh_lib.make(data=2, fsdp=4)
  rope = rope_of((4, 4), positions.rope_periods(64))
  attend = functools.partial(
      attention_gpu.attend, num_heads=2, rope=rope,
      segments=jnp.zeros((1, 17), jnp.int32))
  with mesh_lib.activate(mesh):
    qkv = jax.device_put(
        jnp.zeros((8, 17, 384)), jax.NamedSharding(mesh, mesh_lib.ROWS))
    text = lowered(jax.shard_map(
        attend, in_specs=mesh_lib.ROWS, out_specs=mesh_lib.ROWS), qkv)
  assert text.count(TRITON) == 2


@pytest.fixture
def pretend_cudnn(monkeypatch):
  """Lowering asks the machine for cuDNN's version and the GPU's."""
  monkeypatch.setattr(cudnn, 'check_cudnn_version', lambda: 91000)
  monkeypatch.setattr(cudnn, 'check_compute_capability', lambda _: True)


@pytest.mark.parametrize('length', [50, 257])
@pytest.mark.parametrize('head_dim', [64, 128])
@pytest.mark.usefixtures('pretend_cudnn')
def test_a_gpu_program_holds_cudnn_at_odd_lengths_too(length, head_dim):
  text = lowered(functools.partial(
      attention.attend, num_heads=2, implementation='cudnn'),
      jnp.zeros((2, length, 6 * head_dim), jnp.bfloat16))
  assert '__cudnn$fmhaSoftmax(' in text
  assert '__cudnn$fmhaSoftmaxBackward(' in text
  assert f'tensor<2x{length + length % 2}x2x{head_dim}xbf16>' in text


CONFIG = vit.ViTConfig(
    128, 2, 2, 4, position='rope', num_registers=2, ffn_hidden=128,
    layerscale=1.0, rope_rescale=2.0, dtype='bfloat16')


@pytest.mark.parametrize('name, call', [
    ('gpu', '_vit_attention_backward'), ('cudnn', 'fmhaSoftmaxBackward')])
@pytest.mark.usefixtures('pretend_cudnn')
def test_recomputed_blocks_on_a_mesh_lower_for_gpus(name, call):
  mesh = mesh_lib.make(data=2, fsdp=4)
  with mesh_lib.activate(mesh):
    config = dataclasses.replace(CONFIG, attention=name)
    model = network.Functional(lambda rngs: vit.ViT(config, rngs=rngs), mesh)
    params = jax.tree.map(
        lambda x, spec: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=jax.NamedSharding(mesh, spec)),
        model.shapes, model.specs)
    images = jax.ShapeDtypeStruct(
        (8, 16, 16, 3), jnp.float32,
        sharding=jax.NamedSharding(mesh, mesh_lib.ROWS))
    loss = lambda params, images: jnp.sum(model.apply(
        params, images, lambda net, x: (
            net({'global': x})['global']['cls'].astype(jnp.float32))))
    text = jax.jit(jax.grad(loss)).trace(params, images).lower(
        lowering_platforms=('cuda',)).as_text()
  assert call in text
