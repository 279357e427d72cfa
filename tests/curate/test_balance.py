"""Balanced sampling: sums, spread, caps, and independence of the order."""

import numpy as np
import pytest

from dinojax.curate import balance
from dinojax.curate import draws


def level_by_hand(caps, budget):
  """The largest level whose water fits, one after the other."""
  if sum(caps) <= budget:
    return max(caps, default=0)
  level = 0
  while sum(min(cap, level + 1) for cap in caps) <= budget:
    level += 1
  return level


def test_levels_are_those_of_one_drop_after_the_other():
  rng = np.random.default_rng(0)
  caps, parents, budgets, want = [], [], [], []
  for parent in range(300):
    mine = rng.zipf(1.5, rng.integers(0, 12)).clip(0, 60) - rng.integers(0, 2)
    budget = int(rng.integers(0, mine.sum() + 5))
    caps += mine.tolist()
    parents += [parent] * len(mine)
    budgets.append(budget)
    want.append(level_by_hand(mine.tolist(), budget))
  order = rng.permutation(len(caps))  # children of a parent lie anywhere
  caps, parents = np.array(caps)[order], np.array(parents)[order]
  filled = balance.fill(caps, parents, np.array(budgets))
  np.testing.assert_array_equal(filled.level, want)
  total = np.bincount(parents, filled.base, len(budgets)) + filled.remainder
  np.testing.assert_array_equal(total, np.minimum(
      budgets, np.bincount(parents, caps, len(budgets))))


def hierarchy(seed=0, counts=(2000, 200, 30, 5)):
  rng = np.random.default_rng(seed)
  points, *above = [rng.integers(0, k, n) ** 2 // k
                    for n, k in zip((20_000, *counts), counts, strict=False)]
  return points, above, np.bincount(points, minlength=counts[0])


@pytest.mark.parametrize('budget', [0, 1, 777, 19_999, 20_000, 90_000])
@pytest.mark.parametrize('multiplicity', [1, 3])
def test_every_budget_is_given_once_and_spread_evenly(budget, multiplicity):
  points, above, sizes = hierarchy()
  levels = balance.cluster_budgets(
      sizes, above, budget, multiplicity=multiplicity, seed=4)
  times = balance.point_counts(
      points, levels[0], multiplicity=multiplicity, seed=4)
  total = min(budget, multiplicity * len(points))
  assert times.sum() == total and times.max(initial=0) <= multiplicity
  for level in levels:
    assert level.sum() == total
  np.testing.assert_array_equal(
      np.bincount(points, times, len(sizes)), levels[0])
  flat = np.bincount(above[0], sizes, len(above[1]))
  for parent in np.unique(above[1]):
    got = levels[1][above[1] == parent]
    more_is_there = got < multiplicity * flat[above[1] == parent]
    if more_is_there.any():
      assert got.max() <= got[more_is_there].min() + 1


def test_more_is_never_less():
  points, above, sizes = hierarchy()
  del points
  before = np.zeros(len(sizes), int)
  for budget in range(0, 20_000, 501):
    after = balance.fill(
        np.bincount(above[0], sizes), np.zeros(above[0].max() + 1, int),
        [budget]).base
    assert (after >= before[:len(after)]).all()
    before = after


def test_shards_and_their_order_do_not_matter():
  points, above, sizes = hierarchy()
  budgets = balance.cluster_budgets(sizes, above, 5000, seed=1)[0]
  whole = balance.point_counts(points, budgets, seed=1)
  rows = np.random.default_rng(1).permutation(len(points))
  for part in (rows[points[rows] < 900], rows[points[rows] >= 900]):
    np.testing.assert_array_equal(balance.point_counts(
        points[part], budgets, rows=part, seed=1), whole[part])
  other = balance.point_counts(points, budgets, seed=2)
  assert (other != whole).any() and other.sum() == whole.sum()


def test_the_nearest_are_taken_when_asked():
  distance = np.array([3.0, 1.0, 2.0, 0.5])
  got = balance.point_counts(np.array([0, 0, 0, 1]), np.array([2, 1]),
                             rank=distance)
  assert got.tolist() == [0, 1, 1, 1]


def test_keys_look_random_and_differ_by_stream():
  keys = draws.keys(np.arange(100_000), 7, 1)
  assert len(np.unique(keys)) == len(keys)
  share = np.array([(keys >> np.uint64(bit) & np.uint64(1)).mean()
                    for bit in range(64)])
  assert np.abs(share - 0.5).max() < 0.01
  assert np.abs(np.corrcoef(keys[:-1].astype(float),
                            keys[1:].astype(float))[0, 1]) < 0.02
  assert not np.intersect1d(keys, draws.keys(np.arange(100_000), 7, 2)).size
  assert not np.intersect1d(keys, draws.keys(np.arange(100_000), 8, 1)).size
