"""Many heads at once: equal to each alone, on any mesh, after any stop."""

import functools
import os
import signal

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.engine import loop
from dinojax.engine import report
from dinojax.evals import linear
from dinojax.features import backbone
from dinojax.models import vit
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import processes
from dinojax.probes import fit as fit_lib
from dinojax.probes import task as task_lib
from dinojax.probes.tasks import classify
from tests import close
from tests.interop import cases

CONFIG = vit.ViTConfig(32, 2, 2, 8, image_px=16, num_registers=2)
TASK = classify.Classify(3, (1, 2), (False, True))
RATES, ROWS, STEPS = (0.01, 0.1, 1.0), 16, 6


@functools.cache
def weights():
  return cases.weights(CONFIG)


@functools.cache
def model(data=1, fsdp=1):
  mesh = mesh_lib.make(data, fsdp, jax.devices()[:data * fsdp])
  return backbone.Backbone.of(weights(), mesh)


def fit(model, *, rates=RATES, task=TASK, **options):
  rows = functools.partial(fit_lib.rows, model.mesh)
  return fit_lib.Fit(
      task, model, {
          'image': rows(jnp.uint8, ROWS, 16, 16, 3),
          'target': rows(jnp.int32, ROWS), 'weight': rows(jnp.float32, ROWS),
          'bad': rows(jnp.bool_, ROWS)},
      sweep=fit_lib.Sweep(rates), rule=linear.optimizer('sgd'),
      schedule=linear.schedule('cosine_annealing', STEPS), **options)


def batches(step):
  while True:
    rng = np.random.default_rng(step)
    target = rng.integers(0, 3, ROWS)
    image = rng.integers(0, 100, (ROWS, 16, 16, 3), np.uint8)
    image[np.arange(ROWS), :, :, target] += 150
    yield {'image': image, 'target': target.astype(np.int32),
           'weight': np.ones(ROWS, np.float32), 'bad': np.zeros(ROWS, bool)}
    step += 1


def trained(trainable, workdir, feed=batches):
  mesh = trainable.model.mesh
  with mesh_lib.activate(mesh):
    return loop.run(loop.Job(
        trainable=trainable, mesh=mesh, workdir=epath.Path(workdir), seed=3,
        total_steps=STEPS, checkpoint_steps=2, batches=feed, keep=9,
        log=report.Options(batch_size=ROWS, every_steps=1), info={}))


def heads_of(result):
  return jax.device_get({name: head['params'] for name, head in
                         result.state['heads'].items()})


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  return trained(fit(model()), tmp_path_factory.mktemp('whole'))


def test_they_learn(whole):
  for head in whole.state['heads'].values():
    assert not np.asarray(head['counters']['skipped']).any()
  assert whole.finished and set(whole.state['heads']) == {
      'n1', 'n1_avgpool', 'n2', 'n2_avgpool'}


def test_each_is_as_it_is_alone(whole, tmp_path):
  """Of a head's own start: keys are those of a sweep of as many heads."""
  trainable = fit(model())
  with mesh_lib.activate(model().mesh):
    state = trainable.create(jax.random.key(3))
    alone = fit(model(), rates=(RATES[1],))
    single = jax.jit(alone.create)(jax.random.key(3))
    for name, head in single['heads'].items():
      head['params'] = jax.tree.map(
          lambda x: x[1:2], state['heads'][name]['params'])
    single = alone.enter(single, 'heads')
    step = jax.jit(functools.partial(alone.step, variant='heads'))
    feed = batches(0)
    for i in range(STEPS):
      batch = alone.prepare(processes.to_devices(
          next(feed), model().mesh), i, variant='heads')
      single, _ = step(single, batch)
  want = heads_of(whole)
  for name, head in single['heads'].items():
    for key, value in head['params'].items():
      # One product for all heads sums in another order.
      close.close(value[0], want[name][key][1], of_largest=1e-5)


@pytest.mark.parametrize('sizes', [
    pytest.param((8, 1), marks=pytest.mark.slow), (2, 4)])  # a second mesh
def test_the_mesh_changes_nothing(whole, sizes, tmp_path):
  got, want = heads_of(trained(fit(model(*sizes)), tmp_path)), heads_of(whole)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(
      a, b, rtol=2e-5, atol=2e-6), got, want)


def test_factors_of_parameters_follow_the_step():
  """What has a factor of 0 stays until it has another."""
  def factors(params, step):
    return {name: jnp.where(step > 0, 1.0, 0.0) if name == 'weight' else 1.0
            for name in params}

  trainable = fit(model(), factors=factors)
  feed = batches(0)
  with mesh_lib.activate(model().mesh):
    state = trainable.enter(trainable.create(jax.random.key(3)), 'heads')
    step = jax.jit(functools.partial(trainable.step, variant='heads'))
    for i in range(2):
      batch = trainable.prepare(processes.to_devices(
          next(feed), model().mesh), i, variant='heads')
      before = state['heads']
      state, _ = step(state, batch)
      for name, head in state['heads'].items():
        for key, value in head['params'].items():
          moved = bool((value != before[name]['params'][key]).any())
          assert moved == (i > 0 or key != 'weight'), (name, key, i)


@pytest.mark.slow  # it adds heads that are trained one after another
def test_a_few_at_a_time_are_the_same(whole, tmp_path):
  got = heads_of(trained(fit(model(), heads_at_once=2), tmp_path))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(
      a, b, rtol=1e-5, atol=1e-6), got, heads_of(whole))


def test_a_head_that_diverges_stops_no_other(whole, tmp_path, capsys):
  result = trained(fit(model(), rates=(*RATES[:2], 3e38)), tmp_path)
  for name, head in result.state['heads'].items():
    counters = jax.device_get(head['counters'])
    assert list(counters['in_row'] > 0) == [False, False, True], name
    assert np.isfinite(head['params']['weight']).all()
  text = capsys.readouterr().err
  assert text.count('4 of 12 heads have no finite loss') == 1


def test_stopped_it_ends_in_the_same_bits(whole, tmp_path):
  def feed(step):
    for batch in batches(step):
      if step == 2:
        os.kill(os.getpid(), signal.SIGTERM)
      step += 1
      yield batch

  assert not trained(fit(model()), tmp_path, feed).finished
  result = trained(fit(model()), tmp_path)
  jax.tree.map(np.testing.assert_array_equal, heads_of(result),
               heads_of(whole))
  names = {path.name for path in (tmp_path / 'checkpoints/6').iterdir()}
  assert not any('frozen' in name for name in names)


def test_features_that_were_stored_teach_the_same(whole, tmp_path):
  """One pass of the backbone at the start, instead of one a step."""
  the_model, depth = model(), CONFIG.depth
  feed, kept = batches(0), []
  for _ in range(STEPS):
    batch = next(feed)
    computed = the_model.run(batch.pop('image'), TASK.choices, pixels=True)
    arrays = task_lib.stored_features(
        TASK.choices, computed, depth, of_last=('mean',))
    assert len(arrays) == 3  # CLS of two layers and a mean, of four choices
    kept.append(batch | {'features': jax.device_get(arrays)})
  rows = functools.partial(fit_lib.rows, the_model.mesh)
  cached = fit(the_model)
  cached._batch = {name: value for name, value in cached._batch.items()
                   if name != 'image'} | {'features': {
                       name: rows(jnp.float32, *value.shape)
                       for name, value in kept[0]['features'].items()}}
  result = trained(cached, tmp_path, lambda step: iter(kept[step:]))
  assert 'frozen' not in result.state
  jax.tree.map(lambda a, b: np.testing.assert_allclose(
      a, b, rtol=1e-4, atol=1e-6), heads_of(result), heads_of(whole))
