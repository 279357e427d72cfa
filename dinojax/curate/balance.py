"""Balanced sampling: a budget is shared like water among vessels.

Every child of a cluster gets the same share unless it is too small; what is
left over goes to some of the others by chance.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dinojax.curate import draws

_CHILDREN, _POINTS = 1, 2  # streams of random numbers


class Shares(NamedTuple):
  """Whole numbers that add up to a budget but for a remainder."""

  level: np.ndarray  # [parents] int64: height of the water
  base: np.ndarray  # [children] int64: min(level, cap)
  remainder: np.ndarray  # [parents] int64: what is still to be given


def fill(caps: np.ndarray, parents: np.ndarray,
         budgets: np.ndarray) -> Shares:
  """Fills the children of every parent to one level.

  Args:
    caps: [children] integers, the most that a child may get.
    parents: [children] integers below the number of parents.
    budgets: [parents] integers, 0 or more.

  Returns:
    The largest level L of every parent with Σ min(L, cap) ≤ budget, the
    largest cap (0 without children) where everything fits, and the shares.

  Source: Vo et al., Automatic Data Curation for Self-Supervised Learning,
  2024, balanced sampling.
  Differs: one sort instead of a bisection for every cluster.
  """
  caps, parents = np.asarray(caps, np.int64), np.asarray(parents, np.int64)
  budgets = np.asarray(budgets, np.int64)
  order = np.lexsort((caps, parents))
  cap, parent = caps[order], parents[order]
  count = np.bincount(parent, minlength=len(budgets))
  first = np.cumsum(count) - count
  total = np.concatenate([[0], np.cumsum(cap)])
  before = total[:-1] - total[first][parent]  # of smaller siblings
  larger = count[parent] - (np.arange(len(cap)) - first[parent])
  # Vessels that are full when the water stands at their brim.
  full = before + cap * larger <= budgets[parent]
  num_full = np.bincount(parent[full], minlength=len(budgets))
  spent = total[first + num_full] - total[first]
  open_ = count - num_full
  brim = np.zeros(len(budgets), np.int64)
  np.maximum.at(brim, parents, caps)
  level = np.where(
      open_ > 0, (budgets - spent) // np.maximum(open_, 1), brim)
  base = np.minimum(level[parents], caps)
  given = spent + level * open_
  remainder = np.where(open_ > 0, budgets - given, 0)
  return Shares(level, base, remainder)


def shares(caps: np.ndarray, parents: np.ndarray, budgets: np.ndarray,
           keys: np.ndarray) -> np.ndarray:
  """Shares of all children; the smallest keys get the remainder.

  Args:
    caps, parents, budgets: see `fill`.
    keys: [children], compared among the children of a parent.

  Returns:
    [children] int64. Those of a parent add up to its budget or to all its
    caps, whichever is smaller.
  """
  filled = fill(caps, parents, budgets)
  lucky = _first_of_each(
      keys, parents, filled.remainder,
      np.asarray(caps) > filled.level[np.asarray(parents)])
  return filled.base + lucky


def cluster_budgets(sizes: np.ndarray, above: Sequence[np.ndarray],
                    budget: int, *, multiplicity: int = 1,
                    seed: int = 0) -> list[np.ndarray]:
  """Shares a budget from the top of a hierarchy down to its finest clusters.

  Args:
    sizes: [k1] images of every cluster of the finest level.
    above: clusters of the clusters below, for every further level: [k1]
      integers below k2, [k2] below k3, and so on.
    budget: images to be drawn in all.
    multiplicity: how often an image may be drawn.
    seed: number of the draw.

  Returns:
    [k] int64 images for every level, the finest first.

  Source: Vo et al. 2024, hierarchical sampling.
  """
  flat = [np.asarray(sizes, np.int64)]
  for level, assignment in enumerate(above):
    count = len(above[level + 1]) if level + 1 < len(above) else (
        assignment.max(initial=-1) + 1)
    flat.append(np.bincount(
        assignment, flat[-1], minlength=count).astype(np.int64))
  out = [np.array([budget], np.int64)]
  for level in reversed(range(len(flat))):
    parents = above[level] if level < len(above) else np.zeros(
        len(flat[level]), np.int64)
    out.insert(0, shares(
        multiplicity * flat[level], parents, out[0], draws.keys(
            np.arange(len(flat[level])), seed, _CHILDREN, level)))
  return out[:-1]


def point_counts(clusters: np.ndarray, budgets: np.ndarray, *,
                 multiplicity: int = 1, rank: np.ndarray | None = None,
                 rows: np.ndarray | None = None, seed: int = 0) -> np.ndarray:
  """How often each image of whole clusters is taken.

  All are taken as often as they may where that fits; otherwise each as often
  as the budget goes into the cluster, and some once more.

  Args:
    clusters: [r] cluster of every image, of the finest level.
    budgets: [k] images of every cluster.
    multiplicity: how often an image may be taken.
    rank: [r], smallest first, such as the distance to the centroid; None: by
      chance.
    rows: [r] numbers of the images in the pool, which chance hangs on; None:
      0, 1, …
    seed: number of the draw.

  Returns:
    [r] int64.
  """
  clusters = np.asarray(clusters, np.int64)
  budgets = np.asarray(budgets, np.int64)
  size = np.maximum(np.bincount(clusters, minlength=len(budgets)), 1)
  whole = multiplicity * size <= budgets
  copies = np.where(whole, multiplicity, budgets // size)
  more = np.where(whole, 0, budgets % size)
  if rank is None:
    rank = draws.keys(
        np.arange(len(clusters)) if rows is None else rows, seed, _POINTS)
  return copies[clusters] + _first_of_each(
      rank, clusters, more, np.ones(len(clusters), bool))


def _first_of_each(keys: np.ndarray, groups: np.ndarray, counts: np.ndarray,
                   candidates: np.ndarray) -> np.ndarray:
  """[r] 1 for the candidates of every group with the smallest keys, else 0."""
  index = np.flatnonzero(candidates & (np.asarray(counts)[groups] > 0))
  order = index[np.lexsort((np.asarray(keys)[index], groups[index]))]
  group = np.asarray(groups)[order]
  new = np.concatenate([[True], group[1:] != group[:-1]])
  start = np.flatnonzero(new[:len(group)])
  place = np.arange(len(group)) - np.repeat(
      start, np.diff(np.concatenate([start, [len(group)]])))
  out = np.zeros(len(keys), np.int64)
  out[order[place < np.asarray(counts)[group]]] = 1
  return out
