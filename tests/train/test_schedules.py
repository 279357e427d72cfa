"""Schedules against the references' tables, in float64 and traced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.train import schedules
from tests import golden

CASE = golden.load('schedules')
CALLS = {call['id']: call for call in CASE.meta['calls']}


def values(schedule, count):
  return np.array([float(schedule(step)) for step in range(count)])


@pytest.mark.parametrize('name', ['cosine0', 'cosine1', 'cosine2', 'cosine3'])
def test_cosine_equals_reference(name):
  k = CALLS[name]['kwargs']
  def make(extra):
    return schedules.cosine(
        k['base_value'], k['final_value'], total_steps=k['total_iters'],
        warmup_steps=k.get('warmup_iters', 0),
        start_warmup=k.get('start_warmup_value', 0.0),
        freeze_steps=k.get('freeze_iters', 0), trunc_extra=extra)
  total = k['total_iters']
  for version in ('v2', 'v3'):
    CASE.check(f'{name}/{version}', values(make(0.0), total))
  CASE.check(f'{name}/past_end', values(make(0.0), total + 2)[total:])
  if f'{name}/v3_trunc_extra' in CASE.outputs:
    extra = CALLS[name]['trunc_extra']
    CASE.check(f'{name}/v3_trunc_extra', values(make(extra), total))


@pytest.mark.parametrize('name', ['lwcd0', 'lwcd1', 'lwcd2', 'lwcd3'])
def test_linear_warmup_cosine_equals_reference(name):
  k = CALLS[name]['kwargs']
  schedule = schedules.linear_warmup_cosine_decay(
      k['start'], k['peak'], k['end'], warmup_steps=k['warmup_iterations'],
      total_steps=k['total_iterations'],
      cosine_steps=k.get('cosine_iterations'))
  CASE.check(name, values(schedule, k['total_iterations']))


def test_whole_v2_config_equals_reference():
  o = CALLS['v2_build']['overrides']
  steps = lambda epochs: o['L'] * epochs
  total = steps(o['ep'])
  lr_peak = schedules.scale_lr(0.004, o['b'], 'sqrt_1024')
  CASE.check('v2_build/scaled_lr', lr_peak)
  lr = schedules.cosine(lr_peak, 1e-6, total_steps=total,
                        warmup_steps=steps(o['wu']))
  CASE.check('v2_build/lr', values(lr, total + 2))
  CASE.check('v2_build/last_layer_lr', values(
      schedules.frozen_until(lr, steps(o['fr'])), total + 2))
  CASE.check('v2_build/wd', values(
      schedules.cosine(0.04, 0.4, total_steps=total), total + 2))
  CASE.check('v2_build/momentum', values(
      schedules.cosine(0.992, 1.0, total_steps=total), total + 2))
  CASE.check('v2_build/teacher_temp', values(schedules.cosine(
      0.07, 0.07, total_steps=total, warmup_steps=steps(o['wt']),
      start_warmup=0.04), total + 2))


@pytest.mark.parametrize('schedule', [
    schedules.cosine(5.65685e-3, 1e-6, total_steps=125_000,
                     warmup_steps=12_500),
    schedules.cosine(0.992, 1.0, total_steps=125_000),
    schedules.linear_warmup_cosine_decay(
        0.0, 4e-4, 4e-4, warmup_steps=100_000, total_steps=1_000_000),
    schedules.frozen_until(schedules.table([0.5, 0.25, 0.125]), 1)])
def test_traced_float32_equals_float64(schedule):
  steps = np.array([0, 1, 2, 6250, 12_499, 12_500, 62_500, 124_999, 999_999])
  traced = jax.jit(jax.vmap(schedule))(jnp.asarray(steps, jnp.int32))
  # float32 rounds each step of the arithmetic: a few units in the last place.
  np.testing.assert_allclose(
      traced, [float(schedule(int(s))) for s in steps], rtol=2e-6, atol=1e-9)


def test_published_values():
  lr = schedules.cosine(
      schedules.scale_lr(0.004, 2048, 'sqrt_1024'), 1e-6,
      total_steps=125_000, warmup_steps=12_500)
  np.testing.assert_allclose(
      values(lambda i: lr([0, 1, 6250, 12499, 12500, 62500, 124999][i]), 7),
      [0, 4.5258e-7, 2.82865e-3, 5.65685e-3, 5.65685e-3, 3.31999e-3,
       1.00000e-6], rtol=2e-5)  # published with five or six digits
