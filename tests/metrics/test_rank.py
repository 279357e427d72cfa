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
