"""Gram anchoring that begins at a step, and steps of several sizes."""

import jax
from jax._src import core
import numpy as np
import pytest

from dinojax.core import errors
from dinojax.data import sources
from dinojax.engine import program
from dinojax.engine import trainable
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import processes
from dinojax.runs import batches as batches_lib
from dinojax.train import method as method_lib
from dinojax.train import pretraining
from dinojax.train import settings as settings_lib
from dinojax.train import state as state_lib
from dinojax.train import step as step_lib
from dinojax.train import variants
from tests.train import tiny

SMALL = dict(model__depth=1, model__drop_path_rate=0.0, crops__num_local=0,
             ibot__separate_head=False, model__rope_rescale=None,
             model__rope_shift=None)  # less to compile
GRAM = SMALL | dict(gram__loss_weight=2.0, gram__start_steps=3,
                    crops__gram_px=32)


def settings_of(**changes):
  return settings_lib.read(tiny.config(**changes))


@pytest.fixture
def mesh():
  mesh = mesh_lib.make(devices=jax.devices()[:1])
  with mesh_lib.activate(mesh):
    yield mesh


def text(method, mesh):
  students = pretraining.Pretraining(method, mesh)
  variant = variants.heaviest(method)
  return program.trace(
      students, variant, state_lib.abstract(method, mesh),
      program.prepared(students, variant, mesh)).lower().as_text()


def test_before_its_start_anchoring_costs_nothing(mesh):
  anchored = method_lib.build(settings_of(**GRAM), mesh, epoch_steps=10)
  plain = method_lib.build(settings_of(**SMALL), mesh, epoch_steps=10)
  before = variants.method_of(anchored, variants.at(anchored, 2))
  after = variants.method_of(anchored, variants.at(anchored, 3))
  assert 'gram' not in state_lib.abstract(before, mesh)
  # The value of the gram weight is logged in both.
  assert text(before, mesh) == text(plain, mesh)
  assert len(text(after, mesh)) > len(text(plain, mesh))


def test_shapes_of_a_state_touch_no_device(mesh, monkeypatch):
  """Those of the mesh may not be here: `dinojax compile` plans for others."""
  method = method_lib.build(settings_of(**SMALL), mesh, epoch_steps=10)

  def refuse(*_):
    raise AssertionError('something was computed')

  monkeypatch.setattr(core.EvalTrace, 'process_primitive', refuse)
  with pytest.raises(AssertionError, match='was computed'):
    jax.random.key(0)
  assert state_lib.abstract(method, mesh)['key'].shape == ()


def test_the_gram_teacher_is_the_ema_of_its_first_step(mesh):
  whole = method_lib.build(settings_of(**GRAM), mesh, epoch_steps=10)
  students = pretraining.Pretraining(whole, mesh)
  before, after = map(students.variant, (2, 3))
  state = students.create(jax.random.key(0))
  student = tiny.alone(state)
  student['ema'] = jax.tree.map(lambda x: 2 * x, student['ema'])
  assert students.enter(state, before) is state
  entered = students.enter(state, after)
  jax.tree.map(np.testing.assert_array_equal, entered['gram'],
               student['ema']['backbone'])
  assert students.enter(entered, after) is entered
  shapes = students.enter(trainable.shapes_of(state), after)
  assert jax.tree.map(lambda x: (x.shape, x.sharding), shapes) == (
      jax.tree.map(lambda x: (x.shape, x.sharding), entered))

  class Zeros(pretraining.InitialWeights):
    def gram(self, ema):
      return jax.tree.map(np.zeros_like, ema)

  # Weights of elsewhere take the place of the EMA.
  other = pretraining.Pretraining(whole, mesh, Zeros()).enter(state, after)
  assert not any(x.any() for x in jax.tree.leaves(other['gram']))


@pytest.mark.slow  # of the reference in make test: test_goldens.py, v3_gram
def test_anchoring_begins_in_the_step(mesh):
  settings = settings_of(**GRAM)
  whole = method_lib.build(settings, mesh, epoch_steps=10)
  students = pretraining.Pretraining(whole, mesh)
  before, after = (students.of(students.variant(s)) for s in (2, 3))
  state = students.create(jax.random.key(0))
  batch = processes.to_devices(tiny.batch(settings, 0), mesh)
  state, metrics = jax.jit(
      lambda s, b: step_lib.train_step(s, b, method=before))(state, batch)
  assert 'loss/gram' not in metrics
  entered = students.enter(state, students.variant(3))
  rng = np.random.default_rng(0)
  crops = rng.normal(size=(16, 2, 32, 32, 3)).astype(np.float32)
  rows = batch | processes.to_devices({'gram': crops}, mesh)
  new, metrics = jax.jit(
      lambda s, b: step_lib.train_step(s, b, method=after))(entered, rows)
  assert float(metrics['loss/gram']) > 0
  jax.tree.map(np.testing.assert_array_equal, new['gram'], entered['gram'])


def test_batches_have_what_their_program_takes(mesh):
  """Sizes that leave the Gram crops to be as large as the global ones."""
  changes = {k: v for k, v in GRAM.items() if k != 'crops__gram_px'} | dict(
      data__train='photos:train',
      crops__sizes=((16, 8, None, 0.5), (32, 8, 48, 0.5)))
  settings = settings_of(**changes)
  whole = method_lib.build(settings, mesh, epoch_steps=10)
  training = [(sources.open_source('photos:train'), 1.0)]
  for step in range(6):
    batch = next(batches_lib.make(
        settings, training, [], step, whole.gram_start))
    for name in ('problems', 'label'):  # the loop keeps them to itself
      batch.pop(name)
    students = pretraining.Pretraining(whole, mesh)
    want = students.batch(students.variant(step))
    assert {k: v.shape for k, v in batch.items()} == {
        k: v.shape for k, v in want.items()}


def test_all_segments_that_will_come_are_known_before(mesh):
  sizes = ((16, 8, 32, 0.5), (32, 8, 48, 0.5), (48, 8, 48, 0.0))
  changes = {k: v for k, v in GRAM.items() if k != 'crops__gram_px'}
  whole = method_lib.build(
      settings_of(**changes, crops__sizes=sizes), mesh, epoch_steps=10)
  find = lambda start, end: {
      (s.is_anchored, s.size) for s in variants.between(whole, start, end)}
  assert find(0, 3) == {(False, 0), (False, 1)}
  assert find(0, 4) == {(False, 0), (False, 1), (True, 0), (True, 1)}
  assert find(3, 9) == {(True, 0), (True, 1)}
  assert {variants.at(whole, s) for s in range(40)} == set(
      variants.between(whole, 0, 40))
  assert variants.heaviest(whole) == variants.Variant(True, 2)
  seen = variants.method_of(whole, variants.Variant(True, 1)).settings
  assert (seen.crops.global_px, seen.gram_px, seen.num_patches) == (32, 48, 64)


@pytest.mark.parametrize('changes, parts', [
    (dict(crops__gram_px=32), ('no Gram teacher', 'gram.loss_weight')),
    (GRAM | dict(crops__gram_px=30), ('crops.gram_px=30', '28 or 32')),
    (dict(crops__sizes=((16, 8, None, 0.5), (30, 8, None, 0.5))),
     ('crops.sizes[1] global=30', '28 or 32')),
    (dict(crops__sizes=((16, 8, None, 0.5),)), ('add up to 0.5',)),
    (dict(crops__sizes=((16, 8, 32, 1.0),)),
     ('crops.sizes[0]', 'there is none')),
    (dict(crops__sizes=((16, 8, None, 1.5), (16, 8, None, -0.5))),
     ('crops.sizes[0][3]=1.5', 'crops.sizes[1][3]=-0.5', '[0, 1]')),
    (dict(gram__loss_weight=1.0, gram__teacher='ema', gram__log_masked=True,
          ibot__loss_weight=0.0), ('ibot.loss_weight is 0',)),
    (dict(crops__sizes=((16, 8, 0.5),)),
     ('crops.sizes[0]=(16, 8, 0.5)', '4 entries')),
])
def test_sizes_that_cannot_be_are_refused(changes, parts):
  with pytest.raises(errors.UserError) as caught:
    settings_of(**changes)
  for part in parts:
    assert part in str(caught.value)
