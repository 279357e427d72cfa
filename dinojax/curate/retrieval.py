"""Images of a pool that resemble those of a set of queries."""

from typing import NamedTuple

import numpy as np

from dinojax.core import errors

POLICIES = ('unique', 'keep_multiplicity')


class Retrieved(NamedTuple):
  """Rows of the pool and why they were taken."""

  rows: np.ndarray  # [r]
  counts: np.ndarray  # [r] how often
  collision_rate: float  # share of what was found that others found before


def of_samples(neighbors: np.ndarray, policy: str = 'unique') -> Retrieved:
  """Nearest rows of every query, put together.

  Args:
    neighbors: [queries, k] rows of the pool; -1: none.
    policy: 'unique', each row once; 'keep_multiplicity', as often as it was
      found. Neighbours without collisions come from `next_nearest`.

  Raises:
    UserError: a policy that is not known.

  Source: DINOv2, appendix A, sample-based retrieval; its counts keep
  multiplicity.
  """
  if policy not in POLICIES:
    raise errors.UserError(
        f'policy={policy!r} is not known: give {" or ".join(POLICIES)}')
  rows, counts = np.unique(neighbors[neighbors >= 0], return_counts=True)
  total = int(counts.sum())
  rate = 1 - len(rows) / total if total else 0.0
  if policy == 'unique':
    counts = np.ones_like(counts)
  return Retrieved(rows, counts, rate)


def next_nearest(ranked: np.ndarray, k: int) -> np.ndarray:
  """The nearest rows that no query before has taken.

  Args:
    ranked: [queries, wide] rows of the pool, nearest first, -1: none. Where a
      query finds all of them taken, a wider list would have had another.
    k: rows of every query.

  Returns:
    [queries, k] rows: for rank 1 to k, for queries in order, the best row that
    nobody has taken; -1 where there is none.
  """
  taken, at = set(), np.zeros(len(ranked), np.int64)
  out = np.full((len(ranked), k), -1, np.int64)
  for rank in range(k):
    for query, near in enumerate(ranked):
      place = at[query]
      while place < len(near) and (near[place] < 0 or near[place] in taken):
        place += 1
      at[query] = place
      if place < len(near):
        out[query, rank] = near[place]
        taken.add(near[place])
  return out


class OfClusters(NamedTuple):
  """Rows near the centroids of clusters that hold many queries."""

  rows: np.ndarray  # [r] clusters in order, in each the nearest first
  clusters: np.ndarray  # [chosen] by falling number of queries
  taken: np.ndarray  # [k] rows of every cluster, before the cap


def of_clusters(query_counts: np.ndarray, clusters: np.ndarray,
                distances: np.ndarray, *, more_than: int = 3,
                per_cluster: int = 10_000,
                cap: int | None = 1_000_000) -> OfClusters:
  """Rows of the clusters in which strictly more than so many queries fall.

  Args:
    query_counts: [k] queries of every cluster.
    clusters: [r] cluster of every row of the pool.
    distances: [r] to its centroid.
    more_than: queries of a cluster that are not enough.
    per_cluster: rows of every cluster, the nearest to its centroid.
    cap: rows in all; clusters with many queries come first.

  Source: DINOv2, appendix A, cluster-based retrieval.
  Differs: the paper does not say which rows of a cluster, nor what a cap
  leaves out.
  """
  query_counts, clusters = np.asarray(query_counts), np.asarray(clusters)
  chosen = np.flatnonzero(query_counts > more_than)
  chosen = chosen[np.argsort(-query_counts[chosen], kind='stable')]
  place = np.full(len(query_counts), len(chosen))
  place[chosen] = np.arange(len(chosen))
  index = np.flatnonzero(place[clusters] < len(chosen))
  order = index[np.lexsort((distances[index], place[clusters[index]]))]
  of = place[clusters[order]]
  start = np.searchsorted(of, np.arange(len(chosen)))
  rows = order[np.arange(len(order)) - start[of] < per_cluster]
  taken = np.bincount(clusters[rows], minlength=len(query_counts))
  return OfClusters(rows[:cap], chosen, taken)
