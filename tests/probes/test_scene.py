"""Frames seen together: what changes nothing, and a scene learned by heart."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.engine import optimizer
from dinojax.engine import schedules
from dinojax.losses import scene as losses
from dinojax.metrics import cameras
from dinojax.models.geometry import scene
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import processes
from dinojax.probes import fit as fit_lib
from dinojax.probes.tasks import scene as task_lib
from tests import close
from tests import scenes
from tests.probes import test_fit

WIDTH = test_fit.CONFIG.embed_dim
SMALL = scene.Config(
    WIDTH, width=32, num_heads=2, num_pairs=2, num_registers=1,
    read=(0, 0, 1, 1), num_rounds=2, num_camera_blocks=1, channels=16,
    projected=(8, 8, 16, 16))
GRID, SIZE = (4, 4), (32, 32)


def maps(seed=0, batch=1, frames=3):
  return np.float32(np.random.default_rng(seed).normal(
      size=(batch, frames, *GRID, WIDTH)))


@functools.cache
def params():
  """Weights whose tokens and scales are large enough to be seen."""
  made = jax.device_get(scene.init(jax.random.key(0), SMALL))
  rng = np.random.default_rng(1)
  noisy = lambda x: np.float32(x + 0.1 * rng.normal(size=x.shape))
  # Depths are exponents: a few pixels would be most of a gradient, and a ReLU
  # that rounding turns at one of them a percent of it.
  for name in ('depth', 'points'):
    made[name]['head']['conv2']['kernel'] = (
        0.1 * made[name]['head']['conv2']['kernel'])
  return {name: part if name in ('depth', 'points') else jax.tree.map(
      noisy, part) for name, part in made.items()}


@functools.cache
def run():
  ours = params()
  return jax.jit(lambda maps: scene.apply(ours, SMALL, maps, SIZE))


def test_predictions_have_their_shapes_and_ranges():
  got = run()(maps())
  assert got.cameras.shape == (2, 1, 3, 9)
  assert got.depth.shape == got.depth_confidence.shape == (1, 3, *SIZE)
  assert got.points.shape == (1, 3, *SIZE, 3)
  assert (np.asarray(got.depth) > 0).all()
  for name in ('depth_confidence', 'point_confidence'):
    assert (np.asarray(getattr(got, name)) >= 1).all()
  assert (np.asarray(got.cameras[..., 7:]) >= 0).all()


def test_other_frames_may_stand_in_any_order():
  order = [0, 2, 1]
  want, got = run()(maps()), run()(maps()[:, order])
  np.testing.assert_allclose(
      got.cameras, want.cameras[:, :, order], atol=1e-5)
  np.testing.assert_allclose(
      got.points, want.points[:, order], rtol=2e-5, atol=1e-4)
  # The first one is another matter: it is the world.
  other = run()(maps()[:, [1, 0, 2]])
  assert np.abs(other.cameras[:, :, 0] - want.cameras[:, :, 1]).max() > 1e-3


def test_scenes_of_a_batch_do_not_see_each_other():
  alone, both = run()(maps()), run()(np.concatenate([maps(), maps(5)]))
  np.testing.assert_allclose(both.cameras[:, :1], alone.cameras, atol=1e-5)
  np.testing.assert_allclose(both.depth[:1], alone.depth, rtol=1e-4)


def test_heads_turn_by_row_and_column():
  sin, cos = scene.rotations((3, 2), 2, 8)
  assert sin.shape == cos.shape == (8, 8)
  assert not np.asarray(sin[:2]).any() and (np.asarray(cos[:2]) == 1).all()
  # Row 2, column 1 counted from 1; the fastest speed is one radian.
  np.testing.assert_allclose(sin[2 + 2], np.sin(
      [2, 0.2, 2, 0.2, 1, 0.1, 1, 0.1]), rtol=1e-5)
  x = np.float32(np.random.default_rng(0).normal(size=(8, 1, 8)))
  turned = scene._turned(x, (sin, cos))
  np.testing.assert_allclose(
      np.linalg.norm(turned, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5)
  product = lambda a, b: float(jnp.sum(a * b))
  # Products hang on how far apart two places are: (1, 1)·(2, 1), (2, 1)·(3, 1).
  same = [scene._turned(jnp.broadcast_to(x[i], x.shape), (sin, cos))
          for i in (2, 5)]
  assert product(same[0][2], same[1][4]) == pytest.approx(
      product(same[0][4], same[1][6]), rel=1e-4)


def test_places_reach_from_edge_to_edge_of_the_diagonal():
  got = np.asarray(scene.waves((2, 4), (30, 40), 8))
  assert got.shape == (2, 4, 8)
  # Columns lie at ±.75 · 40/50 and so on; the first value is their sine.
  np.testing.assert_allclose(got[0, :, 0], np.sin(
      [-0.6, -0.2, 0.2, 0.6]), rtol=1e-5)
  np.testing.assert_allclose(got[:, 0, 4], np.sin([-0.3, 0.3]), rtol=1e-5)


def batch_of(rows, count=1):
  out = {name: np.repeat(np.asarray(value)[None], count, 0)
         for name, value in rows.items()}
  return out | {'weight': np.ones(count, np.float32),
                'bad': np.zeros(count, bool)}


def fitted(rows, task, model, steps, rate):
  """Cameras and losses before and after a training on one scene."""
  batch = batch_of(rows)
  specs = {name: fit_lib.rows(model.mesh, jnp.dtype(x.dtype), *x.shape)
           for name, x in batch.items()}
  fit = fit_lib.Fit(
      task, model, specs, sweep=fit_lib.Sweep((rate,), (0.0,)),
      rule=optimizer.adamw(beta2=0.99), clip_norm=1.0,
      schedule=lambda step: {'lr': schedules.RiseFall(
          steps, steps // 20, power=None)(step)})
  with mesh_lib.activate(model.mesh):
    on_mesh = processes.to_devices(batch, model.mesh)
    state = fit.enter(fit.create(jax.random.key(0)), 'heads')
    prepared = fit.prepare(on_mesh, np.int32(0), variant='heads')
    features = jax.jit(fit.features)(state, prepared)

    @jax.jit
    def measured(heads):
      head = jax.tree.map(lambda x: x[0], heads[task_lib.CHOICE])
      outputs, _ = task.outputs(
          {'params': head['params'], 'stats': {}},
          features[task_lib.CHOICE], prepared, None)
      return task.losses(outputs, prepared), outputs.cameras[-1, 0]

    @jax.jit
    def step(state):
      heads, _, _ = fit.learn(state, features, prepared)
      return state | {'heads': heads, 'step': state['step'] + 1}

    before = jax.device_get(measured(state['heads']))
    for _ in range(steps):
      state = step(state)
    after = jax.device_get(measured(state['heads']))
  return before, after, jax.device_get(prepared['truth'])


def errors(camera, truth):
  turn = np.asarray(losses.rotations(jnp.asarray(camera[:, 3:7])))
  wanted = np.asarray(losses.rotations(jnp.asarray(truth[:, 3:7])))
  return cameras.angles(turn, camera[:, :3], wanted, truth[:, :3])


@pytest.mark.slow  # a training of minutes
@pytest.mark.parametrize('kind, steps', [('drawn', 600), ('room', 300)])
def test_six_frames_are_learned_by_heart(kind, steps):
  """Poses within two degrees, and a tenth of the depth loss.

  The room is a set beside the project; without it the drawn wall stands.
  """
  size = 32, 48
  rows = scenes.room(size=size) if (
      kind == 'room' and scenes.ROOM.exists()) else scenes.drawn(
          np.random.default_rng(0), size=size, focal=45.0)
  task = task_lib.Scene(network=SMALL)
  before, after, truth = fitted(
      rows, task, test_fit.model(), steps, 3e-3)
  rotation, direction = errors(after[1], truth.cameras[0])
  assert rotation.max() < 2, rotation
  # Frames that hardly move have no direction to speak of.
  assert np.median(direction) < 2, direction
  start, end = before[0]['depth'], after[0]['depth']
  assert end < start / 10, (start, end)


def gradients(mesh, changes=(0.0,)):
  """Losses and gradients, of features that are changed by these shares."""
  task = task_lib.Scene(network=SMALL)
  scenes_ = [scenes.drawn(np.random.default_rng(i), 3, SIZE) for i in range(4)]
  rows = {name: np.stack([each[name] for each in scenes_])
          for name in scenes_[0]}
  batch = rows | {'weight': np.float32([1, 1, 1, 0])}
  features = maps(2, 4)
  noise = np.random.default_rng(1).normal(size=features.shape)

  def total(params, features, batch):
    batch = task.prepare(batch, None)
    outputs, _ = task.outputs({'params': params, 'stats': {}}, [
        {'map': features}], batch, None)
    return task.loss(outputs, batch, None), task.losses(outputs, batch)

  with mesh_lib.activate(mesh):
    program = jax.jit(jax.value_and_grad(total, has_aux=True))
    place = lambda x: jax.device_put(x, jax.NamedSharding(mesh, mesh_lib.ROWS))
    whole = jax.device_put(params(), jax.NamedSharding(mesh, jax.P()))
    batch = place(batch)
    return [jax.device_get(program(whole, place(np.float32(
        features * (1 + change * noise))), batch)) for change in changes]


@pytest.mark.slow  # two programs of half a minute
def test_a_mesh_changes_nothing():
  """But what rounding does.

  Rounding turns a ReLU, or the sign of an error, at a pixel or two: which, the
  processor says. So what a change of the features by 1e-7 does to a gradient
  is taken off, twice.
  """
  (got, grads), = gradients(mesh_lib.make(2, 2, jax.devices()[:4]))
  (want, expected), *near = gradients(
      mesh_lib.make(devices=jax.devices()[:1]), (0.0, 1e-7, -1e-7, 3e-7))
  close.close(got, want, of_largest=1e-5)
  size = lambda x: np.abs(x).max(initial=0)
  for (path, a), b, *others in zip(
      jax.tree.leaves_with_path(grads), jax.tree.leaves(expected),
      *(jax.tree.leaves(each) for _, each in near), strict=True):
    noise = max(size(each - b) for each in others)
    # Measured up to 0.018: more would hide a fault.
    assert noise < 0.05 * size(b) or not size(b), path
    assert size(a - b) <= 1e-5 * size(b) + 2 * noise, path
