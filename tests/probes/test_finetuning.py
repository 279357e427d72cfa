"""A head with a part of its backbone: the right part, on any mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dinojax.core import errors
from dinojax.core import tree
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import processes
from dinojax.probes import finetuning
from dinojax.probes.tasks import classify
from tests import close
from tests.probes import test_fit

TASK = classify.Classify(3, (1,), (True,))
CHOICE, = TASK.choices
WHOLE = finetuning.Trained(
    layerwise_decay=0.5, drop_path_rate=0.5, group_images=2)


def fit(model, trainable=WHOLE, **options):
  return test_fit.fit(model, rates=(0.5,), task=TASK, trainable=trainable,
                      **options)


def start(trainable):
  with mesh_lib.activate(trainable.model.mesh):
    state = trainable.create(jax.random.key(3))
    return trainable.enter(state, 'heads')


def one_step(trainable):
  """State before and after a step, on the host."""
  before = start(trainable)
  host = jax.device_get(before)
  with mesh_lib.activate(trainable.model.mesh):
    batch = trainable.prepare(processes.to_devices(
        next(test_fit.batches(0)), trainable.model.mesh), 0, variant='heads')
    after, metrics = jax.jit(functools.partial(
        trainable.step, variant='heads'))(before, batch)
  return host, jax.device_get(after), jax.device_get(batch), metrics


def params_of(state, entry='params'):
  return jax.tree.map(lambda x: x[0], state['heads'][CHOICE][entry])


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  return test_fit.trained(
      fit(test_fit.model(), ema_decay=0.9), tmp_path_factory.mktemp('whole'))


def test_a_step_is_that_of_optax():
  """The gradient of the composition, by rates that grow with the depth."""
  trainable = fit(test_fit.model(), finetuning.Trained(layerwise_decay=0.5))
  before, after, batch, _ = one_step(trainable)
  params = params_of(before)

  def loss(params):
    backbone = params['backbone']
    features = finetuning.features(
        trainable.model, backbone, batch['image'], dict(TASK.choices), {})
    outputs, _ = TASK.outputs({'params': params, 'stats': {}},
                              features[CHOICE], batch, None)
    return TASK.loss(outputs, batch, None)

  with mesh_lib.activate(trainable.model.mesh):
    grads = jax.jit(jax.grad(loss))(params)
  blocks = 0.5 ** (2 - np.arange(2))

  def factor(name, leaf):
    if 'blocks/' in name:
      return blocks.reshape(2, *[1] * (leaf.ndim - 1))
    plain = name.startswith('backbone/norm') or 'backbone' not in name
    return 1.0 if plain else 0.5 ** 3

  want = tree.map_with_name(
      lambda name, p, g: p - 0.5 * factor(name, p) * g, params, grads)
  close.close(params_of(after), want, of_largest=1e-6)
  moved = tree.map_with_name(
      lambda name, a, b: name if (a != b).any() else None,
      params_of(after), params)
  assert len(jax.tree.leaves(moved)) >= len(jax.tree.leaves(params)) - 1, (
      'only the mask token stays')


def test_what_is_not_trained_stays_and_is_not_saved():
  trainable = fit(test_fit.model(), finetuning.Trained(
      r'blocks/.*', first_layer=1))
  before, after, *_ = one_step(trainable)
  old, new = (params_of(state)['backbone'] for state in (before, after))
  assert set(old) == {'blocks'} and 'blocks' not in before['frozen']
  kernel = lambda params: params['blocks']['attn']['qkv']['kernel']
  np.testing.assert_array_equal(kernel(old)[0], kernel(new)[0])
  assert (kernel(old)[1] != kernel(new)[1]).any()
  jax.tree.map(np.testing.assert_array_equal, before['frozen'],
               after['frozen'])


@pytest.mark.slow  # make test has heads alone on a mesh, test_fit.py
@pytest.mark.parametrize('sizes', [(8, 1), (2, 4)])
def test_the_mesh_changes_nothing(whole, sizes, tmp_path):
  got = test_fit.trained(fit(test_fit.model(*sizes), ema_decay=0.9), tmp_path)
  for entry in ('params', 'ema'):
    close.close(params_of(jax.device_get(got.state), entry),
                params_of(jax.device_get(whole.state), entry),
                of_largest=3e-5)


@pytest.mark.slow  # a run of its own
def test_the_average_is_kept_and_evaluated(whole):
  average = params_of(jax.device_get(whole.state), 'ema')
  evaluated = fit(test_fit.model(), ema_decay=0.9).evaluated(whole.state)
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[0]),
               average, jax.device_get(evaluated[CHOICE]['params']))
  trainable = fit(test_fit.model(), ema_decay=0.75)
  before, after, *_ = one_step(trainable)
  want = optax.incremental_update(
      params_of(after), params_of(before), 0.25)
  close.close(params_of(after, 'ema'), want, of_largest=1e-6)


@pytest.mark.slow  # make test stops heads, test_fit.py
def test_stopped_it_ends_in_the_same_bits(whole, tmp_path):
  def feed(step):
    for batch in test_fit.batches(step):
      if step == 3:
        raise KeyboardInterrupt
      step += 1
      yield batch

  with pytest.raises(KeyboardInterrupt):
    test_fit.trained(fit(test_fit.model(), ema_decay=0.9), tmp_path, feed)
  result = test_fit.trained(
      fit(test_fit.model(), ema_decay=0.9), tmp_path)
  jax.tree.map(np.testing.assert_array_equal,
               jax.device_get(result.state['heads']),
               jax.device_get(whole.state['heads']))


def test_rows_skip_blocks_as_often_as_asked():
  config = test_fit.CONFIG
  drawn = finetuning.Trained(drop_path_rate=0.5, group_images=4).draw(
      jax.random.key(0), config, 16)
  assert drawn['attn'].shape == (4, config.depth, 2)
  assert not finetuning.Trained().draw(jax.random.key(0), config, 16)


def test_several_heads_or_features_are_refused():
  with pytest.raises(ValueError, match='with one head'):
    test_fit.fit(test_fit.model(), trainable=WHOLE)
  with pytest.raises(errors.UserError, match='trainable=x matches no param'):
    fit(test_fit.model(), finetuning.Trained('x')).saved({})


def test_divided_trees_are_joined_again():
  whole = {'a': {'b': 1, 'c': {'d': 2}}, 'e': 3}
  some, rest = tree.divide(whole, lambda name: name.endswith('d'))
  assert some == {'a': {'c': {'d': 2}}} and rest == {'a': {'b': 1}, 'e': 3}
  assert tree.join(some, rest) == whole == tree.join(rest, some)


def test_gradients_are_of_float32_weights():
  assert {x.dtype for x in jax.tree.leaves(params_of(start(fit(
      test_fit.model()))))} == {jnp.dtype('float32')}
