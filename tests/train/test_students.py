"""Students of a frozen teacher: of other sizes and families, and several."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from dinojax.core import errors
from dinojax.core import tree
from dinojax.models import convnext
from dinojax.models import network
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import processes
from dinojax.parallel import sharding
from dinojax.train import method as method_lib
from dinojax.train import pretraining
from dinojax.train import settings as settings_lib
from dinojax.train import state as state_lib
from dinojax.train import step as step_lib
from tests.train import tiny

QUIET = dict(model__depth=1, model__drop_path_rate=0.0,
             model__rope_rescale=None, model__rope_shift=None,
             crops__num_local=0)  # less to compile
CONV = dict(family='convnext', depths=(1, 1, 1, 1), dims=(8, 8, 16, 16),
            dtype='float32')
SMALL = dict(family='vit', embed_dim=32, depth=2, num_heads=2, patch_px=2,
             position='rope', layerscale=1.0, dtype='float32',
             attention='head_major')


def settings_of(students=None, **changes):
  config = tiny.config(**(QUIET | changes))
  config['distillation'] = dict(source='a run')
  config['students'] = students or {}
  return settings_lib.read(config)


def teacher_of(settings):
  config = method_lib.network_config(settings_lib.read(tiny.config()))
  return dataclasses.replace(config, backbone=dataclasses.replace(
      config.backbone, depth=2))


_RUNS = {}


def run(settings, shape=(1, 1), steps=2):
  """Metrics, the first moments and the last state; each computed once."""
  key = repr((settings, shape, steps))
  if key not in _RUNS:
    _RUNS[key] = run_anew(settings, shape, steps)
  return _RUNS[key]


def run_anew(settings, shape, steps):
  mesh = mesh_lib.make(*shape, devices=jax.devices()[:shape[0] * shape[1]])
  settings_lib.check_devices(settings, mesh.size)
  with mesh_lib.activate(mesh):
    method = method_lib.build(
        settings, mesh, 100, teacher_of(settings))
    state = state_lib.create(method, mesh, 0)
    keep = jax.tree.map(lambda x: x.sharding, state)
    step = jax.jit(functools.partial(step_lib.train_step, method=method),
                   out_shardings=(keep, None))
    start, metrics, moments = state, [], None
    for i in range(steps):
      rows = processes.to_devices(tiny.batch(settings, i), mesh)
      state, out = step(state, rows)
      metrics.append({k: float(v) for k, v in out.items()})
      moments = moments or {name: jax.device_get(student['opt']['mu'])
                            for name, student in state['students'].items()}
    return metrics, moments, jax.device_get((start, state))


def assert_alike(got, want, names=None):
  """Losses and the first gradients agree; of these students."""
  for a, b in zip(got[0], want[0], strict=True):
    for key in a.keys() & b.keys():
      if 'loss/' in key:
        np.testing.assert_allclose(a[key], b[key], rtol=2e-5, err_msg=key)
  for name in names or got[1]:
    for (leaf, a), (_, b) in zip(tree.items(got[1][name]), tree.items(
        want[1][name]), strict=True):
      if leaf.endswith('qkv/bias'):
        continue  # a third of it is zero but for rounding
      np.testing.assert_allclose(
          a, b, rtol=0, atol=1e-5 * np.abs(b).max() + 1e-9, err_msg=leaf)


def alone():
  return run(settings_of({'same': {}}))


def two_students(**changes):
  # Crops are made for 4-pixel tokens; `small` has 2, the teacher 4.
  return settings_of(
      dict(small=dict(model=SMALL, train=dict(share=0.5)), same=dict()),
      **changes)


@pytest.mark.slow  # make test has distillation in the goldens
def test_the_frozen_teacher_stays_and_every_ema_follows():
  _, _, (start, end) = run(two_students())
  jax.tree.map(np.testing.assert_array_equal, start['frozen'],
               end['frozen'])
  for name, ema in state_lib.emas(start).items():
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), ema,
                         state_lib.emas(end)[name])
    assert max(jax.tree.leaves(moved)) > 0, name


@pytest.mark.slow  # make test has a training step on a mesh
def test_two_students_are_mesh_equal():
  settings = two_students(koleo__group_images=8)
  assert_alike(run(settings, (2, 2)), run(settings))


@pytest.mark.slow  # alone it learns what the reference does, see the goldens
def test_a_student_learns_among_others_what_it_learns_alone():
  both, single_run = run(two_students()), alone()
  for a, b in zip(both[0], single_run[0], strict=True):
    np.testing.assert_allclose(
        a['same/loss'], b['same/loss'], rtol=1e-6)
  assert_alike((both[0], {'same': both[1]['same']}, None), single_run)


def test_a_share_is_of_the_groups_of_images():
  """Half of the batch: every second group of two images."""
  mesh = mesh_lib.make(2, 1, devices=jax.devices()[:2])
  with mesh_lib.activate(mesh):
    x = processes.to_devices({'x': np.arange(16)}, mesh)['x']
    half = jax.jit(lambda x: sharding.some_rows(x, 2, 1, 2))(x)
    assert half.tolist() == [0, 1, 4, 5, 8, 9, 12, 13]
  settings = settings_of(dict(half=dict(train=dict(share=0.5))))
  halves = settings_of()
  assert (method_lib.make_schedules(
      settings.students['half'], 1)['lr'](0) == tiny.LR)
  rule = lambda s: method_lib.make_schedules(dataclasses.replace(
      s, schedules=dataclasses.replace(
          s.schedules, lr_rule='linear_256')), 1)['lr'](0)
  assert rule(settings.students['half']) == rule(halves) / 2


@pytest.mark.slow
def test_a_convnext_has_the_tokens_of_its_teacher():
  config = tiny.config(**QUIET)
  config['model'] = CONV
  config['crops'] |= dict(global_px=64, local_px=32, num_local=0)
  config['optimizer'] = {}
  config['distillation'] = dict(source='a run', patches='all')
  config['dino'] |= dict(loss_weight=0.0)  # less to compile
  settings = settings_lib.read(config)
  assert settings.num_patches == 4 and settings.model.token_px == 32
  metrics, moments, _ = run(settings, steps=1)
  assert np.isfinite(metrics[0]['loss']) and metrics[0]['loss/ibot'] > 0
  heads = moments['student']['ibot_head']['mlp']['fc0']['kernel']
  assert np.abs(heads).max() > 0
  assert np.abs(moments['student']['backbone']['stage0']['reduce'][
      'kernel']).max() > 0


def test_crops_are_shrunk_so_that_grids_agree():
  rng = np.random.default_rng(0)
  crops = rng.normal(size=(2, 64, 64, 3)).astype(np.float32)
  got = network.fit_crops(crops, 32, 16)
  assert got.shape == (2, 32, 32, 3)
  # Antialiased: the triangle of twice the width, over 4 pixels.
  weights = np.array([1, 3, 3, 1]) / 8
  want = np.einsum('a,b,abc->c', weights, weights, crops[0, 1:5, 1:5])
  np.testing.assert_allclose(got[0, 1, 1], want, rtol=1e-4, atol=1e-5)
  assert network.fit_crops(crops, 16, 16) is crops
  assert convnext.ConvNeXtConfig(
      (3, 3, 9, 3), (96, 192, 384, 768)).token_px == 32


@pytest.mark.slow  # it adds targets of all patches
def test_all_patches_are_predicted_or_those_of_the_masks():
  config = tiny.config(**QUIET)
  config['distillation'] = dict(source='a run', patches='all')
  assert settings_lib.read(config).chosen.ratio == (1.0, 1.0)
  config['distillation'] = dict(source='a run')
  settings = settings_lib.read(config)
  assert settings.chosen == settings.masks
  assert np.abs(
      run(two_students())[1]['same']['backbone']['mask_token']).max() == 0


@pytest.mark.slow
def test_masked_patches_may_be_hidden():
  settings = settings_of()
  hidden = dataclasses.replace(settings, distillation=dataclasses.replace(
      settings.distillation, hide_masked=True))
  seen, blind = run(settings), run(hidden, steps=1)
  assert seen[0][0]['loss/ibot'] != blind[0][0]['loss/ibot']
  assert np.abs(blind[1]['student']['backbone']['mask_token']).max() > 0


@pytest.mark.parametrize('changes, parts', [
    (dict(students=dict(a=dict(crops={}))), ('students.a.crops', 'its own')),
    (dict(students=dict(a=dict(dino=dict(num_prototypes=64)))),
     ('students.a: dino.num_prototypes=64', '128')),
    (dict(students=dict(a=dict(model=CONV))), ('32', 'largest patches')),
    (dict(students=dict(a=dict(train=dict(share=0.0)))), ('not in (0, 1]',)),
    (dict(students={'a/b': {}}), ("'a/b'", 'letters')),
    (dict(students=dict(a=dict(train=dict(batch_size=8)))),
     ('students.a', 'train.batch_size', '16')),
    (dict(students=dict(a=dict(train=dict(share=0.5)),
                        b=dict(koleo=dict(group_images=4))),
          koleo__group_images=16), ('students.a: 8 images', '=16')),
    (dict(students=dict(a=dict(schedules=dict(
        teacher_temperature=dict(peak=0.1))))),
     ('students.a', 'of the teacher')),
    (dict(students=dict(a=dict(ibot=dict(loss_weight=1.0))),
          ibot__loss_weight=0.0), ('students.a: ibot.loss_weight', 'set that')),
    (dict(students=dict(a={}), gram__loss_weight=1.0, gram__teacher='ema'),
     ('the frozen one',)),
    (dict(train__share=0.5), ('train.share=0.5', 'one alone')),
    (dict(teacher__centering='softmax'), ('sinkhorn',)),
    (dict(ibot__separate_head=False), ('ibot.separate_head=True',)),
])
def test_wrong_students_are_refused(changes, parts):
  with pytest.raises(errors.UserError) as caught:
    settings_of(**changes)
  for part in parts:
    assert part in str(caught.value)


@pytest.mark.parametrize('share', [0.3, 0.999])
def test_a_share_that_devices_cannot_have_is_refused(share):
  settings = settings_of(dict(a=dict(train=dict(share=share))),
                         koleo__loss_weight=0.0)
  with pytest.raises(errors.UserError, match=rf'share={share} is .* groups'):
    settings_lib.check_devices(settings, 2)
  with pytest.raises(errors.UserError, match='less than two at a time'):
    settings_of(dict(a=dict(train=dict(share=0.005))),
                koleo__loss_weight=0.0)


def test_what_would_do_nothing_is_refused():
  base = tiny.config(**QUIET)
  base['distillation'] = dict(source='a run')
  refuse = lambda text, **sections: pytest.raises(
      errors.UserError, settings_lib.read, base | sections).match(text)
  refuse('hides all patches', distillation=dict(
      source='a', patches='all', hide_masked=True))
  conv = dict(model=CONV, crops=dict(global_px=64, local_px=32, num_local=2))
  refuse('layers are not told apart', **conv)
  refuse('no mask token', **conv, distillation={},
         optimizer=dict(layerwise_decay=1.0))
  refuse('init.source is of no student', students=dict(a={'init': {
      'source': None}}), init=dict(source='weights'))


def test_a_teacher_with_other_prototypes_or_no_heads_is_refused():
  mesh = mesh_lib.make(devices=jax.devices()[:1])
  settings = settings_of(dino__num_prototypes=64)
  with mesh_lib.activate(mesh):
    with pytest.raises(errors.UserError, match='64, but the teacher.*128'):
      method_lib.build(settings, mesh, 1, teacher_of(settings))
    bare = dataclasses.replace(teacher_of(settings), dino_head=None)
    with pytest.raises(errors.UserError, match='no dino head.*freeze_backbone'):
      method_lib.build(settings, mesh, 1, bare)
    with pytest.raises(errors.UserError, match='distillation.model'):
      method_lib.build(settings, mesh, 1)


def test_a_teacher_without_weights_is_never_random():
  settings = two_students()
  mesh = mesh_lib.make(devices=jax.devices()[:1])
  with mesh_lib.activate(mesh):
    method = method_lib.build(settings, mesh, 100, teacher_of(settings))
    trainable = pretraining.Pretraining(method, mesh)
    shapes = state_lib.abstract(method, mesh, with_teacher=False)
    assert 'teacher' in trainable.enter(shapes, trainable.variant(0))['frozen']
    state = {'step': 0, 'students': shapes['students']}
    with pytest.raises(ValueError, match='its weights were not given'):
      trainable.enter(state, trainable.variant(0))
