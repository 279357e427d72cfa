"""Copies: one image of each kind stays, and copies of references go."""

from typing import NamedTuple

import numpy as np

from dinojax.curate import components


def kept(label: np.ndarray, quality: np.ndarray | None = None) -> np.ndarray:
  """One image of every component.

  Args:
    label: [r] smallest row of the component of every image.
    quality: [r], the image with the largest stays, of several the first; None:
      the first image of a component.

  Returns:
    [r] bool.
  """
  label = np.asarray(label)
  if quality is None:
    return label == np.arange(len(label))
  order = np.lexsort((np.arange(len(label)), -np.asarray(quality), label))
  first = np.concatenate([[True], np.diff(label[order]) != 0])[:len(order)]
  out = np.zeros(len(label), bool)
  out[order[first]] = True
  return out


class Removed(NamedTuple):
  """Images of the pool that are copies of references."""

  direct: np.ndarray  # [pool] bool: an edge leads to a reference
  transitive: np.ndarray  # [pool] bool: their component holds a reference


def removed(a: np.ndarray, b: np.ndarray, num_pool: int,
            num_reference: int) -> Removed:
  """Images of the pool that references remove, with and without chains.

  Args:
    a, b: [edges] rows; those of the references come after the pool's.
    num_pool: images of the pool.
    num_reference: images of the references. Edges among them change nothing.

  Source: DINOv2, appendix A, relative deduplication.
  """
  a, b = np.asarray(a), np.asarray(b)
  inside = (a >= num_pool) & (b >= num_pool)
  a, b = a[~inside], b[~inside]
  direct = np.zeros(num_pool, bool)
  for near, far in ((a, b), (b, a)):
    direct[near[far >= num_pool]] = True
  label = components.labels(a, b, num_pool + num_reference)
  tainted = np.zeros(len(label), bool)
  tainted[label[num_pool:]] = True
  return Removed(direct, tainted[label[:num_pool]])
