"""Effective rank, where the answer is known."""

import numpy as np
import pytest

from dinojax.metrics import rank


def test_one_direction_has_rank_one():
  features = np.outer(np.random.default_rng(0).normal(size=50), np.ones(8))
  assert rank.rankme(features + 3.0) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize('rows', [400, 6])
def test_all_directions_alike_have_full_rank(rows):
  """Rows of both signs along each axis; fewer rows than axes, too."""
  axes = np.eye(3)
  features = np.tile(np.concatenate([axes, -axes]), (rows // 6, 1)) + 7.0
  assert rank.rankme(features) == pytest.approx(3, abs=1e-4)
  wide = np.concatenate([features, np.full((len(features), 20), 2.0)], axis=1)
  assert rank.rankme(wide) == pytest.approx(3, abs=1e-3)


def test_scale_and_place_change_nothing():
  features = np.random.default_rng(1).normal(size=(60, 5)) * [5, 3, 1, 1, 0.1]
  assert rank.rankme(100 * features - 4) == pytest.approx(
      rank.rankme(features))
  assert 1 < rank.rankme(features) < 5


def test_lidar_of_images_along_a_line_is_one():
  rng = np.random.default_rng(2)
  centers = np.outer(rng.normal(size=200), [1, 0, 0, 0])
  views = centers[:, None] + 0.01 * rng.normal(size=(200, 10, 4))
  assert rank.lidar(views) == pytest.approx(1, abs=0.01)


def test_lidar_of_images_in_all_directions_is_the_width():
  axes = np.concatenate([np.eye(4), -np.eye(4)])
  sway = np.stack([axes, -axes], 0).reshape(-1, 4)  # alike in all directions
  views = np.tile(axes, (30, 1))[:, None] + 0.1 * sway[None]
  assert rank.lidar(views) == pytest.approx(4, abs=1e-3)


def test_lidar_counts_what_views_keep_not_what_is_long():
  """A long axis on which views differ as images do tells nothing apart."""
  rng = np.random.default_rng(3)
  centers = rng.normal(size=(500, 3)) * [1, 1, 0]
  views = centers[:, None] + rng.normal(size=(500, 20, 3)) * [
      1e-3, 1e-3, 100.0]
  assert rank.lidar(views) == pytest.approx(2, abs=0.05)
  assert rank.rankme(views.reshape(-1, 3)) < 1.5
