"""Connected components of a graph of images, by their smallest row.

Three ways that agree: `labels` of a graph in memory, `Union` of edges that
come in parts beside one array of labels, and `large_star` and `small_star`
for edges that no single machine holds.
"""

import numpy as np

_BLOCK = 2**18  # edges, or nodes, at a time


def labels(a: np.ndarray, b: np.ndarray, num_nodes: int) -> np.ndarray:
  """Smallest node of the component of every node, in memory.

  Args:
    a, b: [edges] integers, the ends of every edge, in any order; edges may
      occur several times, and from a node to itself.
    num_nodes: nodes, those without edges included.

  Returns:
    [num_nodes] int64.
  """
  from scipy import sparse  # a quarter second
  from scipy.sparse import csgraph
  graph = sparse.coo_array(
      (np.ones(len(a), bool), (a, b)), (num_nodes, num_nodes))
  count, component = csgraph.connected_components(graph, directed=False)
  smallest = np.full(count, num_nodes, np.int64)
  # Later writes win: from the last node to the first.
  smallest[component[::-1]] = np.arange(num_nodes)[::-1]
  return smallest[component]


class Union:
  """Components of edges that come in parts.

  Memory: the array of labels, and little more.
  """

  def __init__(self, num_nodes: int):
    """Begins with nodes that are alone."""
    # A node that is no root points to a smaller node of its component.
    self._parent = np.arange(
        num_nodes, dtype=np.int32 if num_nodes < 2**31 else np.int64)

  def add(self, a: np.ndarray, b: np.ndarray):
    """Joins the ends [edges] of every edge."""
    for start in range(0, len(a), _BLOCK):
      self._add(a[start:start + _BLOCK], b[start:start + _BLOCK])

  def _add(self, a: np.ndarray, b: np.ndarray):
    """Joins the ends of few edges."""
    a, b = self._roots(a), self._roots(b)
    apart = a != b
    a, b = a[apart], b[apart]
    roots, inverse = np.unique(np.concatenate([a, b]), return_inverse=True)
    first, second = np.split(inverse, 2)
    self._parent[roots] = roots[labels(first, second, len(roots))]

  def labels(self) -> np.ndarray:
    """[num_nodes] smallest node of the component of every node."""
    parent, changed = self._parent, True
    while changed:
      changed = False
      for start in range(0, len(parent), _BLOCK):
        part = parent[start:start + _BLOCK]
        above = parent[part]
        changed |= bool((above != part).any())
        parent[start:start + _BLOCK] = above
    return parent

  def _roots(self, nodes: np.ndarray) -> np.ndarray:
    """Roots of nodes, which point to them from now on."""
    nodes = np.asarray(nodes)
    at = self._parent[nodes]
    while True:
      above = self._parent[at]
      if (above == at).all():
        break
      at = above
    self._parent[nodes] = at
    return at


def large_star(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Links the larger neighbours of every node to its smallest neighbour.

  Args:
    a, b: [edges] ends. All edges of a node are in one call: a partition holds
      every edge, in both directions, of the nodes that it is for.

  Returns:
    Edges [e] from larger to smaller nodes, each once.

  Source: Kiveris et al., Connected Components in MapReduce and Beyond, 2014.
  """
  node, near = np.concatenate([a, b]), np.concatenate([b, a])
  return _linked(node, near, near > node)


def small_star(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Links the smaller neighbours of every node, and it, to the smallest.

  Args:
    a, b: [edges] ends; a partition holds all edges of its larger ends.

  Returns:
    Edges [e] from larger to smaller nodes, each once.

  Source: Kiveris et al. 2014.
  """
  node, near = np.maximum(a, b), np.minimum(a, b)
  return _linked(node, near, np.ones(len(node), bool), themselves=True)


def _linked(node, near, moved, themselves=False):
  """Edges from neighbours that are moved to the smallest one of their node."""
  nodes, group = np.unique(node, return_inverse=True)
  smallest = nodes.copy()  # a node is a neighbour of its own
  np.minimum.at(smallest, group, near)
  larger, smaller = near[moved], smallest[group[moved]]
  if themselves:
    larger = np.concatenate([larger, nodes])
    smaller = np.concatenate([smaller, smallest])
  apart = larger != smaller
  edges = np.unique(np.stack([larger[apart], smaller[apart]]), axis=1)
  return edges[0], edges[1]


def by_stars(a: np.ndarray, b: np.ndarray, num_nodes: int) -> np.ndarray:
  """Components by rounds of stars, as `labels`; the oracle of the rounds.

  Every round is two shuffles of edges by a node on a cluster.
  """
  while True:
    before = (a, b)
    a, b = small_star(*large_star(a, b))
    if len(a) == len(before[0]) and (a == before[0]).all() and (
        b == before[1]).all():
      break
  out = np.arange(num_nodes)
  out[a] = b
  return out
