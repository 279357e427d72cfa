"""Queries in copies of a backbone's last blocks: how they learn."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.engine import optimizer
from dinojax.engine import schedules
from dinojax.features import backbone
from dinojax.models import vit
from dinojax.models.dense import eomt
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import processes
from dinojax.probes import fit as fit_lib
from dinojax.probes.tasks import eomt as task_lib
from tests import close
from tests.interop import cases

CONFIG = vit.ViTConfig(
    32, 3, 2, 8, position='rope', num_registers=1, mask_k_bias=True,
    ffn_hidden=64)
DECODER = eomt.Config(CONFIG, 3, num_queries=4, num_blocks=2)
STEPS, ROWS, WAIT = 4, 8, 2
TASK = task_lib.Eomt(decoder=DECODER, num_points=16, most_targets=3,
                     anneal=((0, 4), (1, 4)))
FACTORS = task_lib.Factors(
    DECODER, schedules.RiseFall(2 * STEPS, 1),
    schedules.RiseFall(2 * STEPS, 1, WAIT))


@functools.cache
def weights():
  return cases.weights(CONFIG)


@functools.cache
def fit(data=1, fsdp=1, count=1):
  mesh = mesh_lib.make(data, fsdp, jax.devices()[:data * fsdp])
  rows = functools.partial(fit_lib.rows, mesh)
  return fit_lib.Fit(
      TASK, backbone.Backbone.of(weights(), mesh), {
          'image': rows(jnp.uint8, ROWS, 24, 16, 3),
          'classes': rows(jnp.uint8, ROWS, 24, 16),
          'weight': rows(jnp.float32, ROWS), 'bad': rows(jnp.bool_, ROWS)},
      sweep=fit_lib.Sweep((1e-2,) * count, 0.05), rule=optimizer.adamw(),
      schedule=lambda step: {}, factors=FACTORS, clip_norm=0.5)


def batches(step):
  while True:
    rng = np.random.default_rng(step)
    classes = rng.integers(0, 3, (ROWS, 3, 2), np.uint8).repeat(
        8, axis=1).repeat(8, axis=2)
    image = np.stack([40 + 80 * (classes == i) for i in range(3)], axis=-1)
    yield {'image': image.astype(np.uint8), 'classes': classes,
           'weight': np.float32([1] * (ROWS - 1) + [0]),
           'bad': np.zeros(ROWS, bool)}
    step += 1


def head_of(state):
  head, = jax.device_get(state['heads']).values()
  return jax.tree.map(lambda x: x[0], head['params'])


@functools.cache
def compiled(trainable):
  return jax.jit(functools.partial(trainable.step, variant='heads'))


def begun(trainable, batch, step=0):
  """The state before a step, and the batch as it enters."""
  mesh = trainable.model.mesh
  with mesh_lib.activate(mesh):
    state = trainable.enter(trainable.create(jax.random.key(0)), 'heads')
    return state | {'step': jnp.int32(step)}, trainable.prepare(
        processes.to_devices(batch, mesh), 0, variant='heads')


def after(trainable, state, batch):
  with mesh_lib.activate(trainable.model.mesh):
    return compiled(trainable)(state, batch)


@pytest.mark.parametrize('sizes', [
    pytest.param((1, 1, 1), marks=pytest.mark.slow), (2, 4, 2)])
def test_it_begins_as_the_end_of_the_backbone(sizes):
  """On any mesh, and every head of a stack."""
  trainable = fit(*sizes)
  with mesh_lib.activate(trainable.model.mesh):
    state = trainable.create(jax.random.key(0))
    saved = trainable.saved({})
  params = jax.device_get(state['heads']['patches']['params'])
  assert params['queries'].shape == (sizes[2], 4, 32)
  want = weights().params
  for i in range(sizes[2]):
    got = jax.tree.map(lambda x, i=i: x[i], params)
    jax.tree.map(np.testing.assert_array_equal, got['blocks'], jax.tree.map(
        lambda x: x[1:], want['blocks']))
    jax.tree.map(np.testing.assert_array_equal, got['norm'], want['norm'])
  alike = lambda a, b: a.shape == b.shape and a.dtype == b.dtype
  assert jax.tree.all(jax.tree.map(alike, state, saved))
  assert 'frozen' not in state


def test_rates_of_copied_blocks_wait_and_fall_from_the_last():
  step, params = jnp.float32, jax.eval_shape(
      lambda: eomt.init(jax.random.key(0), DECODER))
  early, late = FACTORS(params, step(1)), FACTORS(params, step(5))
  assert early['queries'] == 1 and not np.any(
      early['blocks']['attn']['qkv']['kernel'])
  curve = FACTORS.of_blocks(step(5))
  kernel = late['blocks']['mlp']['fc1']['kernel']
  assert kernel.shape == (2, 1, 1)
  np.testing.assert_allclose(np.ravel(kernel), [0.8 * curve, curve], rtol=1e-6)
  np.testing.assert_allclose(late['norm']['scale'], curve, rtol=1e-6)


@pytest.mark.slow  # a program of the losses; test_fit.py has rates of a head
def test_copied_blocks_wait():
  state, batch = begun(fit(), next(batches(0)))
  for i in range(WAIT + 2):  # a rise begins with 0
    before, (state, _) = head_of(state), after(fit(), state, batch)
    moved = jax.tree.map(
        lambda a, b: np.abs(a - b).max(), before, head_of(state))
    assert (moved['blocks']['attn']['proj']['kernel'] > 0) == (i > WAIT), i
    assert (moved['queries'] > 0) == (i > 0), i


@pytest.mark.slow  # two programs; the network is on a mesh in test_eomt.py
@pytest.mark.parametrize('sizes', [(2, 4), (8, 1)])
def test_a_mesh_changes_nothing(sizes):
  """The loss of a step, and gradients by the moments they leave."""
  def learned(trainable):
    state, metrics = after(trainable, *begun(trainable, next(batches(0)), 2))
    head = jax.device_get(state['heads']['patches'])
    return head['opt']['mu'], metrics['loss'], head['params']['queries']

  close.close(learned(fit(*sizes)), learned(fit()), of_largest=1e-5)


@pytest.mark.slow  # a program of the losses; images alone are in test_eomt.py
def test_rows_that_are_padding_teach_nothing():
  """Whatever is in them: the last of eight has no weight."""
  batch = next(batches(0))
  other = {name: value.copy() for name, value in batch.items()}
  other['image'][-1], other['classes'][-1] = 255, 1

  def learned(batch):
    state, metrics = after(fit(), *begun(fit(), batch, WAIT + 2))
    return metrics['loss'], jax.device_get(state['heads'])

  jax.tree.map(np.testing.assert_array_equal, learned(batch), learned(other))


def test_it_runs_with_the_arithmetic_of_its_backbone():
  other = vit.ViTConfig(32, 3, 2, 8, attention='head_major', dtype='bfloat16')
  task = TASK.beside(other)
  assert task.decoder.backbone.attention == 'head_major'
  assert task.decoder.backbone.compute_dtype == jnp.bfloat16
  assert task.decoder.backbone.num_registers == 1
  assert TASK.beside(CONFIG) == TASK


@pytest.mark.parametrize('at_pixels, size', [(False, (6, 4)), (True, (24, 16))])
def test_scores_are_at_a_quarter_or_at_pixels(at_pixels, size):
  task = dataclasses.replace(TASK, at_pixels=at_pixels)
  out = jax.eval_shape(lambda: task.predict([eomt.queries.Predicted(
      jnp.zeros((2, 4, 4)), jnp.zeros((2, 4, 6, 4)))]))
  assert out.shape == (2, *size, 3)
