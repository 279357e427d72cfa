"""Hierarchical k-means: clusters of clusters, spread evenly over the images.

Centroids of one pass lie where images are many. Clustering the centroids
again, and clustering equally many images of every cluster again, spreads them
over all that the pool shows.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import io
import math
import os
import pathlib
import time

import jax
import numpy as np

from dinojax.core import atomic
from dinojax.core import errors
from dinojax.curate import kmeans
from dinojax.curate import seeds

_ROWS_OF_FINEST = 80  # of a pool of a hundred million and more
_KEEP_S, _KEEP_SHARE = 60.0, 20  # between states, and of the time to write one
_TRIES, _SMALL = 16, 2**20  # starts of a level with so few rows × clusters
_APART = 10_007  # between the seeds of starts
_EXPONENT = 0.45  # of the number of images: clusters of the top


@dataclasses.dataclass(frozen=True)
class Level:
  """One level of a hierarchy.

  Attributes:
    clusters: their number.
    resamples: how often the level is clustered again.
    points: members of a cluster that enter that, those nearest to its
      centroid.
  """

  clusters: int
  resamples: int = 0
  points: int = 2


@dataclasses.dataclass(frozen=True)
class Fitted:
  """A level.

  Attributes:
    centroids: [k, d] float32.
    labels: [n] int32 cluster of everything that was clustered.
    distances: [n] float32, squared, to the centroid.
  """

  centroids: np.ndarray
  labels: np.ndarray
  distances: np.ndarray

  @property
  def inertia(self) -> float:
    """Sum of the squared distances."""
    return float(self.distances.sum(dtype=np.float64))


def auto_levels(count: int) -> tuple[int, ...]:
  """Numbers of clusters for so many images, the finest level first.

  An image in eighty is the centre of a cluster of the finest level; the top
  has as many clusters as the number of images to the power 0.45; between them
  every level is smaller by the same factor.

  Differs: a rule of ours. It gives 5 levels for 17 billion images and 4 for
  743 million, as the papers have.
  """
  top = max(round(count ** _EXPONENT), 1)
  finest = max(count // _ROWS_OF_FINEST, top)
  number = max(round(math.log10(max(count, 1)) / 2), 1)
  if number == 1 or finest <= top:
    return (top,)
  factor = (top / finest) ** (1 / (number - 1))
  return tuple(round(finest * factor ** i) for i in range(number))


def check(levels: Sequence[Level], count: int, *,
          where: str = 'cluster.levels'):
  """Refuses levels that cannot be.

  Args:
    levels: the finest first.
    count: images.
    where: name of the key, for messages.

  Raises:
    UserError: as many clusters as on the level below, or more.
  """
  below, what = count, 'images'
  for number, level in enumerate(levels, 1):
    if not 1 <= level.clusters < max(below, 2):
      raise errors.UserError(
          f'{where}: level {number} asks for {level.clusters} clusters of '
          f'{below} {what}: give fewer')
    if level.resamples and level.points < 2:
      raise errors.UserError(
          f'{where}: level {number} is clustered again from {level.points} '
          'member of each cluster, as many as there are clusters: give '
          'points=2 or more')
    below, what = level.clusters, 'clusters of the level below'


class State:
  """A level in work, kept in a file for the next start.

  It is written once a minute at most, and takes a twentieth of the time.
  """

  def __init__(self, path: str):
    """Keeps the path."""
    self._path, self._next = path, time.monotonic() + _KEEP_S

  def read(self) -> tuple[int, np.ndarray, kmeans.Begun] | None:
    """Number of the k-means, places of its rows, its state; None: none."""
    if not os.path.exists(self._path):
      return None
    with np.load(self._path) as file:
      return (int(file['run']), file['places'], kmeans.Begun(
          int(file['number']), file['centroids'], float(file['cost'])))

  def keep(self, run: int, places: np.ndarray, begun: kmeans.Begun):
    """Writes a state where it is time to."""
    began = time.monotonic()
    if began < self._next:
      return
    data = io.BytesIO()
    np.savez(data, run=run, places=places, **dataclasses.asdict(begun))
    atomic.write_bytes(self._path, data.getbuffer())
    took = time.monotonic() - began
    self._next = began + max(_KEEP_S, _KEEP_SHARE * took)

  def remove(self):
    """Deletes the file of a level that has ended."""
    pathlib.Path(self._path).unlink(missing_ok=True)


def fit(rows: kmeans.Rows, level: Level, *, iterations: int, seed: int,
        start: str = 'auto', mesh: jax.sharding.Mesh | None = None,
        take: Callable[[np.ndarray], np.ndarray] | None = None,
        passed: Callable[[int, int], None] = lambda run, number: None,
        state: State | None = None) -> Fitted:
  """Clusters one level, and clusters it again from equal parts.

  A small level, as of the centroids of others, is clustered from several
  starts, of which the best counts: chance merges some of its groups.

  Args:
    rows: [n, d] images, or the centroids of the level below.
    level: clusters, and how often again.
    iterations: passes of every k-means.
    seed: number of the draws.
    start: centroids to begin with, see `seeds.initial`.
    mesh: devices.
    take: [r, d] rows at ascending places; None: those of an array.
    passed: gets the number of the k-means and of its pass.
    state: where a level that was stopped goes on.

  Source: Vo et al. 2024, Automatic Data Curation.
  Differs: they have one start, of every level.
  """
  take = take or (lambda places: rows[places])
  some, fitted, places = rows, None, np.zeros(0, np.int64)
  first, begun = 0, None
  if state and (kept := state.read()):
    first, places, begun = kept
    some = take(places) if first else rows
  for run in range(first, level.resamples + 1):
    tries = _TRIES if some.shape[0] * level.clusters <= _SMALL else 1
    best = None
    for number in range(tries):
      got = kmeans.fit(
          some, begun or seeds.initial(
              some, level.clusters, seed=seed + run + _APART * number,
              start=start, mesh=mesh),
          iterations=iterations, mesh=mesh, settle=False,
          passed=lambda number, cost, run=run: passed(run, number),
          keep=functools.partial(state.keep, run, places)
          if state and tries == 1 else lambda begun: None)
      begun = None
      if best is None or got.inertia < best.inertia:
        best = got
    got = best
    labels, distances = kmeans.assign(rows, got.centroids, mesh=mesh)
    fitted = Fitted(got.centroids, labels, distances)
    if run < level.resamples:
      places = np.sort(seeds.members(
          labels, distances, level.clusters, level.points))
      some = take(places)
  return fitted


def flat(levels: Sequence[np.ndarray]) -> list[np.ndarray]:
  """Cluster of every image on every level.

  Args:
    levels: labels of the images on the finest level, of its clusters on the
      next, and so on.
  """
  out = [levels[0]]
  for labels in levels[1:]:
    out.append(labels[out[-1]])
  return out
