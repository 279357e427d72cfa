"""Errors of matches, by numbers that are counted by hand."""

import numpy as np
import pytest

from dinojax.metrics import correspondence


def test_places_of_patches():
  index = np.array([0, 5, 11])
  np.testing.assert_array_equal(
      correspondence.patch_places(index, 4, 10.0), [[5, 5], [15, 15], [35, 25]])
  np.testing.assert_array_equal(
      correspondence.patch_places(index, 4, 10.0, 'corner'),
      [[0, 0], [10, 10], [30, 20]])


def test_keypoints_that_are_not_visible_do_not_count():
  error = np.array([0.05, 0.2, -1.0, 0.1, np.nan])
  by_class = correspondence.pck(error, np.array([0, 0, 0, 1, 2]), 0.1)
  assert by_class == {0: 50.0, 1: 0.0}  # less than alpha, not equal to it
  assert correspondence.mean_of_groups(by_class) == 25.0
  assert np.isnan(correspondence.mean_of_groups({}))


def test_a_homography_maps_centres_of_pixels():
  """Twice as large: the first pixel's centre stays the centre of a pixel."""
  twice = np.diag([2.0, 2.0, 1.0])
  np.testing.assert_allclose(
      correspondence.mapped(twice, np.array([[0.5, 0.5], [3.5, 1.5]])),
      [[0.5, 0.5], [6.5, 2.5]])
  away = np.array([[1, 0, 0], [0, 1, 0], [-1.0, 0, 1]])
  assert np.isnan(correspondence.mapped(away, np.array([[5.0, 1]]))).all()


@pytest.mark.parametrize('degrees', [0.0, 30.0, 90.0, 179.0])
def test_the_angle_of_a_pose(degrees):
  a = np.radians(degrees)
  pose = np.array([[np.cos(a), -np.sin(a), 0, 5], [np.sin(a), np.cos(a), 0, 6],
                   [0, 0, 1, 7]])
  assert correspondence.rotation_degrees(pose) == pytest.approx(
      degrees, abs=1e-4)
  np.testing.assert_allclose(
      correspondence.moved(np.zeros((1, 3)), pose), [[5, 6, 7]])


def test_recall_by_bins():
  values, where = np.array([1.0, 0, 0.5]), np.array([0, 29.9, 30])
  np.testing.assert_array_equal(
      correspondence.by_bin(values, where, (0, 30, 60, 90)),
      [0.5, 0.5, np.nan])
  assert correspondence.recall(np.array([0.1, 0.3, np.nan]), 0.2) == 50.0
  assert np.isnan(correspondence.recall(np.array([np.nan]), 0.2))
