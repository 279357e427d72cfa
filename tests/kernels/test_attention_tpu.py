"""The TPU kernel against the oracle, interpreted; and that TPUs get it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.kernels import attention
from dinojax.kernels import attention_tpu
from dinojax.models import network
from dinojax.models import positions
from dinojax.models import vit
from dinojax.parallel import mesh as mesh_lib
from tests import close
from tests import compiled

rope_of = compiled.function(positions.rope)


def oracle(qkv, num_heads, rope=None, segments=None):
  q, k, v = attention.heads(qkv, num_heads, rope)
  scores = jnp.einsum('bnhd,bmhd->bhnm', q, k) * q.shape[-1] ** -0.5
  if segments is not None:
    same = segments[:, :, None] == segments[:, None, :]
    scores = jnp.where(same[:, None], scores, -jnp.inf)
  out = jnp.einsum('bhnm,bmhd->bnhd', jax.nn.softmax(scores), v)
  return out.reshape(*qkv.shape[:2], -1)


def check(batch, length, head_dim, *, scale=1.0, of_largest=2e-6, rope=None,
          segments=None):
  num_heads = 2 * 128 // head_dim  # two programs an image
  rng = np.random.default_rng(length)
  width = num_heads * head_dim
  normal = lambda width: rng.normal(size=(batch, length, width))
  qkv = np.float32(scale * normal(3 * width))
  cotangent = np.float32(normal(width))

  def both(f):
    out, back = jax.vjp(f, qkv)
    return out, back(cotangent)[0]

  got, want = jax.jit(lambda: (
      both(functools.partial(
          attention_tpu.attend, num_heads=num_heads, rope=rope,
          segments=segments, interpret=True)),
      both(lambda qkv: oracle(qkv, num_heads, rope, segments))))()
  close.close(got, want, of_largest=of_largest)


@pytest.mark.parametrize('batch, length, head_dim', [
    (3, 17, 64), (2, 33, 128),
    pytest.param(1, 257, 64, marks=pytest.mark.slow, id='vit-b16-at-256')])
def test_odd_lengths_and_both_head_widths(batch, length, head_dim):
  check(batch, length, head_dim)


@pytest.mark.parametrize('rest', [
    5, pytest.param(0, marks=pytest.mark.slow, id='no-rest')])
def test_long_sequences_go_chunk_by_chunk(rest, monkeypatch):
  # Chunks of 16 rows in a loop: three or six of them, with or without a rest.
  monkeypatch.setattr(attention_tpu, '_SCORES', 16 * 100)
  check(1, 48 + rest, 64)


@pytest.mark.slow
@pytest.mark.parametrize('rest', [0, 5])
def test_six_chunks_are_three_twice(rest, monkeypatch):
  monkeypatch.setattr(attention_tpu, '_SCORES', 16 * 100)
  check(1, 96 + rest, 64)


OTHER_WIDTH = [pytest.param(
    *values, marks=pytest.mark.slow, id=f'others-{values[0]}-{values[1]}')
               for values in ((64, True), (64, False), (128, False))]


@pytest.mark.parametrize(
    'head_dim, outside', [(128, True), *OTHER_WIDTH])
def test_sequences_too_long_to_be_held(head_dim, outside, monkeypatch):
  # Chunks of 16 rows with a rest; keys in a whole part and a rest.
  monkeypatch.setattr(attention_tpu, '_SCORES', 16 * 150)
  monkeypatch.setattr(attention_tpu, '_SINGLE_BUFFERED', 100)
  monkeypatch.setattr(attention_tpu, '_KEYS', 128)
  if outside:
    monkeypatch.setattr(attention_tpu, '_ROTATED_INSIDE', 100)
  rope = rope_of((12, 12), positions.rope_periods(head_dim))
  check(1, 12 * 12 + 5, head_dim, rope=rope)


def test_large_scores_do_not_overflow():
  # Scores reach hundreds: a float32 of that size is rounded to 3e-5, which
  # the softmax turns into a factor.
  check(2, 20, 64, scale=6.0, of_largest=1e-4)


@pytest.mark.parametrize('groups, head_dim', [
    (2, 128), *(pytest.param(*values, marks=pytest.mark.slow, id=f'{values}')
                for values in ((1, 64), (2, 64), (1, 128)))])
def test_rope_turns_patches_and_leaves_the_first_tokens(groups, head_dim):
  rope = rope_of((4, 5), positions.rope_periods(head_dim))
  if groups > 1:
    rope = tuple(np.stack([x, x[::-1]]) for x in rope)
  check(2 * groups, 25, head_dim, rope=rope)


def test_segments_attend_to_themselves():
  segments = (np.arange(50) // 20)[None].repeat(2, axis=0)
  check(2, 50, 64, segments=segments)


def test_bfloat16_rope_rounds_as_the_plain_form():
  rope = rope_of(
      (4, 4), positions.rope_periods(64, dtype='bfloat16'),
      dtype=jnp.bfloat16)
  # The gradient's rotation is not rounded here and is in the plain form.
  check(2, 20, 64, rope=rope, of_largest=5e-3)


CONFIG = vit.ViTConfig(
    128, 2, 2, 4, position='rope', num_registers=2, ffn_hidden=128,
    layerscale=1.0, rope_rescale=2.0)


@pytest.mark.slow
def test_it_runs_under_shard_map_and_gives_the_same_gradients(monkeypatch):
  monkeypatch.setattr(attention_tpu, 'attend', functools.partial(
      attention_tpu.attend, interpret=True))
  images = np.random.default_rng(0).normal(size=(8, 16, 16, 3))
  results = {}
  for name in ('tpu', 'xla'):
    mesh = mesh_lib.make(data=1, fsdp=2, devices=jax.devices()[:2])
    # The interpreter's effects do not go through recomputation.
    config = dataclasses.replace(CONFIG, attention=name, remat='none')
    with mesh_lib.activate(mesh):
      model = network.Functional(
          lambda rngs, c=config: vit.ViT(c, rngs=rngs), mesh)
      rows = jax.device_put(
          np.float32(images), jax.NamedSharding(mesh, mesh_lib.ROWS))
      params = jax.jit(model.init, out_shardings=jax.tree.map(
          lambda s, m=mesh: jax.NamedSharding(m, s), model.specs,
          is_leaf=lambda s: isinstance(s, jax.P)))(jax.random.key(1))

      def loss(params, rows=rows, model=model):
        out = model.apply(params, rows, lambda net, x: net(
            {'global': x})['global']['cls'])
        return jnp.sum(jnp.sin(out)), out

      results[name] = jax.jit(jax.grad(loss, has_aux=True))(params)
  close.close(results['tpu'], results['xla'], of_largest=1e-5)


def test_a_recomputed_block_lowers_for_tpu():
  mesh = mesh_lib.make(devices=jax.devices()[:1])
  with mesh_lib.activate(mesh):
    config = dataclasses.replace(CONFIG, attention='tpu', dtype='bfloat16')
    model = network.Functional(lambda rngs: vit.ViT(config, rngs=rngs), mesh)
    params = jax.tree.map(lambda x: jnp.zeros(x.shape), model.shapes)
    images = jax.device_put(
        jnp.zeros((2, 16, 16, 3)), jax.NamedSharding(mesh, mesh_lib.ROWS))
    loss = lambda params: jnp.sum(model.apply(params, images, lambda net, x: (
        net({'global': x})['global']['cls'].astype(jnp.float32))))
    text = jax.jit(jax.grad(loss)).trace(params).lower(
        lowering_platforms=('tpu',)).as_text()
  assert 'vit_attention_backward' in text


def test_sequences_that_do_not_fit_go_to_xla(monkeypatch):
  monkeypatch.setattr(attention_tpu, 'MAX_TOKENS', 20)
  lowered = lambda tokens: jax.jit(functools.partial(
      attention.attend, num_heads=2, implementation='tpu')).trace(
          jnp.zeros((1, tokens, 384), jnp.bfloat16)).lower(
              lowering_platforms=('tpu',)).as_text()
  assert 'tpu_custom_call' in lowered(20)
  assert 'tpu_custom_call' not in lowered(21)


def test_the_tpu_program_holds_the_kernel():
  qkv = jnp.zeros((4, 257, 3 * 384), jnp.bfloat16)
  name = attention.choose('tpu', 384, 6)
  f = functools.partial(attention.attend, num_heads=6, implementation=name)
  step = jax.jit(lambda x: jax.vjp(f, x)[1](f(x))[0])
  text = step.trace(qkv).lower(lowering_platforms=('tpu',)).as_text()
  assert text.count('tpu_custom_call') >= 2
  assert 'vit_attention_backward' in text
