"""What cases of a kind may hold, beyond those that are kept here."""

import dataclasses

import numpy as np
import pytest

from tests import golden
from tests.kinds import configs
from tests.kinds import data
from tests.kinds import evals
from tests.kinds import libraries
from tests.kinds import models
from tests.kinds import optimization
from tests.kinds import training


def case_of(kind, config=None, calls=(), inputs=None, outputs=None, **meta):
  meta |= {'name': 'made up', 'kind': kind, 'config': config or {},
           'calls': list(calls), 'tolerance': {'rtol': 1e-5, 'atol': 1e-9}}
  return golden.Case(meta, inputs or {}, {}, outputs or {})


def whole_config(**call):
  case = case_of('schedules', calls=[dict(
      id='v3_x', overrides={'L': 5, 'ep': 12, 'wu': 2, 'fr': 1, 'wt': 4,
                            'b': 512}, **call)])
  got = optimization.all_schedules(case)
  case.finish()
  return {key.removeprefix('v3_x/'): value for key, value in got.items()}


def test_schedules_of_a_config_may_be_cut():
  got = whole_config(schedule_trunc_extra=0.25)
  points = np.cos(np.linspace(0, np.pi, 75))[:60] / 2 + 0.5
  points = (points - points[-1]) / (1 - points[-1])  # from 1 to 0
  np.testing.assert_allclose(
      got['wd'], [*(0.4 + (0.04 - 0.4) * points), 0.4, 0.4], rtol=1e-6)
  assert abs(got['wd'][30] - whole_config(
      schedule_trunc_extra=0.0)['wd'][30]) > 0.01


@pytest.mark.parametrize('rule, factor', [
    ('linear_wrt_256', 2.0), ('sqrt_wrt_1024', 4 * 0.5**0.5), ('as_is', 1.0)])
def test_schedules_of_a_config_may_have_any_rule(rule, factor):
  got = whole_config(schedule_trunc_extra=0.0, scaling_rule=rule)
  np.testing.assert_allclose(got['scaled_lr'], 1e-3 * factor)
  np.testing.assert_allclose(got['lr'].max(), 1e-3 * factor)


def test_schedules_of_a_config_may_have_cosines_of_their_own():
  curve = lambda *ends, **more: dict(zip(
      ('start', 'peak', 'end', 'warmup_epochs'), ends, strict=True)) | more
  got = whole_config(scaling_rule='none', schedules=dict(
      lr=curve(0.0, 1.0, 0.0, 2, cosine_epochs=4, freeze_last_layer_epochs=1),
      weight_decay=curve(0.04, 0.04, 0.04, 0),
      momentum=curve(0.9, 0.9, 1.0, 0), teacher_temp=curve(0.1, 0.1, 0.1, 0)))
  cosine = np.cos(np.linspace(0, np.pi, 20)) / 2 + 0.5
  np.testing.assert_allclose(
      got['lr'], [*(np.arange(10) / 10), *cosine, *[0] * 30], atol=1e-12)


def test_the_linear_probe_may_read_other_layers():
  lrs = [1e-3, 1e-1]
  names = [f'classifier_{n}_blocks_avgpool_{avg}_lr_{lr:.5f}'.replace(
      '.', '_') for n in (2, 3) for avg in (False, True) for lr in lrs]
  case = case_of(
      'linear_probe_features',
      dict(layers=3, batch_size=256, learning_rates=lrs),
      inputs={f'layer{i}/{key}': np.full(shape, i, np.float32)
              for i in range(3) for key, shape in (
                  ('cls', (1, 2)), ('patch', (1, 4, 2)))} | {
                      'n2_avgpool1/weight': np.ones((1, 6), np.float32),
                      'n2_avgpool1/bias': np.zeros(1, np.float32)},
      outputs={'v2_classifier_names': np.array(names),
               'v3_classifier_names': np.array(names[2:4] + names[6:])})
  got = evals.linear_probe_features(case)
  np.testing.assert_array_equal(got['n2_avgpool1'], [[1, 1, 2, 2, 2, 2]])
  case.compare(got)


def counts_of(seed, shortfalls):
  counts = np.full(2000, 50)
  counts[:len(shortfalls)] = 50 - np.array(shortfalls)
  return np.random.default_rng(seed).permutation(counts)


def moments(counts):
  return np.float32([counts.mean(), counts.std(), counts.min(), counts.max()])


def test_random_masks_are_not_judged_by_one_of_them():
  ours = counts_of(0, [3] * 20)
  rare = counts_of(1, [3] * 22 + [25])  # a shortfall that few samples have
  data.same_moments(ours, moments(rare))
  data.same_moments(rare, moments(ours))
  hist = lambda x: np.bincount(x, minlength=65)
  data.same_distribution(hist(ours), hist(rare))
  # A twentieth of the masks fall short, or all by one.
  for other in (counts_of(2, [3] * 100), counts_of(3, [3] * 20) - 1):
    with pytest.raises(AssertionError):
      data.same_moments(ours, moments(other))
  with pytest.raises(AssertionError):
    data.same_distribution(hist(ours), hist(ours - 1))


def test_timm_may_resize_positions(monkeypatch):
  seen = []

  def run(config, *_):
    seen.append(config)
    raise StopIteration

  monkeypatch.setattr(models, 'run', run)
  for size in ({}, {'dynamic_img_size': True}):
    case = golden.load('timm_vit_dinov2')
    config = case.meta['config']
    config = config | {'overrides': config['overrides'] | size}
    case = dataclasses.replace(case, meta=case.meta | {'config': config})
    with pytest.raises(StopIteration):
      libraries.of_timm(case)
  assert [(c.interpolate_offset, c.interpolate_antialias)
          for c in seen] == [(0.1, False), (0.0, True)]


def training_case(name, **changes):
  """A kept case whose config says something else; nothing is run."""
  case = golden.load(name)
  config = {**case.meta['config']}
  for key, value in changes.items():
    section, _, option = key.partition('__')
    config[section] = config[section] | {option: value}
  return dataclasses.replace(case, meta=case.meta | {'config': config})


def settings(case):
  return configs.settings_of(case, dict(case.calls[0]['arch']))


def test_training_may_hold_fewer_images_than_its_config_says():
  case = training_case('train_v3_base', train__batch_size_per_gpu=64)
  s = settings(case)
  assert (s.train.batch_size, s.train.group_images,
          s.koleo.group_images) == (4, 4, 4)
  assert training.global_batch(case, 0) == 4


def test_training_may_log_losses_of_weight_0():
  case = training_case('train_v3_base', ibot__loss_weight=0.0,
                       dino__koleo_loss_weight=0.0)
  s = settings(case)
  assert 0 < s.ibot.loss_weight < 1e-20 and 0 < s.koleo.loss_weight < 1e-20
  outputs = {k: v for k, v in case.outputs.items() if 'koleo' not in k}
  assert settings(dataclasses.replace(
      case, outputs=outputs)).koleo.loss_weight == 0


def test_training_may_log_losses_without_their_weight():
  case = training_case('train_v2_sinkhorn_separate_heads',
                       dino__loss_weight=0.5, ibot__loss_weight=2.0)
  order = case.outputs['param_names']
  metrics = {
      'loss': 1.0, 'loss/dino_global': 3.0, 'weighted/dino_global': 0.25,
      'loss/dino_local': 4.0, 'weighted/dino_local': 1.5, 'loss/ibot': 5.0,
      'weighted/ibot': 10.0, 'loss/koleo': 7.0, 'weighted/koleo': 1.4}
  got = training.of_step(
      case, 1, metrics, {str(name): np.ones(1) for name in order})
  assert {key.rpartition('/')[2]: value.value for key, value in got.items()
          if key.startswith('step1/loss/')} == {
              'dino_global_crops_loss': 0.5, 'dino_local_crops_loss': 3.0,
              'koleo_loss': 0.7, 'ibot_loss': 2.5}


def test_a_distilled_teacher_may_have_heads_of_another_depth():
  case = golden.load('train_v3_distill')
  call = {**case.meta['calls']} if isinstance(case.meta['calls'], dict) else (
      {**case.meta['calls'][0]})
  cfg = call['teacher']['cfg']
  call['teacher'] = call['teacher'] | {'cfg': cfg | {
      'dino': cfg['dino'] | {'head_nlayers': 2}}}
  case = dataclasses.replace(case, meta=case.meta | {'calls': [call]})
  teacher = configs.frozen_teacher(case.calls[0], settings(case))
  assert teacher.dino_head.num_layers == 2
  assert teacher.ibot_head.num_layers == 3
