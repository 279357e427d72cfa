"""Cluster: hierarchical k-means of the images that are alive.

Every level is a phase, and a level in work keeps its state. Where the finest
one is made by dividing clusters, their rows are brought together in files, and
every part is divided by itself.
"""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any, Literal

import numpy as np

from dinojax.core import errors
from dinojax.core import fields
from dinojax.core import log
from dinojax.curate import hierarchy
from dinojax.curate import seeds
from dinojax.curate import splitting
from dinojax.curate import tables
from dinojax.curate.engines import work
from dinojax.curate.stages import base
from dinojax.parallel import mesh as mesh_lib

SIZES, LEVEL, GATHERED, DIVIDED, ASSIGNED = (
    'sizes', 'level_{}', 'gathered', 'divided', 'assigned')
_MOST_LEVELS = 8
_CENTROIDS, _LABELS, _DISTANCES, _STATE, _VECTORS = (
    'centroids.npy', 'labels.npy', 'distances.npy', 'state.npz', 'vectors.npy')


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
  # Clusters into which each of a coarser k-means is divided for the finest
  # level, which has as many as levels says, or a few less; 0: that is one
  # k-means. For levels of more than some million clusters.
  split: fields.Natural = 0
  iterations: fields.Positive = 50  # Passes of every k-means.
  # Centroids to begin with: random rows, plus_plus (exact, one after the
  # other), parallel (k-means‖), auto: by the sizes.
  start: Literal['auto', 'random', 'plus_plus', 'parallel'] = 'auto'
  seed: fields.Natural = 0  # Number of the draws.


class Cluster(base.Stage):
  """Hierarchical k-means."""

  def phases(self) -> Sequence[work.Phase]:
    """Numbers of clusters, the levels one after the other, assignment."""
    split = self.config.split > 1
    fit = lambda number: work.Phase(
        LEVEL.format(number + 1), functools.partial(_has_level, number),
        functools.partial(self._fit, number), True)
    return (work.Phase(SIZES, base.once, self._sizes), fit(0),
            *([work.Phase(GATHERED, self.num_shards, self._gather),
               work.Phase(DIVIDED, self._num_parts, self._divide)]
              if split else []),
            *map(fit, range(1, _MOST_LEVELS)),
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
    if len(c.levels) > _MOST_LEVELS:
      raise errors.UserError(
          f'cluster.levels has {len(c.levels)} levels: give at most '
          f'{_MOST_LEVELS}')
    if c.split > 1 and (not c.levels or c.levels[0] % c.split or any(
        c.resamples[:1])):
      raise errors.UserError(
          f'cluster.split={c.split} with cluster.levels={c.levels} and '
          f'cluster.resamples={c.resamples}: give levels of which the first is '
          'a multiple of it and is not clustered again')
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

  def _fit(self, number: int, place: work.Place, index: int
           ) -> work.Counts:
    """Clusters the images, or the centroids of the level below."""
    level, split = levels(place)[number], max(self.config.split, 1)
    if number == 0:
      level = dataclasses.replace(level, clusters=level.clusters // split)
    rows = centroids(place, number - 1) if number else self.vectors(place)
    path = functools.partial(place.file, LEVEL.format(number + 1), index)
    state = hierarchy.State(path(_STATE))
    hierarchy.check([level], rows.shape[0])
    bar = log.Bar((level.resamples + 1) * (self.config.iterations + 1),
                  unit=f'passes of level {number + 1}')
    with bar:
      fitted = hierarchy.fit(
          rows, level, iterations=self.config.iterations,
          seed=self.config.seed, start=self.config.start,
          mesh=mesh_lib.accelerators(),
          take=lambda places: seeds.at(rows, places), state=state,
          passed=lambda run, passage: bar.show(
              run * (self.config.iterations + 1) + passage + 1))
    np.save(path(_LABELS), fitted.labels)
    np.save(path(_DISTANCES), fitted.distances)
    np.save(path(_CENTROIDS), fitted.centroids)
    state.remove()
    return {f'clusters_of_level_{number + 1}': level.clusters * (
        split if number == 0 else 1)}

  def _part(self, place: work.Place, index: int) -> slice:
    """Places of the images of a shard among those that are clustered."""
    starts = tables.read(place.checked(SIZES, 0, 'starts.parquet'))['start']
    return slice(*starts[index:index + 2].tolist())

  def _parts(self, place: work.Place) -> list[range]:
    """Clusters of every part that is divided."""
    return splitting.parts(
        np.bincount(_of_level(place, 0, _LABELS), minlength=len(
            _of_level(place, 0, _CENTROIDS))), self._width(place))

  def _width(self, place: work.Place) -> int:
    return _of_level(place, 0, _CENTROIDS).shape[1]

  def _num_parts(self, place: work.Place) -> int:
    return len(self._parts(place))

  def _gather(self, place: work.Place, index: int) -> work.Counts:
    """Vectors of a shard in the order of their clusters."""
    label = np.array(_of_level(place, 0, _LABELS)[self._part(place, index)])
    order = np.argsort(label, kind='stable')
    np.save(place.file(GATHERED, index, _VECTORS),
            self.shard(place, index).read()[order])
    tables.write(place.file(GATHERED, index), {'label': label[order]})
    return {}

  def _divide(self, place: work.Place, index: int) -> work.Counts:
    """Divides the clusters of a part."""
    mine, vectors, labels = self._parts(place)[index], [], []
    for shard in range(place.count(GATHERED)):
      label = tables.read(place.checked(GATHERED, shard))['label']
      inside = slice(*np.searchsorted(label, (mine.start, mine.stop)))
      labels.append(label[inside])
      vectors.append(np.array(np.load(place.checked(
          GATHERED, shard, _VECTORS), mmap_mode='r')[inside]))
    width = self._width(place)
    divided = splitting.divide(
        np.concatenate([x.reshape(-1, width) for x in vectors]),
        np.concatenate(labels), self.config.split,
        iterations=self.config.iterations, seed=self.config.seed)
    np.save(place.file(DIVIDED, index, _CENTROIDS), divided.centroids)
    np.save(place.file(DIVIDED, index, _LABELS), divided.labels)
    np.save(place.file(DIVIDED, index, _DISTANCES), divided.distances)
    tables.write(place.file(DIVIDED, index), {
        'start': np.cumsum([0, *map(len, labels)])})
    return {'divided_clusters': len(divided.centroids)}

  def _finest(self, place: work.Place, index: int
              ) -> tuple[np.ndarray, np.ndarray]:
    """Clusters of the finest level of a shard's images, and distances."""
    part = self._part(place, index)
    label = np.array(_of_level(place, 0, _LABELS)[part])
    if self.config.split <= 1:
      return label, np.array(_of_level(place, 0, _DISTANCES)[part])
    out, first = ([], []), 0
    for number in range(place.count(DIVIDED)):
      start, stop = tables.read(place.checked(DIVIDED, number))[
          'start'][index:index + 2].tolist()
      read = lambda name, number=number: np.load(
          place.checked(DIVIDED, number, name), mmap_mode='r')
      out[0].append(read(_LABELS)[start:stop] + np.int32(first))
      out[1].append(read(_DISTANCES)[start:stop])
      first += len(read(_CENTROIDS))
    back = np.argsort(np.argsort(label, kind='stable'), kind='stable')
    return tuple(np.concatenate(values)[back] for values in out)

  def _assigned(self, place: work.Place, index: int) -> work.Counts:
    """Clusters of the images of a shard, on every level."""
    shard = self.shard(place, index)
    finest, distance = self._finest(place, index)
    flat = hierarchy.flat([finest, *above(place)])
    tables.write(place.file(ASSIGNED, index), {
        'row': shard.rows, 'distance': distance,
        **{f'level_{i + 1}': labels for i, labels in enumerate(flat)}})
    return {'clustered': len(shard)}


def _has_level(number: int, place: work.Place) -> int:
  return int(number < len(levels(place)))


def _of_level(place: work.Place, number: int, name: str) -> np.ndarray:
  """An array that a level left, mapped from the disk."""
  return np.load(place.checked(LEVEL.format(number + 1), 0, name),
                 mmap_mode='r')


def levels(place: work.Place) -> list[hierarchy.Level]:
  """Levels of a hierarchy, the finest first."""
  table = tables.read(place.checked(SIZES, 0))
  return [hierarchy.Level(*map(int, values)) for values in zip(
      *table.values(), strict=True)]


def above(place: work.Place) -> list[np.ndarray]:
  """Clusters of the clusters below, for every level but the finest."""
  return [np.array(_of_level(place, number, _LABELS))
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
  divided = 0 if number else place.count(DIVIDED)
  if divided:
    return np.concatenate([np.load(place.checked(DIVIDED, i, _CENTROIDS))
                           for i in range(divided)])
  return np.array(_of_level(place, number, _CENTROIDS))
