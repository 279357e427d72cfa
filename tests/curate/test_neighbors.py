"""Graphs of near images: planted cosines, chains, cliques larger than k."""

import pathlib

import numpy as np
import pytest

from dinojax.curate import chaining
from dinojax.curate import components
from dinojax.curate import neighbors
from dinojax.curate import vectors
from dinojax.curate.engines import work


def unit(rows):
  return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def with_cosine(rng, row, cosine):
  """A unit row at an angle to another one."""
  other = rng.normal(size=row.shape)
  other -= other @ row * row
  return cosine * row + np.sqrt(1 - cosine ** 2) * unit(other[None])[0]


def planted(width=128, seed=0):
  """Rows, and the pairs (a, b, cosine) that were planted."""
  rng = np.random.default_rng(seed)
  rows, pairs = list(unit(rng.normal(size=(50, width)))), []
  for cosine in (0.7, 0.5, 0.3):
    for i in range(10):
      pairs.append((i, len(rows), cosine))
      rows.append(with_cosine(rng, rows[i], cosine))
  start = len(rows)  # a chain: a–b and b–c are near, a–c is not
  a = unit(rng.normal(size=(1, width)))[0]
  b = with_cosine(rng, a, 0.65)
  c = 2 * (a @ b) * b - a
  rows += [a, b, c]
  pairs += [(start, start + 1, 0.65), (start + 1, start + 2, 0.65)]
  clique = unit(unit(rng.normal(size=(1, width))) + 0.01 * rng.normal(
      size=(200, width)))
  first = len(rows)
  rows += list(clique)
  return np.array(rows), pairs, start, first


def table(tmp_path, rows, shards=3):
  """Vectors on the disk, as the stage describe leaves them."""
  place = work.Place(str(tmp_path))
  parts, first = np.array_split(np.arange(len(rows)), shards), 0
  (tmp_path / vectors.VECTORS).mkdir(parents=True, exist_ok=True)
  out = []
  for i, part in enumerate(parts):
    vectors.write(place, i, part, rows[part])
    out.append(vectors.Shard(place, i, np.ones(len(part), bool), first))
    first += len(part)
  return vectors.Vectors(out)


def graph(whole, search, k=64, floor=0.45):
  found = [neighbors.edges(shard.read(), shard.rows, whole.rows, search, k=k,
                           floor=floor) for shard in whole.shards]
  return tuple(np.concatenate([part[name] for part in found])
               for name in ('a', 'b', 'score'))


def label(a, b, score, count, threshold):
  over = score > threshold
  return components.labels(a[over], b[over], count)


def test_planted_pairs_chains_and_cliques_are_found(tmp_path):
  rows, pairs, chain, clique = planted()
  whole = table(tmp_path, rows)
  a, b, score = graph(whole, neighbors.exact(whole))
  strict = label(a, b, score, len(rows), 0.6)
  loose = label(a, b, score, len(rows), 0.45)
  for i, j, cosine in pairs:
    assert (strict[i] == strict[j]) == (cosine > 0.6), (i, j, cosine)
    assert (loose[i] == loose[j]) == (cosine > 0.45), (i, j, cosine)
  # The ends of the chain are not near, and are joined all the same.
  assert rows[chain] @ rows[chain + 2] < 0 and strict[chain] == strict[
      chain + 2]
  # 200 copies of each other with 64 neighbours each are one component.
  assert (strict[clique:] == clique).all()
  assert (a < b).all() and len(np.unique(strict)) == len(rows) - 10 - 2 - 199


def test_blocks_and_ties_change_nothing(tmp_path, monkeypatch):
  rows, *_ = planted()
  rows = np.concatenate([rows, rows[:20]])  # ties
  whole = table(tmp_path, rows)
  score, place = neighbors.exact(whole)(rows.astype(np.float16), 5)
  monkeypatch.setattr(neighbors, '_BLOCK', 37)
  other = neighbors.exact(whole)(rows.astype(np.float16), 5)
  np.testing.assert_allclose(other[0], score, atol=1e-6)
  stored = whole[:].astype(np.float32)
  want = np.sort(stored @ stored.T, axis=1)[:, ::-1][:, :5]
  np.testing.assert_allclose(score, want, atol=1e-5)
  few = neighbors.exact(whole)(rows[:3], len(rows) + 4)
  assert (few[1][:, -4:] == -1).all() and (few[0][:, -4:] == -np.inf).all()


def test_an_inverted_file_finds_most_edges(tmp_path):
  rng = np.random.default_rng(0)
  rows = unit(rng.normal(size=(3000, 32)))
  rows = np.concatenate([rows, unit(rows[:500] + 0.05 * rng.normal(
      size=(500, 32)))])
  whole = table(tmp_path, rows)
  path = str(tmp_path / 'index')
  neighbors.build(whole, path)
  same = pathlib.Path(path).read_bytes()
  neighbors.build(whole, path)
  assert pathlib.Path(path).read_bytes() == same
  pairs = lambda search: set(zip(*(x.tolist() for x in graph(
      whole, search, k=8, floor=0.8)[:2]), strict=True))
  exact = pairs(neighbors.exact(whole))
  some = pairs(neighbors.inverted(path, 8))
  assert len(exact) >= 500 and some <= exact
  assert len(some) > 0.9 * len(exact)
  assert len(pairs(neighbors.inverted(path, 1))) < len(some)


def test_vectors_leave_out_what_is_not_alive(tmp_path):
  rows = unit(np.random.default_rng(0).normal(size=(30, 4)))
  table(tmp_path, rows)
  place = work.Place(str(tmp_path))
  alive = np.random.default_rng(1).random(30) < 0.5
  whole = vectors.Vectors([
      vectors.Shard(place, i, alive[10 * i:10 * i + 10], 10 * i)
      for i in range(3)])
  np.testing.assert_array_equal(whole.rows, np.flatnonzero(alive))
  np.testing.assert_array_equal(whole[:], rows[alive].astype(np.float16))
  np.testing.assert_array_equal(whole[3:9], whole[:][3:9])
  assert whole[5:5].shape == (0, 4)
  np.testing.assert_array_equal(
      neighbors.at(whole, np.array([0, 4, 7])), whole[:][[0, 4, 7]])


def test_large_components_are_measured_and_cut(tmp_path):
  rng = np.random.default_rng(0)
  step = np.arccos(0.7)
  chain = np.stack([np.cos(step * np.arange(4)), np.sin(
      step * np.arange(4))], 1)
  near = unit(np.array([[1, 0]]) + 0.01 * rng.normal(size=(3, 2)))
  rows = np.zeros((7, 4))
  rows[:4, :2], rows[4:, 2:] = chain, near
  whole = table(tmp_path, rows, shards=1)
  edges = graph(whole, neighbors.exact(whole), floor=0.4)
  above = lambda threshold: [tuple(x[edges[2] > threshold] for x in edges)]
  got = chaining.cut(above, 7, 0.6, 0)
  np.testing.assert_array_equal(got, [0, 0, 0, 0, 4, 4, 4])
  told = chaining.diagnose(got, above(0.6), whole)
  assert told['component'].tolist() == [0, 4]
  assert told['diameter'].tolist() == [3, 1]
  assert told['smallest_cosine'][0] < -0.4 and told['smallest_cosine'][1] > 0.9
  assert told['smallest_edge'][0] == pytest.approx(0.7, abs=2e-3)
  # At most three: the chain falls apart at 0.7, the near ones stay.
  cut = chaining.cut(above, 7, 0.6, 3)
  np.testing.assert_array_equal(cut, [0, 1, 2, 3, 4, 4, 4])
