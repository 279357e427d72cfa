"""Collapse is seen, put in words once, and not seen where there is none."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.train import monitor

K = 512


def row(loss=0.8, std=0.9, usage=0.7, lr=1e-3, last_layer_lr=1e-3, **more):
  return {'loss/dino_global': loss * math.log(K), 'teacher/feature_std': std,
          'teacher/usage': usage, 'teacher/entropy': 0.5, 'schedule/lr': lr,
          'schedule/last_layer_lr': last_layer_lr,
          **monitor.loss_metrics(
              loss * math.log(K), 0.5 * math.log(K), K)} | more


def messages(rows, window=5):
  judge = monitor.Monitor(K, window=window)
  return [text for text in map(judge.check, rows) if text]


HEALTHY = [row(loss=x) for x in np.linspace(1.0, 0.7, 40)]


def test_a_healthy_run_is_left_alone():
  assert not messages(HEALTHY)
  # A loss that hovers near ln K but moves is slow, not collapsed.
  assert not messages([row(loss=1 - 0.004 * (i % 2)) for i in range(40)])


def test_uniform_answers_are_named_with_numbers_and_remedies():
  text, = messages([row(loss=1.0002)] * 40)
  assert 'uniform distribution' in text
  assert f'ln K = {math.log(K):.4f}' in text and 'K = 512' in text
  assert '0.500 ln K' in text
  for remedy in ('schedules.lr.peak', 'dino.num_prototypes',
                 'schedules.freeze_last_layer', 'temperature'):
    assert remedy in text


@pytest.mark.parametrize('sign', [
    dict(std=1e-3), dict(usage=1.0 / K), dict(std=1e-3, usage=1.0 / K)])
def test_constant_features_are_named_with_numbers_and_remedies(sign):
  text, = messages([row(**sign)] * 40)
  assert 'nearly the same features' in text
  used = 1.0 if 'usage' in sign else 0.7 * K
  assert f'{used:.1f} of 512' in text
  for remedy in ('sinkhorn_knopp', 'schedules.lr.peak', 'dinojax crops'):
    assert remedy in text


def test_equal_features_are_named_once_they_stay():
  text, = messages([row(**{'koleo/duplicates': 6.0})] * 40)
  assert 'now 6 (koleo/duplicates)' in text and 'copies of an image' in text
  assert not messages([row(**{'koleo/duplicates': i % 2}) for i in range(40)])


def test_one_row_says_nothing():
  rows = [row(std=1e-3) if i % 5 else row() for i in range(40)]
  assert not messages(rows)
  assert len(messages(rows, window=4)) == 1


def test_a_second_collapse_is_said_after_a_recovery():
  rows = [row(std=1e-3)] * 10 + [row()] * 10 + [row(std=1e-3)] * 10
  assert len(messages(rows)) == 2


def test_the_start_of_a_run_is_not_a_collapse():
  rising = [row(loss=1.0, std=5e-3, lr=1e-5 * i) for i in range(40)]
  frozen = [row(loss=1.0, std=5e-3, last_layer_lr=0.0)] * 40
  assert not messages(rising) and not messages(frozen)
  assert len(messages(rising + [row(loss=1.0, std=5e-3)] * 20)) == 2


def test_a_collapse_within_the_warm_up_is_seen():
  rising = [row(lr=1e-5 * i, std=0.9 if i < 10 else 1e-3) for i in range(40)]
  text, = messages(rising)
  assert 'nearly the same features' in text


def test_absent_metrics_show_nothing():
  assert not messages([{'loss': 1.0}] * 40)
  assert len(messages([{'teacher/feature_std': 0.0}] * 40)) == 1


def test_not_a_number_is_not_a_collapse():
  assert not messages([row(loss=math.nan, std=math.nan, usage=math.nan)] * 40)


def test_target_metrics_of_known_targets():
  uniform = monitor.target_metrics(jnp.full((4, 2, K), 1 / K))
  np.testing.assert_allclose(uniform['teacher/entropy'], 1, rtol=1e-5)
  np.testing.assert_allclose(uniform['teacher/usage'], 1, rtol=1e-5)
  same = monitor.target_metrics(
      jnp.zeros((4, 2, K), jnp.bfloat16).at[..., 3].set(1))
  np.testing.assert_allclose(same['teacher/entropy'], 0, atol=1e-6)
  np.testing.assert_allclose(same['teacher/usage'], 1 / K, rtol=1e-5)
  apart = monitor.target_metrics(jnp.eye(8, K)[:, None])
  np.testing.assert_allclose(apart['teacher/entropy'], 0, atol=1e-6)
  np.testing.assert_allclose(apart['teacher/usage'], 8 / K, rtol=1e-5)


def test_feature_spread_of_known_features():
  std = lambda x: float(monitor.feature_metrics(x)['teacher/feature_std'])
  isotropic = jax.random.normal(jax.random.key(0), (4096, 32))
  np.testing.assert_allclose(std(isotropic), 1, atol=0.01)
  assert std(jnp.ones((16, 32), jnp.bfloat16)) < 1e-6
  assert std(7 * isotropic) == pytest.approx(std(isotropic))
  narrow = 1 + 0.01 * isotropic
  np.testing.assert_allclose(std(narrow), 0.01, rtol=0.05)


def test_loss_metrics():
  log_k = math.log(K)
  got = monitor.loss_metrics(jnp.asarray(log_k), 0.25 * log_k, K)
  np.testing.assert_allclose(got['dino/loss_over_log_k'], 1, rtol=1e-6)
  np.testing.assert_allclose(got['dino/divergence'], 0.75, rtol=1e-6)


@pytest.mark.slow
def test_outputs_of_a_collapsed_network_are_judged_end_to_end():
  key = jax.random.key(0)
  features = {
      'constant': jnp.ones((64, 32)) + 1e-4 * jax.random.normal(key, (64, 32)),
      'healthy': jax.random.normal(key, (64, 32))}
  for name, cls in features.items():
    logits = cls @ jax.random.normal(jax.random.key(1), (32, K))
    numbers = monitor.feature_metrics(cls) | monitor.target_metrics(
        jax.nn.softmax(logits / 0.1))
    numbers = {key: float(value) for key, value in numbers.items()}
    assert len(messages([numbers] * 10)) == (name == 'constant'), numbers
