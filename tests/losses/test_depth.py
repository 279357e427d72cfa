"""Depth: known answers, and guards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.losses import depth
from dinojax.metrics import depth as depth_metrics
from dinojax.models.dense import bins


def test_a_perfect_prediction():
  target = np.linspace(1, 9, 48).reshape(6, 8)
  valid = depth_metrics.valid_pixels(target)
  got = depth_metrics.metrics(target, target, valid)
  assert [got[k] for k in ('a1', 'a2', 'a3')] == [1, 1, 1]
  assert sum(got[k] for k in depth_metrics.METRICS[3:]) == 0
  assert depth.gradient(target, target, valid) == 0
  assert depth.scale_invariant(target, target, valid) == 0


def test_a_wrong_scale_is_forgiven_by_silog_alone():
  target = np.linspace(1, 4, 48).reshape(6, 8)
  got = depth_metrics.metrics(2 * target, target, np.ones((6, 8), bool))
  assert got['silog'] == pytest.approx(0, abs=1e-6)
  assert got['abs_rel'] == pytest.approx(1)
  assert got['log_10'] == pytest.approx(np.log10(2))
  assert got['a3'] == 0


def test_unknown_pixels_count_nowhere():
  target = jnp.linspace(1, 4, 48).reshape(1, 6, 8).at[0, 2, 3].set(0)
  predicted = target + 0.5
  both = jax.jit(jax.value_and_grad(
      lambda p: depth.scale_invariant(p, target, depth.known(target))
      + depth.gradient(p, target, depth.known(target))))
  wild = predicted.at[0, 2, 3].set(1e30)
  value, grad = both(wild)
  assert value == both(predicted)[0]
  assert jnp.isfinite(grad).all() and grad[0, 2, 3] == 0
  assert not depth_metrics.valid_pixels(np.asarray(target[0]))[2, 3]


def test_nothing_known_is_no_number():
  nothing = np.zeros((4, 4), bool)
  got = depth_metrics.metrics(np.ones((4, 4)), np.zeros((4, 4)), nothing)
  assert all(np.isnan(list(got.values())))
  ones = jnp.ones((1, 4, 4))
  assert depth.scale_invariant(ones, ones, nothing[None]) == 0


def test_bins_reach_both_ends():
  for spacing in ('linear', 'log'):
    values = bins.bins(5, min_depth=0.5, max_depth=8, spacing=spacing)
    np.testing.assert_allclose(values[[0, -1]], [0.5, 8], rtol=1e-6)
  logits = jnp.full((1, 1, 1, 5), -50.0).at[..., 3].set(50.0)
  got = bins.expected_depth(logits, values, normalize='softmax')
  np.testing.assert_allclose(got, [[[values[3]]]], rtol=1e-6)


@pytest.mark.parametrize('call, text', [
    (lambda: bins.bins(3, min_depth=1, max_depth=2, spacing='cubic'), 'cubic'),
    (lambda: bins.expected_depth(jnp.ones((1, 1, 1, 2)), jnp.ones(2),
                                  normalize='max'), 'max'),
    (lambda: depth_metrics.valid_pixels(np.ones((4, 4)), crop='eigen'),
     'nyu_eigen')])
def test_unknown_options_are_named(call, text):
  with pytest.raises(ValueError, match=text):
    call()


def test_groups_of_images_have_statistics_of_their_own():
  rng = np.random.default_rng(0)
  target = rng.uniform(1, 9, (4, 5, 6)).astype(np.float32)
  predicted = target * rng.uniform(0.5, 2, (4, 5, 6)).astype(np.float32)
  predicted[2:] *= 3  # the images differ in scale
  valid = rng.random((4, 5, 6)) < 0.8
  pairs = [depth.scale_invariant(predicted[i:i + 2], target[i:i + 2],
                                 valid[i:i + 2]) for i in (0, 2)]
  got = depth.scale_invariant(predicted, target, valid, group=2)
  np.testing.assert_allclose(got, np.mean(pairs), rtol=1e-6)
  assert abs(got - depth.scale_invariant(predicted, target, valid)) > 1e-3
  # Rows that are padding make a group that counts nowhere.
  padded = depth.scale_invariant(
      *(np.concatenate([x, x[:2]]) for x in (predicted, target)),
      np.concatenate([valid, np.zeros_like(valid[:2])]), group=2)
  np.testing.assert_allclose(padded, got, rtol=1e-6)


def test_alignment_finds_scale_and_shift():
  target = np.linspace(1, 9, 30).reshape(5, 6)
  valid = np.ones((5, 6), bool)
  got, scale_shift = depth_metrics.prepared(
      (target - 0.5) / 2, target, valid, align=True)
  np.testing.assert_allclose(scale_shift, [2, 0.5], rtol=1e-6)
  np.testing.assert_allclose(got, target, rtol=1e-6)
