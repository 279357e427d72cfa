"""Sampling and nearest patches, against plain numpy."""

import jax
import numpy as np
import pytest

from dinojax.evals import letterbox
from dinojax.evals import matching


def test_features_between_patches_are_linear():
  grid = np.stack(np.mgrid[:3, :4][::-1], -1).astype(np.float32)  # (x, y)
  places = np.float32([[0.5, 0.5], [2.0, 1.25], [0.0, 3.0], [4.0, 0.0]])
  np.testing.assert_allclose(
      matching.sample(grid, places),
      [[0, 0], [1.5, 0.75], [0, 2], [3, 0]], atol=1e-6)
  # With corners aligned the edges are the outermost centres.
  np.testing.assert_allclose(
      matching.sample(grid, places, aligned_corners=True),
      [[0.375, 1 / 3], [1.5, 2.5 / 3], [0, 2], [3, 0]], atol=1e-6)


@pytest.mark.parametrize('rows', [3, 20])
def test_the_nearest_are_those_of_a_sort(rows, monkeypatch):
  """In chunks as well, and never one that may not be chosen."""
  monkeypatch.setattr(matching, '_ROWS', 8)
  jax.clear_caches()
  rng = np.random.default_rng(0)
  source, target = (np.asarray(matching.unit(rng.normal(size=(n, 5))))
                    for n in (rows, 30))
  valid = rng.random(30) > 0.3
  index, values = matching.nearest(source, target, valid)
  cosines = np.where(valid, source @ target.T, -np.inf)
  np.testing.assert_array_equal(index, cosines.argmax(1))
  np.testing.assert_allclose(values, -np.sort(-cosines)[:, :2], atol=1e-6)
  jax.clear_caches()


def test_ratios_tell_a_match_from_two_alike():
  weights = matching.ratio_weights(np.float32([[1.0, 0.5], [0.9, 0.9]]))
  np.testing.assert_allclose(weights, [1.0, 0.0], atol=1e-6)


def test_a_letterbox_keeps_proportions():
  box = letterbox.Letterbox((40, 20), 60)
  assert box.inner == (60, 30)
  np.testing.assert_array_equal(box.scale, [1.5, 1.5])
  np.testing.assert_array_equal(
      box.holds(np.array([[59, 29], [59, 30], [0, 0]])), [True, False, True])
