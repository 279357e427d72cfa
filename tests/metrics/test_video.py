"""J, F and their statistics on masks that are checked by eye."""

import numpy as np
import pytest

from dinojax.metrics import video


def square(top, left, size, shape=(40, 40)):
  out = np.zeros(shape, bool)
  out[top:top + size, left:left + size] = True
  return out


def test_region_of_a_shifted_square():
  truth, mask = square(10, 10, 10), square(10, 15, 10)
  empty = np.zeros_like(truth)
  got = video.region(np.stack([truth, truth, empty, truth]),
                     np.stack([truth, mask, empty, empty]))
  np.testing.assert_allclose(got, [1, 50 / 150, 1, 0])


def test_contour_of_a_shifted_square():
  """Two of four sides lie on the true ones but for a pixel at their ends."""
  truth, mask = square(10, 10, 16)[None], square(10, 16, 16)[None]
  assert video.contour(truth, truth, bound=1) == 1
  assert video.contour(truth, mask, bound=7) == 1
  assert 0.3 < video.contour(truth, mask, bound=1)[0] < 0.75
  empty = np.zeros_like(truth)
  assert video.contour(empty, empty, bound=1) == 1
  assert video.contour(truth, empty) == video.contour(empty, truth) == 0


@pytest.mark.parametrize('radius', [0, 1, 3, 8, 50])
def test_dilation_is_that_by_a_disk(radius):
  rng = np.random.default_rng(radius)
  mask = rng.random((21, 30)) > 0.98
  ys, xs = np.nonzero(mask)
  near = ((np.arange(21)[:, None, None] - ys) ** 2
          + (np.arange(30)[None, :, None] - xs) ** 2) <= radius**2
  np.testing.assert_array_equal(video.dilated(mask, radius), near.any(-1))


def test_statistics_of_a_track_that_is_lost():
  mean, recall, decay = video.statistics(
      np.array([1, 1, 1, 1, 0, 0, 0, 0], float))
  assert (mean, recall) == (0.5, 0.5) and decay == 1.0
  long = np.r_[np.ones(600), np.zeros(600)]  # beyond what a byte counts
  assert video.statistics(long)[2] == 1.0
  assert video.statistics(np.array([0.7])) == (0.7, 1.0, 0.0)
