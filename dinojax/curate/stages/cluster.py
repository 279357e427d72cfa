"""Cluster: hierarchical k-means of the images that are alive."""

from collections.abc import Sequence
import dataclasses
from typing import Any, Literal

import numpy as np

from dinojax.core import errors
from dinojax.core import fields
from dinojax.curate import hierarchy
from dinojax.curate import seeds
from dinojax.curate import tables
from dinojax.curate.engines import work
from dinojax.curate.stages import base
from dinojax.parallel import mesh as mesh_lib

LEVELS, SIZES, ASSIGNED = 'levels', 'sizes', 'assigned'
_CENTROIDS, _LABELS = 'centroids.npy', 'labels.npy'


@dataclasses.dataclass(frozen=True)
class Settings:
  """A hierarchy of clusters."""

  # Clusters of every level, the finest first; (): as many as suit the images.
  levels: tuple[int, ...] = ()
  # How often each level is clustered again, from equally many images of its
  # clusters; (): never.
  resamples: tuple[int, ...] = ()
  # Images of a cluster that enter that, those nearest to its centroid.
  points: tuple[int, ...] = ()
  iterations: fields.Positive = 50  # Passes of every k-means.
  # Centroids to begin with: random rows, plus_plus (exact, one after the
  # other), parallel (k-means‖), auto: by the sizes.
  start: Literal['auto', 'random', 'plus_plus', 'parallel'] = 'auto'
  seed: fields.Natural = 0  # Number of the draws.


class Cluster(base.Stage):
  """Hierarchical k-means."""

  def phases(self) -> Sequence[work.Phase]:
    """Numbers of clusters, the levels one after the other, assignment."""
    return (work.Phase(SIZES, base.once, self._sizes),
            work.Phase(LEVELS, base.once, self._fit, True),
            work.Phase(ASSIGNED, self.num_shards, self._assigned))

  def settings(self) -> dict[str, Any]:
    """All values.

    Raises:
      UserError: lists of different lengths.
    """
    c = self.config
    lengths = {len(c.levels), *(len(values) for values in (
        c.resamples, c.points) if values)}
    if len(lengths) > 1:
      raise errors.UserError(
          f'cluster.levels={c.levels}, cluster.resamples={c.resamples} and '
          f'cluster.points={c.points} differ in length: give a number for each '
          'level, or leave the last two empty')
    return super().settings()

  def _levels(self, count: int) -> list[hierarchy.Level]:
    """Levels for so many images.

    Raises:
      UserError: levels that cannot be.
    """
    c = self.config
    sizes = c.levels or hierarchy.auto_levels(count)
    resamples, points = (
        values or (default,) * len(sizes)
        for values, default in ((c.resamples, 0), (c.points, 2)))
    out = list(map(hierarchy.Level, sizes, resamples, points))
    hierarchy.check(out, count)
    return out

  def _sizes(self, place: work.Place, index: int) -> work.Counts:
    """Writes how many clusters every level has, and first places of shards."""
    whole = self.vectors(place)
    wanted = self._levels(len(whole))
    fields_ = [field.name for field in dataclasses.fields(hierarchy.Level)]
    tables.write(place.file(SIZES, index), {
        name: np.array([getattr(level, name) for level in wanted])
        for name in fields_})
    tables.write(place.file(SIZES, index, 'starts.parquet'), {
        'start': np.cumsum([0, *map(len, whole.shards)])})
    return {}

  def _fit(self, place: work.Place, index: int) -> work.Counts:
    """Clusters level by level; finished ones are read again."""
    rows, counts = self.vectors(place), {}
    for number, level in enumerate(levels(place)):
      path = lambda name, number=number: place.file(
          LEVELS, index, f'{number}.{name}')
      fitted = hierarchy.fit(
          rows, level, iterations=self.config.iterations, seed=self.config.seed,
          start=self.config.start, mesh=mesh_lib.of_process(),
          take=lambda places, rows=rows: seeds.at(rows, places))
      np.save(path(_LABELS), fitted.labels)
      np.save(path('distances.npy'), fitted.distances)
      np.save(path(_CENTROIDS), fitted.centroids)
      counts[f'clusters_of_level_{number + 1}'] = level.clusters
      rows = fitted.centroids
    return counts

  def _assigned(self, place: work.Place, index: int) -> work.Counts:
    """Clusters of the images of a shard, on every level."""
    starts = tables.read(place.checked(SIZES, 0, 'starts.parquet'))['start']
    part = slice(*starts[index:index + 2].tolist())
    shard = self.vectors(place).shards[index]
    read = lambda number, name: np.load(
        place.checked(LEVELS, 0, f'{number}.{name}'), mmap_mode='r')
    above = [read(number, _LABELS) for number in range(len(levels(place)))]
    flat = hierarchy.flat([np.array(above[0][part]), *above[1:]])
    tables.write(place.file(ASSIGNED, index), {
        'row': shard.rows,
        'distance': np.array(read(0, 'distances.npy')[part]),
        **{f'level_{i + 1}': labels for i, labels in enumerate(flat)}})
    return {'clustered': len(shard)}


def levels(place: work.Place) -> list[hierarchy.Level]:
  """Levels of a hierarchy, the finest first."""
  table = tables.read(place.checked(SIZES, 0))
  return [hierarchy.Level(*map(int, values)) for values in zip(
      *table.values(), strict=True)]


def above(place: work.Place) -> list[np.ndarray]:
  """Clusters of the clusters below, for every level but the finest."""
  return [np.load(place.checked(LEVELS, 0, f'{number}.{_LABELS}'))
          for number in range(1, len(levels(place)))]


def assigned(place: work.Place) -> dict[str, np.ndarray]:
  """row, distance and finest cluster of all images, in order of rows."""
  names = 'row', 'distance', 'level_1'
  parts = [tables.read(place.checked(ASSIGNED, i), names)
           for i in range(place.count(ASSIGNED))]
  return {name: np.concatenate([part[name] for part in parts])
          for name in parts[0]}


def centroids(place: work.Place, number: int = 0) -> np.ndarray:
  """[k, d] float32 centroids of a level, counted from the finest."""
  return np.load(place.checked(LEVELS, 0, f'{number}.{_CENTROIDS}'))
