"""Schedules: ends, published values, float64 and traced alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.core import errors
from dinojax.engine import schedules
from dinojax.train import method as method_lib
from dinojax.train import settings as settings_lib
from tests.train import tiny


def values(schedule, count):
  return np.array([float(schedule(step)) for step in range(count)])


LONG = [
    schedules.cosine(5.65685e-3, 1e-6, total_steps=125_000,
                     warmup_steps=12_500),
    schedules.cosine(1.0, 1e-6, total_steps=125_000, trunc_extra=0.25),
    schedules.cosine(0.04, 0.4, total_steps=125_000, trunc_extra=0.25),
    schedules.cosine(0.992, 1.0, total_steps=125_000),
    schedules.cosine(2e-3, 1e-5, total_steps=125_000, warmup_steps=800,
                     start_warmup=1e-5, freeze_steps=500),
    schedules.linear_warmup_cosine_decay(
        0.0, 4e-4, 0.0, warmup_steps=1_000, total_steps=125_000),
    schedules.linear_warmup_cosine_decay(
        0.0, 0.0, 1.25e-5, warmup_steps=0, total_steps=125_000),
    schedules.frozen_until(schedules.table([0.5, 0.25, 0.125]), 1),
    schedules.constant(0.1)]


@pytest.mark.parametrize('schedule', LONG, ids=range(len(LONG)))
def test_traced_float32_equals_float64_at_every_step(schedule):
  steps = np.arange(125_010)
  exact = schedule(steps)
  assert exact.dtype == np.float64
  traced = jax.jit(schedule)(jnp.asarray(steps, jnp.int32))
  assert traced.dtype == jnp.float32 and not traced.weak_type
  np.testing.assert_allclose(traced, exact, rtol=1e-6, atol=0)
  scalar = jax.jit(schedule)(jnp.int32(77_777))
  np.testing.assert_allclose(scalar, exact[77_777], rtol=1e-6)


def test_a_schedule_is_a_value():
  make = lambda: schedules.frozen_until(
      schedules.cosine(1.0, 0.1, total_steps=9), 3)
  assert make() == make() and hash(make()) == hash(make())
  assert 'base=1.0' in repr(make())


def test_ends_are_exact():
  lr = schedules.cosine(0.004, 1e-6, total_steps=100, warmup_steps=10)
  assert lr(0) == 0 and lr(9) == lr(10) == 0.004
  assert lr(99) > 1e-6 and lr(100) == lr(10**9) == 1e-6
  v3 = schedules.linear_warmup_cosine_decay(
      0.0, 4e-4, 1e-5, warmup_steps=10, total_steps=100, cosine_steps=40)
  assert v3(0) == 0 and v3(9) < v3(10) == 4e-4
  assert v3(48) > v3(49) == v3(50) == v3(10**9) == 1e-5
  trunc = schedules.cosine(1.0, 0.1, total_steps=100, warmup_steps=10,
                           trunc_extra=0.25)
  np.testing.assert_allclose(
      values(lambda i: trunc([9, 10, 11, 50, 99][i]), 5),
      [1, 1, 0.9998011, 0.7143344, 0.1], atol=5e-8)  # seven digits


@pytest.mark.parametrize('steps', [1, 2])
def test_very_short_parts(steps):
  # numpy's linspace of one point is its first.
  warm = schedules.cosine(1.0, 0.1, total_steps=8, warmup_steps=steps,
                          start_warmup=0.5)
  np.testing.assert_allclose(
      values(warm, steps), np.linspace(0.5, 1.0, steps))
  fall = schedules.linear_warmup_cosine_decay(
      0.0, 1.0, 0.1, warmup_steps=2, total_steps=8, cosine_steps=steps)
  np.testing.assert_allclose(
      values(fall, 5), [0, 0.5, *[1.0, 0.1][:steps],
                        *[0.1] * (3 - steps)], rtol=1e-12)
  short = schedules.cosine(1.0, 0.1, total_steps=steps, trunc_extra=0.5)
  np.testing.assert_allclose(
      values(short, 3), [1.0, *[0.1] * 2], rtol=1e-12)


def test_a_warm_up_longer_than_training_never_peaks():
  for schedule in (
      schedules.cosine(1.0, 0.1, total_steps=4, warmup_steps=10),
      schedules.linear_warmup_cosine_decay(
          0.0, 1.0, 0.1, total_steps=4, warmup_steps=10)):
    assert 0 < schedule(3) < 0.5


@pytest.mark.parametrize('rule, want', [
    ('sqrt_1024', 0.002), ('sqrt_1024_x4', 0.008), ('linear_256', 0.004),
    ('none', 0.004)])
def test_learning_rate_rules(rule, want):
  assert schedules.scale_lr(0.004, 256, rule) == want


def test_an_unknown_rule_and_an_empty_table_are_errors():
  with pytest.raises(ValueError, match="'cubic' is not known: use one of no"):
    schedules.scale_lr(0.1, 64, 'cubic')
  with pytest.raises(ValueError, match='at least one value'):
    schedules.table([])


def test_published_values():
  lr = schedules.cosine(
      schedules.scale_lr(0.004, 2048, 'sqrt_1024'), 1e-6,
      total_steps=125_000, warmup_steps=12_500)
  np.testing.assert_allclose(
      values(lambda i: lr([0, 1, 6250, 12499, 12500, 62500, 124999][i]), 7),
      [0, 4.5258e-7, 2.82865e-3, 5.65685e-3, 5.65685e-3, 3.31999e-3,
       1.00000e-6], rtol=2e-5)  # published with five or six digits


def test_published_values_of_the_seven_billion_stages():
  lr = schedules.linear_warmup_cosine_decay(
      0.0, 4e-4, 4e-4, warmup_steps=100_000, total_steps=1_000_000)
  np.testing.assert_allclose(
      values(lambda i: lr([1, 99_999, 100_000][i]), 3),
      [4e-9, 3.99996e-4, 4e-4], rtol=1e-7)
  gram = schedules.linear_warmup_cosine_decay(
      0.0, 0.0, 2.0, warmup_steps=1_000_000, total_steps=1_200_000,
      cosine_steps=1_000)
  np.testing.assert_allclose(
      values(lambda i: gram([999_999, 1_000_000, 1_000_500, 1_000_999][i]), 4),
      [0, 0, 1.00157, 2], rtol=1e-5)
  local = schedules.linear_warmup_cosine_decay(
      1.0, 1.0, 0.5, warmup_steps=1_000_000, total_steps=1_200_000,
      cosine_steps=1_000)
  np.testing.assert_allclose(
      values(lambda i: local([1_000_500, 1_000_999][i]), 2),
      [0.749607, 0.5], rtol=1e-5)


def test_more_steps_than_a_counter_holds_are_refused():
  settings = settings_lib.read(tiny.config(
      train__total_steps=0.0, train__total_epochs=1e8))
  with pytest.raises(errors.UserError, match=(
      r'train\.total_epochs=1e\+08 is 5e\+09 steps, and a run has at most '
      r'2147483646')):
    method_lib.total_steps(settings, epoch_steps=50)


def test_the_highest_rate_of_a_long_run_is_found_in_few_steps():
  settings = settings_lib.read(tiny.config(
      train__total_steps=1e8, schedules__lr=dict(
          start=0.0, peak=1e-3, end=1e-6, warmup_steps=12_345_678.0)))
  assert method_lib.peak_lr(settings, 1) == pytest.approx(1e-3, rel=1e-4)
