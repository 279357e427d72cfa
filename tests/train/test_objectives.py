"""A new term of the loss is its own two files and a line in `Settings`."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.core import errors
from dinojax.core import fields
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import processes
from dinojax.planning import flops
from dinojax.train import method as method_lib
from dinojax.train import sections
from dinojax.train import settings as settings_lib
from dinojax.train import state as state_lib
from dinojax.train import step as step_lib
from dinojax.train.objectives import objective
from tests.train import tiny

# What would be losses/variance.py.


def variance(x, least):
  """How far the deviation of every feature of [r, d] is below `least`."""
  return jnp.mean(jax.nn.relu(least - jnp.std(x, axis=0)))


# What would be train/objectives/variance.py.


@dataclasses.dataclass(frozen=True)
class Variance(objective.Objective):
  """Features that differ between images, as VICReg has them."""

  NAME = 'variance'

  loss_weight: fields.NonNegative = 0.0  # Weight in the sum of losses; 0: off.
  least: fields.Above0 = 1.0  # Deviation that is asked for.
  patches: bool = False  # Of patches too.

  def mistakes(self, settings):
    if self.is_on and settings.train.batch_size < 8:
      yield ('variance.loss_weight needs a deviation, of 8 images or more: '
             'set train.batch_size')

  def student_wants(self):
    return frozenset({'patches'} if self.patches else ())

  def terms(self, seen):
    values = {'variance': (self.loss_weight, variance(
        seen.out['cls']['global'], self.least))}
    if self.patches:
      values['variance_patches'] = self.loss_weight, variance(
          seen.out['patches'].reshape(-1, seen.settings.model.embed_dim),
          self.least)
    return values, {'variance/rows': jnp.float32(
        len(seen.out['cls']['global']))}

  def flops(self, settings, masked_patches):
    return 1e6


# The line in train/sections.py.


@dataclasses.dataclass(frozen=True)
class Settings(sections.Settings):
  variance: Variance = Variance()  # Loss that keeps features apart.


SMALL = dict(model__depth=1, model__drop_path_rate=0.0, crops__num_local=0,
             ibot__separate_head=False, model__rope_rescale=None,
             model__rope_shift=None)  # less to compile


def read(weight, **changes):
  config = tiny.config(**SMALL | changes)
  config['variance'] = {'loss_weight': weight, 'patches': True}
  return settings_lib.read(config, Settings)


def steps(settings, count=2):
  mesh = mesh_lib.make(devices=mesh_lib.one_device())
  with mesh_lib.activate(mesh):
    _, state, step = tiny.program(settings, mesh)
    compiled = step.lower(state, processes.to_devices(
        tiny.batch(settings, 0), mesh)).compile()
    metrics, *_, after = tiny.follow(
        settings, mesh, state, compiled, 0, count)
    return metrics, tiny.everywhere(tiny.alone(after)['student']), compiled


@pytest.fixture(scope='module')
def plain():
  return steps(settings_lib.read(tiny.config(**SMALL)))


@pytest.fixture(scope='module')
def varied():
  return steps(read(1e3))


def test_a_new_term_is_learned_and_logged(plain, varied):
  metrics, student, _ = varied
  for row in metrics:
    total = sum(value for name, value in row.items()
                if name.startswith('weighted/'))
    assert row['loss'] == pytest.approx(total, rel=1e-6)
    assert row['weighted/variance'] == pytest.approx(
        1e3 * row['loss/variance'], rel=1e-6)
    assert row['loss/variance_patches'] > 0 and row['variance/rows'] == 32
  assert any(not np.array_equal(a, b) for a, b in zip(
      jax.tree.leaves(student), jax.tree.leaves(plain[1]), strict=True))


@pytest.mark.slow
def test_a_term_without_weight_is_not_there(plain):
  metrics, student, compiled = steps(read(0.0))
  assert metrics == plain[0]
  jax.tree.map(np.testing.assert_array_equal, student, plain[1])
  assert compiled.cost_analysis() == plain[2].cost_analysis()


@pytest.mark.slow  # make test has micro-batches in test_step.py
def test_micro_batches_have_its_mean_and_its_sum(varied):
  whole = varied[0][0]
  halves = steps(read(1e3, train__num_micro_batches=2), 1)[0][0]
  assert halves['variance/rows'] == whole['variance/rows'] == 32
  assert halves['weighted/variance'] == pytest.approx(
      1e3 * halves['loss/variance'], rel=1e-6)


def test_config_checks_and_planning_know_it():
  with pytest.raises(errors.UserError, match='needs a deviation'):
    read(1.0, train__batch_size=4)
  config = tiny.config()
  config['variance'] = {'loss_weight': -1.0, 'leest': 2}
  with pytest.raises(
      errors.UserError, match=r'variance.leest .*least') as error:
    settings_lib.read(config, Settings)
  assert 'variance.loss_weight=-1.0 is not 0 or more' in str(error.value)
  assert flops.step(read(1.0), 10) == flops.step(read(0.0), 10) + 1e6
  assert Settings.own_sections() == (
      'model', 'dino', 'ibot', 'koleo', 'variance', 'optimizer', 'schedules',
      'train', 'init')


def test_a_term_without_a_centre_adds_none_to_the_state():
  settings = settings_lib.read(tiny.config(
      teacher__centering='softmax', gram__loss_weight=1.0,
      gram__teacher='ema', crops__num_local=0, model__depth=1))
  mesh = mesh_lib.make(devices=mesh_lib.one_device())
  with mesh_lib.activate(mesh):
    method = method_lib.build(settings, mesh, epoch_steps=100)
    state = state_lib.abstract(method, mesh)
    new, _ = jax.eval_shape(
        functools.partial(step_lib.train_step, method=method), state,
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=jax.NamedSharding(mesh, mesh_lib.ROWS)),
            tiny.batch(settings, 0)))
  assert set(state['centers']) == set(new['centers']) == {'dino', 'ibot'}
