"""Hierarchies of clusters: levels that suit, even centroids, any mesh."""

import numpy as np
import pytest

from dinojax.core import errors
from dinojax.curate import balance
from dinojax.curate import hierarchy
from dinojax.curate import kmeans
from dinojax.curate import seeds
from dinojax.parallel import mesh as mesh_lib


def concepts(seed=0, count=4000, num=40, width=16):
  """Unit rows of concepts, some of which have many times more than others."""
  rng = np.random.default_rng(seed)
  sizes = np.arange(1, num + 1) ** -1.2
  sizes = np.maximum((sizes / sizes.sum() * count).astype(int), 8)
  centers = rng.normal(size=(num, width))
  of = np.repeat(np.arange(num), sizes)
  rows = centers[of] + 0.25 * rng.normal(size=(len(of), width))
  return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(
      np.float32), of


def divergence(of, taken, num=40):
  """Kullback–Leibler divergence of the concepts taken from equal shares."""
  share = np.bincount(of, taken, num) / taken.sum()
  share = share[share > 0]
  return float((share * np.log(share * num)).sum())


def sampled(rows, levels, images=400, seed=0):
  labels, at = [], rows
  for level in levels:
    fitted = hierarchy.fit(at, level, iterations=8, seed=seed)
    labels.append(fitted.labels)
    at = fitted.centroids
  sizes = np.bincount(labels[0], minlength=levels[0].clusters)
  budgets = balance.cluster_budgets(sizes, labels[1:], images, seed=seed)
  return balance.point_counts(labels[0], budgets[0], seed=seed)


def test_two_levels_spread_over_concepts_as_one_does_not():
  rows, of = concepts()
  pool = divergence(of, np.ones(len(of)))
  one = divergence(of, sampled(rows, [hierarchy.Level(200)]))
  two = divergence(of, sampled(
      rows, [hierarchy.Level(200), hierarchy.Level(40)]))
  assert two < 0.5 * one < 0.5 * pool


@pytest.mark.slow  # half a minute; two levels and their spread are in make test
def test_clustering_again_from_equal_parts_leaves_dense_ones_less():
  rows, _ = concepts(count=3000)
  plain = hierarchy.fit(rows, hierarchy.Level(60), iterations=20, seed=0)
  again = hierarchy.fit(
      rows, hierarchy.Level(60, resamples=4, points=3), iterations=20, seed=0)
  # Fewer centroids in the dense parts: those have larger clusters then.
  assert np.bincount(again.labels).max() > np.bincount(plain.labels).max()
  assert again.inertia > plain.inertia


def test_of_several_starts_the_best_counts(monkeypatch):
  rows, _ = concepts(count=800)
  several = hierarchy.fit(rows, hierarchy.Level(40), iterations=20, seed=0)
  monkeypatch.setattr(hierarchy, '_SMALL', 0)
  alone = [hierarchy.fit(rows, hierarchy.Level(40), iterations=20, seed=seed)
           for seed in (0, hierarchy._APART)]
  assert several.inertia < min(x.inertia for x in alone) * 1.0001
  assert alone[0].inertia != alone[1].inertia


def test_mesh_changes_no_label():
  rows, _ = concepts(count=1000)
  level = hierarchy.Level(30)
  want = hierarchy.fit(rows, level, iterations=5, seed=1)
  got = hierarchy.fit(rows, level, iterations=5, seed=1,
                      mesh=mesh_lib.make(4, 2))
  np.testing.assert_array_equal(got.labels, want.labels)


class Killed(Exception):
  """Stands for the end of a process."""


@pytest.mark.parametrize('where', [(0, 3), (1, 0), (2, 4)])
def test_a_level_that_was_stopped_goes_on_to_the_same_end(
    where, tmp_path, monkeypatch):
  monkeypatch.setattr(hierarchy, '_SMALL', 0)  # as of one that takes long
  monkeypatch.setattr(hierarchy, '_KEEP_S', 0)
  monkeypatch.setattr(hierarchy, '_KEEP_SHARE', 0)
  rows, _ = concepts(count=1000)
  level = hierarchy.Level(20, resamples=2, points=5)
  want = hierarchy.fit(rows, level, iterations=6, seed=1)
  seen = []

  def passed(run, number):
    seen.append((run, number))
    if (run, number) == where and len(seen) <= 6 * run + number + 1:
      raise Killed

  state = hierarchy.State(str(tmp_path / 'state.npz'))
  fit = lambda: hierarchy.fit(rows, level, iterations=6, seed=1, state=state,
                              passed=passed)
  with pytest.raises(Killed):
    fit()
  got = fit()
  assert seen.count(where) == 2 and seen.count((0, 0)) == 1
  for name in ('centroids', 'labels', 'distances'):
    np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
  state.remove()
  assert state.read() is None


@pytest.mark.parametrize('start', seeds.STARTS)
def test_starts_are_rows_apart_from_each_other(start):
  rows, of = concepts()
  initial = seeds.initial(rows, 40, seed=3, start=start)
  place = (rows[None] == initial[:, None]).all(-1).argmax(1)
  assert (rows[place] == initial).all()  # rows all
  assert len(np.unique(place)) == 40
  np.testing.assert_array_equal(
      initial, seeds.initial(rows, 40, seed=3, start=start))
  if start != 'random':
    assert len(np.unique(of[place])) > len(np.unique(of[
        (rows[None] == seeds.initial(rows, 40, seed=3, start='random')[
            :, None]).all(-1).argmax(1)]))


def test_parallel_starts_are_as_good_as_exact_ones():
  rows, _ = concepts()
  cost = {start: np.mean([kmeans.fit(
      rows, seeds.initial(rows, 40, seed=seed, start=start),
      iterations=10).inertia for seed in range(3)])
          for start in ('random', 'plus_plus', 'parallel')}
  assert cost['parallel'] < 1.1 * cost['plus_plus']
  assert cost['parallel'] < cost['random']


def test_few_different_rows_are_starts_too():
  rows = np.repeat(np.eye(3, dtype=np.float32), 10, axis=0)
  assert seeds.initial(rows, 5, start='parallel').shape == (5, 3)
  assert seeds.initial(rows, 30).shape == (30, 3)
  with pytest.raises(errors.UserError, match='at most 30'):
    seeds.initial(rows, 31)
  with pytest.raises(errors.UserError, match='is not known'):
    seeds.initial(rows, 3, start='best')


def test_levels_suit_the_number_of_images():
  for count in (1, 20, 300, 20_000, 1_000_000, 743_000_000, 17_000_000_000):
    levels = hierarchy.auto_levels(count)
    assert list(levels) == sorted(levels, reverse=True)
    assert levels[0] <= count and levels[-1] >= 1
    hierarchy.check(list(map(hierarchy.Level, levels)), max(count, 2))
  assert len(hierarchy.auto_levels(17_000_000_000)) == 5
  assert len(hierarchy.auto_levels(743_000_000)) == 4
  assert hierarchy.auto_levels(17_000_000_000)[0] == 212_500_000


@pytest.mark.parametrize('levels, words', [
    ([(10,), (10,)], 'level 2 asks for 10 clusters of 10'),
    ([(101,)], 'level 1 asks for 101 clusters of 100 images'),
    ([(0,)], 'level 1 asks for 0'),
    ([(10, 2, 1)], 'give points=2')])
def test_levels_that_cannot_be_are_refused(levels, words):
  with pytest.raises(errors.UserError, match=words):
    hierarchy.check([hierarchy.Level(*level) for level in levels], 100)
