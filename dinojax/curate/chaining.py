"""Chains: components whose images need not be alike, measured and cut."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from dinojax.curate import components
from dinojax.curate import neighbors
from dinojax.curate import vectors as vectors_lib

_STEP = 0.05  # between the thresholds at which a component is cut again
_LARGEST, _MEMBERS = 1_000, 512  # components, and images of each, looked at

Edges = tuple[np.ndarray, np.ndarray, np.ndarray]


def cut(above: Callable[[float], Iterable[Edges]], count: int,
        threshold: float, max_component: int) -> np.ndarray:
  """Components of a graph, those that are too large at higher thresholds.

  Args:
    above: edges above a threshold, in parts: ends a and b, and scores.
    count: nodes.
    threshold: scores above it join.
    max_component: nodes of the largest component; 0: any.

  Returns:
    [count] smallest node of the component of every node.
  """
  union = components.Union(count)
  for a, b, _ in above(threshold):
    union.add(a, b)
  label = union.labels()
  while max_component and threshold + _STEP < 1:
    sizes = np.bincount(label, minlength=count)
    large = sizes[label] > max_component
    if not large.any():
      break
    threshold += _STEP
    again = components.Union(count)
    for a, b, _ in above(threshold):
      inside = large[a] & (label[a] == label[b])
      again.add(a[inside], b[inside])
    label = np.where(large, again.labels(), label)
  return label


def diagnose(label: np.ndarray, parts: Sequence[Edges],
             vectors: vectors_lib.Vectors) -> dict[str, np.ndarray]:
  """How alike the images of the largest components are.

  Args:
    label: [n] component of every row.
    parts: edges that joined them.
    vectors: vectors of the rows that are alive.

  Returns:
    Columns, the largest component first: component, size; smallest and mean
    cosine between its images (of 512 of a larger one); smallest score of its
    edges; diameter, the steps between its two farthest images (of a large
    one, a lower bound).
  """
  sizes = np.bincount(label)
  order = np.argsort(-sizes, kind='stable')[:_LARGEST]
  order = order[sizes[order] > 1]
  a, b, score = (np.concatenate(column) for column in zip(
      *parts, strict=True)) if parts else (np.zeros(0, int),) * 3
  rows, names = vectors.rows, ('smallest_cosine', 'mean_cosine',
                               'smallest_edge', 'diameter')
  members = np.flatnonzero(np.isin(label, order))
  members = members[np.argsort(label[members], kind='stable')]
  of_edge = label[a]
  edges = np.flatnonzero(np.isin(of_edge, order) & (of_edge == label[b]))
  edges = edges[np.argsort(of_edge[edges], kind='stable')]
  lines = []
  for number in order.tolist():
    mine = members[slice(*np.searchsorted(
        label[members], (number, number + 1)))]
    inner = edges[slice(*np.searchsorted(
        of_edge[edges], (number, number + 1)))]
    seen = mine[np.isin(mine, rows)][:_MEMBERS]
    unit = neighbors.at(vectors, np.searchsorted(rows, seen))
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    cosine = (unit @ unit.T)[np.triu_indices(len(unit), 1)]
    lines.append((cosine.min(initial=1), cosine.mean() if len(cosine) else 1,
                  score[inner].min(initial=1),
                  diameter(a[inner], b[inner])))
  columns = np.array(lines, np.float64).reshape(-1, len(names))
  return {'component': order, 'size': sizes[order],
          **{name: columns[:, i] for i, name in enumerate(names)}}


def diameter(a: np.ndarray, b: np.ndarray) -> int:
  """Steps between the farthest nodes of a connected graph, or fewer.

  Exact for trees and for small graphs; from the node farthest from some node
  else, which is a lower bound.
  """
  from scipy import sparse
  from scipy.sparse import csgraph
  nodes, inverse = np.unique(np.concatenate([a, b]), return_inverse=True)
  if not len(nodes):
    return 0
  first, second = np.split(inverse, 2)
  graph = sparse.coo_array((np.ones(len(first)), (first, second)),
                           (len(nodes),) * 2).tocsr()
  reach = lambda start: csgraph.shortest_path(
      graph, directed=False, unweighted=True, indices=start)
  if len(nodes) <= _MEMBERS:
    return int(reach(None).max())
  return int(reach(int(reach(0).argmax())).max())
