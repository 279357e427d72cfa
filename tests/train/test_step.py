"""The step: the same on any mesh, in any number of micro-batches."""

import functools
import re

import jax
import numpy as np
import pytest

from dinojax.core import errors
from dinojax.core import tree
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import processes
from dinojax.train import method as method_lib
from dinojax.train import settings as settings_lib
from tests.train import tiny

NUM_PROTOTYPES = 1160  # no other size of these recipes
COLUMNS = dict(dino__num_prototypes=NUM_PROTOTYPES, train__batch_size=32,
               ibot__num_prototypes=NUM_PROTOTYPES)


@functools.cache
def begun(shape=(1, 1), **changes):
  """Settings, mesh, recipe, fresh state and step: made once a file."""
  settings = settings_lib.read(tiny.config(**COLUMNS | changes))
  devices = jax.devices()[:shape[0] * shape[1]]
  mesh = mesh_lib.make(*shape, devices=devices)
  settings_lib.check_devices(settings, mesh.size)
  with mesh_lib.activate(mesh):
    return settings, mesh, *tiny.program(settings, mesh)


@functools.cache
def one_device():
  settings, mesh, _, state, step = begun()
  with mesh_lib.activate(mesh):
    return tiny.follow(settings, mesh, state, step, 0, 5)[:3]


def assert_same(got, want, steps=5):
  metrics, moments, student = got
  want_metrics, want_moments, want_student = want
  for a, b in zip(metrics, want_metrics, strict=True):
    for name in a:
      if name.startswith('loss'):
        np.testing.assert_allclose(a[name], b[name], rtol=1e-5, err_msg=name)
  for (name, a), (_, b) in zip(
      tree.items(moments), tree.items(want_moments), strict=True):
    if name.endswith('qkv/bias'):
      # The gradient of the k third is zero: softmax ignores a shift of k.
      a, b = (np.delete(x.reshape(*x.shape[:-1], 3, -1), 1, -2)
              for x in (a, b))
    np.testing.assert_allclose(
        a, b, rtol=0, atol=1e-5 * np.abs(b).max(), err_msg=name)
  for (name, a), (_, b) in zip(
      tree.items(student), tree.items(want_student), strict=True):
    # Adam divides a gradient by its own size, so that the rounding of one that
    # is nearly zero moves its weight by whole steps: of single weights only
    # that is bounded, and the moments above are what is judged one by one.
    np.testing.assert_allclose(
        a, b, rtol=0, atol=steps * tiny.LR, err_msg=name)
    if not name.endswith('qkv/bias'):
      rms = np.sqrt(np.mean((a - b) ** 2, dtype=np.float64))
      assert rms <= 1e-3 * tiny.LR, (name, rms)


SHAPES = {'weights-and-rows-split': (2, 4), 'rows-split': (8, 1),
          'weights-split': (1, 8)}


@pytest.mark.slow  # make test has micro-batches on a mesh, below
@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
def test_the_mesh_does_not_change_the_result(shape):
  assert_same(tiny.run(shape, **COLUMNS), one_device())


@pytest.mark.slow  # on several devices it is tested every time
@pytest.mark.parametrize('parts', [2, 4])
def test_micro_batches_do_not_change_the_result(parts):
  assert_same(tiny.run((1, 1), train__num_micro_batches=parts, **COLUMNS),
              one_device())


def assert_columns_are_split(text):
  """No device holds all prototypes or all logits of a row."""
  assert not re.search(rf'[\[,]{NUM_PROTOTYPES}[\],]', text)


def on_a_mesh():
  return begun((2, 2), train__num_micro_batches=2)


def test_neither_mesh_nor_micro_batches_change_the_result():
  settings, mesh, _, state, step = on_a_mesh()
  with mesh_lib.activate(mesh):
    assert_same(tiny.follow(settings, mesh, state, step, 0, 5)[:3],
                one_device())


SMALL = COLUMNS | dict(model__depth=2, model__drop_path_rate=0.0)
EMA_GRAM = dict(gram__loss_weight=2.0, gram__teacher='ema')
MASKED_GRAM = EMA_GRAM | dict(
    gram__tokens='masked', gram__per_image=False, teacher__centering='softmax',
    ibot__separate_head=False)
# One group of KoLeo spans all devices.
LEARNED = dict(
    model__position='learned', model__drop_path_rate=0.25,
    dino__weight_norm=True, koleo__group_images=32,
    masks__counts='undershooting')


@pytest.mark.parametrize('changes', [
    pytest.param(MASKED_GRAM | LEARNED, marks=pytest.mark.slow,
                 id='all-at-once'),
    pytest.param(MASKED_GRAM, marks=pytest.mark.slow, id='masked-gram'),
    pytest.param(LEARNED, marks=pytest.mark.slow, id='learned'),
    pytest.param(EMA_GRAM, marks=pytest.mark.slow, id='gram-of-each-image'),
    pytest.param(
        dict(dino__weight_norm=True, ibot__weight_norm=True,
             train__num_micro_batches=2, train__batch_size=32),
        marks=pytest.mark.slow, id='columns-of-micro-batches')])
def test_other_recipes_are_mesh_equal_and_split_columns(changes):
  changes = SMALL | changes
  assert_same(
      tiny.run((2, 4), steps=2, look=assert_columns_are_split, **changes),
      tiny.run((1, 1), steps=2, **changes))


def test_the_program_of_one_device_has_whole_columns():
  """That is, the name of a size is what the test above looks for."""
  settings = settings_lib.read(tiny.config(**SMALL))
  mesh = mesh_lib.make(devices=jax.devices()[:1])
  with mesh_lib.activate(mesh):
    method = method_lib.build(settings, mesh, epoch_steps=1)
    init = method.student.init
    text = jax.jit(init).lower(jax.random.key(0)).compile().as_text()
  with pytest.raises(AssertionError):
    assert_columns_are_split(text)


def test_prototypes_that_cannot_be_split_are_refused():
  settings = settings_lib.read(tiny.config(dino__num_prototypes=130))
  mesh = mesh_lib.make(2, 4)
  with mesh_lib.activate(mesh):
    with pytest.raises(errors.UserError, match='130 prototypes .* of 4'):
      method_lib.build(settings, mesh, epoch_steps=1)


@pytest.fixture
def started():
  settings, mesh, *rest = begun()
  with mesh_lib.activate(mesh):
    yield settings, mesh, *rest


def test_a_non_finite_gradient_changes_nothing_but_the_counters(started):
  settings, mesh, _, state, step = started
  rows = tiny.batch(settings, 0)
  rows['global'][3, 0, 2, 2, 1] = np.inf
  new, metrics = step(state, processes.to_devices(rows, mesh))
  for part in ('student', 'ema', 'opt'):
    jax.tree.map(np.testing.assert_array_equal,
                 jax.device_get(tiny.alone(new)[part]),
                 jax.device_get(tiny.alone(state)[part]))
  assert int(metrics['nonfinite_in_row']) == 1
  assert int(metrics['first_bad_leaf']) >= 0
  assert int(new['step']) == 1
  good = processes.to_devices(tiny.batch(settings, 1), mesh)
  newer, metrics = step(new, good)
  assert int(metrics['nonfinite_in_row']) == 0
  assert int(metrics['koleo/duplicates']) == 0
  assert int(tiny.alone(newer)['counters']['skipped_steps']) == 1


def test_the_teacher_follows_the_student(started):
  settings, mesh, method, state, step = started
  new, metrics = step(
      state, processes.to_devices(tiny.batch(settings, 0), mesh))
  momentum = float(metrics['schedule/momentum'])
  want = jax.tree.map(lambda t, s: momentum * t + (1 - momentum) * s,
                      jax.device_get(tiny.alone(state)['ema']),
                      jax.device_get(tiny.alone(new)['student']))
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8),
      jax.device_get(tiny.alone(new)['ema']), want)


def test_the_step_compiles_once_and_gathers_no_images():
  settings, mesh, _, state, step = on_a_mesh()
  with mesh_lib.activate(mesh):
    rows = processes.to_devices(tiny.batch(settings, 0), mesh)
    text = step.lower(state, rows).compile().as_text()
    assert_columns_are_split(text)
    assert 'all-to-all' not in text
    # What one scalar needs is not written into the update of every leaf.
    assert text.count(' is-finite(') < 5 * len(jax.tree.leaves(state))
    # What is gathered are weights: all of them smaller than the global crops
    # of a micro-batch.
    shapes = re.findall(r'= \(?\w+\[([\d,]+)\][^=]*? all-gather', text)
    sizes = [int(np.prod([int(n) for n in s.split(',')])) for s in shapes]
    assert sizes and max(sizes) < 16 * 2 * 16 * 16 * 3
    state, _ = step(state, rows)
    compiled_names = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, _, **kwargs: compiled_names.append(name)
        if name.endswith('backend_compile_duration') else None)
    for i in range(1, 3):
      state, _ = step(state, processes.to_devices(
          tiny.batch(settings, i), mesh))
    assert not compiled_names
