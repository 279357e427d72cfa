"""Components: three ways agree with the truth, in any order and parts."""

import numpy as np
import pytest

from dinojax.curate import components
from dinojax.curate import copies


def planted():
  """A path, a star, cliques, self-loops, doubled edges, nodes that are alone.

  Returns:
    a, b, number of nodes, smallest node of every component.
  """
  rng = np.random.default_rng(0)
  sizes = {'path': 3000, 'star': 500, 'clique': 70, 'pair': 2, 'alone': 40}
  name, edges, start, groups = {}, [], 0, []
  for kind, size in sizes.items():
    nodes = np.arange(start, start + size)
    if kind == 'path':
      edges += list(zip(nodes[:-1], nodes[1:], strict=True))
    elif kind == 'star':
      edges += [(nodes[0], x) for x in nodes]
    elif kind == 'clique':
      edges += [(x, y) for x in nodes for y in nodes]
    elif kind == 'pair':
      edges += [tuple(nodes)] * 3
    groups += [nodes] if kind != 'alone' else [[x] for x in nodes]
    start += size
  del name
  order = rng.permutation(start)
  a, b = order[np.array(edges)[rng.permutation(len(edges))]].T
  truth = np.empty(start, int)
  for group in groups:
    truth[order[group]] = order[group].min()
  return a, b, start, truth


def in_parts(parts):
  def labels(a, b, num_nodes):
    union = components.Union(num_nodes)
    for part in np.array_split(np.arange(len(a)), parts):
      union.add(a[part], b[part])
    return union.labels()
  return labels


@pytest.mark.parametrize('labels', [
    components.labels, components.by_stars, in_parts(1), in_parts(7),
    in_parts(400)], ids=['memory', 'stars', 'whole', 'seven', 'hundreds'])
def test_all_ways_give_the_truth(labels):
  a, b, num_nodes, truth = planted()
  np.testing.assert_array_equal(labels(a, b, num_nodes), truth)
  none = np.zeros(0, int)
  np.testing.assert_array_equal(labels(none, none, 5), np.arange(5))


def test_random_graphs_agree():
  for seed in range(20):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 300, (2, rng.integers(0, 400)))
    want = components.labels(a, b, 300)
    np.testing.assert_array_equal(in_parts(5)(a, b, 300), want)
    np.testing.assert_array_equal(components.by_stars(b, a, 300), want)


def test_one_of_each_component_stays():
  label = np.array([0, 0, 2, 0, 2])
  assert copies.kept(label).tolist() == [True, False, True, False, False]
  best = copies.kept(label, np.array([1, 5, 3, 5, 4]))
  assert best.tolist() == [False, True, False, False, True]


def test_chains_taint_and_references_do_not_link():
  # Pool 0 … 3, references 4 and 5, which resemble each other.
  a, b = np.array([0, 1, 4, 3]), np.array([1, 4, 5, 3])
  gone = copies.removed(a, b, 4, 2)
  assert gone.direct.tolist() == [False, True, False, False]
  assert gone.transitive.tolist() == [True, True, False, False]
