"""A run that starts from given weights: what fits, what is said, what waits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.core import errors
from dinojax.core import tree
from dinojax.evals import learned
from dinojax.interop import adapt
from dinojax.interop import reading
from dinojax.interop import store
from dinojax.kernels import resample
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import processes
from dinojax.runs import initial_weights
from dinojax.train import method as method_lib
from dinojax.train import settings as settings_lib
from dinojax.train import state as state_lib
from tests.train import tiny

LEARNED = dict(model__position='learned', model__rope_rescale=None,
               model__rope_shift=None, model__depth=2,
               crops__num_local=0)  # less to compile


def settings_of(**changes):
  config = tiny.config(**(LEARNED | {
      k: v for k, v in changes.items() if not k.startswith('init__')}))
  config['init'] = {k.removeprefix('init__'): v for k, v in changes.items()
                    if k.startswith('init__')}
  return settings_lib.read(config)


def on_mesh(settings, work, shape=(1, 1)):
  mesh = mesh_lib.make(*shape, devices=jax.devices()[:shape[0] * shape[1]])
  with mesh_lib.activate(mesh):
    return work(method_lib.build(settings, mesh, epoch_steps=100), mesh)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A backbone with its DINO head in our own format."""
  def make(method, mesh):
    params = jax.device_get(method.student.init(jax.random.key(7)))
    settings = method.settings
    return reading.Weights(
        settings.model.inference(), params['backbone'], {}, 'dinojax',
        {'dino_head': reading.Head(
            settings.dino.head, params['dino_head'])})

  weights = on_mesh(settings_of(), make)
  path = tmp_path_factory.mktemp('given') / 'weights'
  store.save(str(path), weights)
  return str(path), weights


def begun(method, mesh):
  state = state_lib.create(method, mesh, 0)
  fresh = jax.device_get(state)
  state = initial_weights.InitialWeights(method, mesh).begin(state)
  return tuple(map(tiny.alone, (jax.device_get(state), fresh)))


def equal(a, b):
  return all(np.array_equal(x, y) for x, y in zip(
      jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize('shape', [
    (1, 2), pytest.param((1, 1), marks=pytest.mark.slow, id='one-device')])
def test_student_and_teacher_start_from_the_weights(saved, shape, capsys):
  path, weights = saved
  state, fresh = on_mesh(settings_of(init__source=path), begun, shape)
  for part in ('student', 'ema'):
    assert equal(state[part]['backbone'], weights.params)
    assert equal(state[part]['dino_head'], weights.heads['dino_head'].params)
    assert equal(state[part]['ibot_head'], fresh[part]['ibot_head'])
  assert 'ibot_head: random, the source has none' in capsys.readouterr().out


@pytest.mark.slow
def test_heads_may_be_left_out_or_not_fit(saved, capsys):
  path, _ = saved
  for changes, why in (
      (dict(init__heads=False), 'init.heads=False'),
      (dict(dino__num_prototypes=256), 'that of the source has other sizes')):
    state, fresh = on_mesh(settings_of(init__source=path, **changes), begun)
    assert equal(state['student']['dino_head'], fresh['student']['dino_head'])
    assert f'dino_head: random, {why}' in capsys.readouterr().out


def test_other_patches_and_grids_are_resampled(saved, capsys):
  path, weights = saved
  state, _ = on_mesh(settings_of(
      init__source=path, model__patch_px=8, model__image_px=48,
      crops__global_px=48, crops__local_px=16), begun)
  got = state['student']['backbone']
  assert got['patch_embed']['kernel'].shape == (8, 8, 3, 64)
  assert got['pos_embed'].shape == (1 + 6 * 6, 64)
  assert equal(got['blocks'], weights.params['blocks'])
  output = capsys.readouterr().out
  assert 'patches of 4 resampled to 8' in output and '4 × 4' in output


def test_a_larger_patch_sees_what_the_smaller_one_saw():
  rng = np.random.default_rng(0)
  kernel = rng.normal(size=(4, 4, 3, 5)).astype(np.float32)
  image = rng.normal(size=(4, 4, 3)).astype(np.float32)
  larger = resample.resize(jnp.asarray(image), (7, 7))
  np.testing.assert_allclose(
      np.einsum('yxc,yxcd->d', larger, adapt.patches(kernel, 7)),
      np.einsum('yxc,yxcd->d', image, kernel), rtol=1e-4, atol=1e-4)


def test_another_architecture_is_refused_with_both_values(saved):
  path, _ = saved
  with pytest.raises(errors.UserError, match='num_registers=0, the source has '
                     '2.*depth=3|depth=3.*num_registers=0, the source has 2'):
    on_mesh(settings_of(init__source=path, model__depth=3,
                        model__num_registers=0),
            lambda *made: initial_weights.InitialWeights(*made).check(None))


def test_the_backbone_waits_and_then_trains(saved):
  settings = settings_of(
      init__source=saved[0], init__freeze_backbone_steps=2,
      ibot__loss_weight=0.0, koleo__loss_weight=0.0)  # less to compile

  def work(method, mesh):
    _, state, step = tiny.program(settings, mesh)
    state = initial_weights.InitialWeights(method, mesh).begin(state)
    seen = [jax.device_get(tiny.alone(state)['student'])]
    for i in range(3):
      rows = processes.to_devices(tiny.batch(settings, i), mesh)
      state, metrics = step(state, rows)
      seen.append(jax.device_get(tiny.alone(state)['student']))
    return seen

  seen = on_mesh(settings, work)
  assert equal(seen[0]['backbone'], seen[2]['backbone'])
  assert not equal(seen[0]['dino_head'], seen[1]['dino_head'])
  moved = [np.abs(a - b).max() for a, b in zip(
      *(jax.tree.leaves(s['backbone']) for s in seen[2:]), strict=True)]
  assert 0 < max(moved) <= 3 * tiny.LR


def test_a_fall_of_knn_ends_the_run():
  numbers = lambda trained, start: {
      'knn/trained': trained, 'knn/start': start}
  learned.guard(10, numbers(60.0, 64.0), 5.0)
  learned.guard(10, {'knn/trained': 0.0}, 5.0)
  learned.guard(10, numbers(0.0, 64.0), None)
  with pytest.raises(errors.UserError, match='from 64.00 to 58.90 at step 10'):
    learned.guard(10, numbers(58.9, 64.0), 5.0)


def test_guards_without_given_weights_are_refused():
  with pytest.raises(errors.UserError, match='init.source is not set'):
    settings_of(init__freeze_backbone_steps=5)
  with pytest.raises(errors.UserError, match='knn.every_steps'):
    settings_of(init__source='x', init__max_knn_drop=5.0)


def test_nothing_there_is_a_sentence(tmp_path):
  with pytest.raises(errors.UserError, match='init.source=.*nothing-here'):
    on_mesh(settings_of(init__source=str(tmp_path / 'nothing-here')), begun)


def test_every_leaf_of_a_state_keeps_its_place(saved):
  def work(method, mesh):
    state = state_lib.create(method, mesh, 0)
    new = initial_weights.InitialWeights(method, mesh).begin(state)
    return [(name, a.sharding == b.sharding) for (name, a), b in zip(
        tree.items(tiny.alone(state)['student']),
        jax.tree.leaves(tiny.alone(new)['student']), strict=True)]

  assert all(same for _, same in on_mesh(
      settings_of(init__source=saved[0]), work, (1, 2)))
