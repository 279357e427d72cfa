"""Text alignment: it learns, on any mesh, after any stop."""

import functools
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.engine import optimizer
from dinojax.models.text import tower
from dinojax.models.text import vision_head
from dinojax.parallel import mesh as mesh_lib
from dinojax.probes import fit as fit_lib
from dinojax.probes.tasks import align
from tests import close
from tests.probes import test_fit

ROWS, STEPS, KINDS = test_fit.ROWS, test_fit.STEPS, 8
TASK = align.Align(
    text=tower.Config(32, 2, 2, context=6, vocabulary=16, embed_dim=16,
                      dropout=0.1, remat='none'),
    vision=vision_head.Config(32, 2, depth=1, embed_dim=16, layerscale=1.0,
                              drop_path_rate=0.25, remat='none'),
    depth=2, pixels=align.dense.Pixels(patch_px=8), gram_weight=0.5,
    gram_normalize=True, group_images=2)


def fit(model, task=TASK):
  rows = functools.partial(fit_lib.rows, model.mesh)
  return fit_lib.Fit(
      task, model, {name: rows(jnp.dtype(x.dtype), *x.shape)
                    for name, x in next(batches(0)).items()},
      sweep=fit_lib.Sweep((3e-3,), 1e-2), rule=optimizer.adamw(beta2=0.99),
      schedule=lambda step: {'lr': 1.0 - step / (2 * STEPS)},
      decays=align.weight_decays)


def batches(step):
  """A colour an image, and its name; the last row is padding."""
  while True:
    rng = np.random.default_rng(step)
    kind = np.concatenate([rng.permutation(KINDS) for _ in range(2)])
    image = rng.integers(0, 30, (ROWS, 16, 16, 3)) + 200 * (
        kind[:, None] >> np.arange(3) & 1)[:, None, None]
    tokens = np.zeros((ROWS, 6), np.int32)
    tokens[:, 0], tokens[:, 1], tokens[:, 2] = 14, 1 + kind, 15
    yield {'image': image.astype(np.uint8), 'tokens': tokens,
           'bad': np.zeros(ROWS, bool),
           'weight': np.float32([1] * (ROWS - 1) + [0])}
    step += 1


def trained(model, workdir, feed=batches):
  return test_fit.trained(fit(model), workdir, feed)


def params_of(result):
  return jax.device_get(result.state['heads'][align.CHOICE]['params'])


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  return trained(test_fit.model(), tmp_path_factory.mktemp('whole'))


def test_parameters_are_split_as_those_of_a_backbone(whole):
  assert not np.asarray(whole.state['heads'][align.CHOICE]['counters'][
      'skipped']).any()
  with mesh_lib.activate(mesh_lib.make(2, 4)):
    model = test_fit.model(2, 4)
    state = fit(model).create(jax.random.key(0))
  heads = state['heads'][align.CHOICE]
  kernels = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(heads)
             if jax.tree_util.keystr(path).endswith(
                 "['text']['blocks']['mlp']['fc1']['kernel']")]
  assert len(kernels) == 3  # and two averages of its gradient
  for kernel in kernels:
    assert kernel.sharding.shard_shape(kernel.shape) != kernel.shape
  assert heads['params']['log_scale'].sharding.is_fully_replicated


@pytest.mark.slow  # a program of half a minute; losses/ are on a mesh
def test_the_mesh_changes_nothing(whole, tmp_path):
  close.close(params_of(trained(test_fit.model(2, 4), tmp_path)),
              params_of(whole), of_largest=2e-3)


@pytest.mark.slow  # test_fit.py stops heads in make test
def test_stopped_it_ends_in_the_same_bits(whole, tmp_path):
  def feed(step):
    for batch in batches(step):
      if step == 2:
        os.kill(os.getpid(), signal.SIGTERM)
      step += 1
      yield batch

  assert not trained(test_fit.model(), tmp_path, feed).finished
  jax.tree.map(np.testing.assert_array_equal, params_of(
      trained(test_fit.model(), tmp_path)), params_of(whole))


def test_padding_is_nobodys_opposite(whole):
  model = test_fit.model()
  params = jax.tree.map(lambda x: x[0], params_of(whole))

  @jax.jit
  def loss(params, backbone, batch):
    features = model.net.apply(
        backbone, jnp.float32(batch['image']) / 255, functools.partial(
            align.spec.compute, specs=dict(TASK.choices)))[align.CHOICE]
    outputs, _ = TASK.outputs(
        {'params': params, 'stats': {}}, features, batch, None)
    return TASK.loss(outputs | {'backbone': features[0]['patches']}, batch,
                     None)

  def of(batch):
    rows = jax.NamedSharding(model.mesh, mesh_lib.ROWS)
    split = jax.NamedSharding(model.mesh, jax.P())
    with mesh_lib.activate(model.mesh):
      return float(loss(jax.device_put(params, split), model.params,
                        jax.device_put(batch, rows)))

  batch = next(batches(0))
  other = {name: x.copy() for name, x in batch.items()}
  other['tokens'][-1], other['image'][-1] = other['tokens'][3], 7
  np.testing.assert_allclose(of(other), of(batch), rtol=1e-6)
  other['weight'][-1] = 1
  assert abs(of(other) - of(batch)) > 1e-4
