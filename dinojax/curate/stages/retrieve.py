"""Retrieve: images of the pool that resemble those of chosen sets.

By samples: the nearest of every query. By clusters: of every cluster into
which several queries fall, the images nearest to its centroid; that is for
sets too small to be searched for one by one.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any, Literal

import numpy as np

from dinojax.core import errors
from dinojax.core import fields
from dinojax.curate import describers
from dinojax.curate import hierarchy
from dinojax.curate import kmeans
from dinojax.curate import neighbors
from dinojax.curate import references
from dinojax.curate import retrieval
from dinojax.curate import seeds
from dinojax.curate import selections
from dinojax.curate import tables
from dinojax.curate.engines import work
from dinojax.curate.stages import base
from dinojax.parallel import mesh as mesh_lib

QUERIES, CLUSTERS, NEAREST, CHOSEN = (
    'queries', 'clusters', 'nearest', 'chosen')
_WIDER = 8  # times as many neighbours, where taken ones are passed over
BLOCK = 65_536  # queries of a task, which goes through all of the pool
_CENTROIDS, _LABELS, _DISTANCES = (
    f'{name}.npy' for name in ('centroids', 'labels', 'distances'))


@dataclasses.dataclass(frozen=True)
class Settings:
  """Sets of images, and how many like them are taken."""

  # Sources with the number of nearest images of each query.
  samples: tuple[tuple[str, fields.Positive], ...] = ()
  # An image that several queries find: taken once; as often as it is found;
  # or the later query takes its next nearest.
  on_collision: Literal['unique', 'keep_multiplicity', 'next_nearest'] = (
      'unique')
  # Sources with the number of images of every cluster.
  clusters: tuple[tuple[str, fields.Positive], ...] = ()
  num_clusters: fields.Positive = 100_000  # Clusters of the pool.
  more_than: fields.Natural = 3  # Queries of a cluster that are too few.
  cap: fields.Positive = 1_000_000  # Images that clusters give a source.
  iterations: fields.Positive = 50  # Passes of k-means.
  seed: fields.Natural = 0  # Number of its draws.


@dataclasses.dataclass(frozen=True)
class Retrieve(base.Stage):
  """Selections by queries.

  Attributes:
    describer: describes queries as the pool was described.
  """

  describer: describers.Describer = None

  def settings(self) -> dict[str, Any]:
    """All values.

    Raises:
      UserError: no queries.
    """
    if not self.sources:
      raise errors.UserError(
          'retrieve.samples and retrieve.clusters are both empty: name sets of '
          'queries, or leave the stage out')
    return super().settings() | {'describer': dict(self.describer.facts())}

  @property
  def sources(self) -> tuple[tuple[str, int], ...]:
    """Sets of queries with their numbers, those of samples first."""
    return (*self.config.samples, *self.config.clusters)

  def phases(self) -> Sequence[work.Phase]:
    """Describes queries, clusters the pool, searches, chooses."""
    describe = lambda place, index: references.describe(
        place, QUERIES, index, self.sources[index][0], self.describer)
    each = lambda place: len(self.sources)
    blocks = lambda place: len(self._blocks(place))
    return (work.Phase(QUERIES, each, describe, self.describer.whole),
            work.Phase(CLUSTERS, lambda place: int(bool(self.config.clusters)),
                       self._cluster, True),
            work.Phase(NEAREST, blocks, self._search, True),
            work.Phase(CHOSEN, each, self._choose, True),
            work.Phase(selections.SELECTED, base.once, self._select))

  def _cluster(self, place: work.Place, index: int) -> work.Counts:
    """Clusters the pool, once for all sources."""
    c, rows = self.config, self.vectors(place)
    mesh, level = mesh_lib.accelerators(), hierarchy.Level(c.num_clusters)
    hierarchy.check([level], len(rows), where='retrieve.num_clusters')
    fitted = hierarchy.fit(
        rows, level, iterations=c.iterations, seed=c.seed, mesh=mesh,
        take=lambda places: seeds.at(rows, places))
    for name, values in ((_CENTROIDS, fitted.centroids), (
        _LABELS, fitted.labels), (_DISTANCES, fitted.distances)):
      np.save(place.file(CLUSTERS, index, name), values)
    return {'clusters': c.num_clusters}

  def _blocks(self, place: work.Place) -> list[tuple[int, slice]]:
    """Source by samples, and its queries, of every task of the search."""
    known = references.References(place, QUERIES)
    counts = np.bincount(known.source, minlength=len(self.sources))
    return [(number, slice(start, start + BLOCK))
            for number, count in enumerate(
                counts[:len(self.config.samples)].tolist())
            for start in range(0, count, BLOCK)]

  def _search(self, place: work.Place, index: int) -> work.Counts:
    """Nearest places in the pool of a block of queries."""
    number, some = self._blocks(place)[index]
    queries, whole = references.References(place, QUERIES).of(
        number), self.vectors(place)
    references.check_width(queries, whole.shape[1], 'queries')
    wider = _WIDER if self.config.on_collision == 'next_nearest' else 1
    score, near = neighbors.exact(whole)(
        queries[some], self.sources[number][1] * wider)
    tables.write(place.file(NEAREST, index), {'score': score, 'near': near})
    return {}

  def _nearest(self, place: work.Place, number: int
               ) -> tuple[np.ndarray, np.ndarray]:
    """Scores and places [queries, k] of a source."""
    parts = [tables.read(place.checked(NEAREST, i)) for i, (of, _) in
             enumerate(self._blocks(place)) if of == number]
    return tuple(np.concatenate([part[key] for part in parts])
                 for key in ('score', 'near'))

  def _choose(self, place: work.Place, index: int) -> work.Counts:
    """Chooses the images of a source."""
    queries = references.References(place, QUERIES).of(index)
    references.check_width(queries, self.vectors(place).shape[1], 'queries')
    choose = (self._by_samples if index < len(self.config.samples)
              else self._by_clusters)
    columns = choose(place, index, queries)
    tables.write(place.file(CHOSEN, index), {
        **columns, 'set': np.full(len(columns['row']), index)})
    return {'collisions': int(columns['count'].sum() - len(columns['row']))}

  def _select(self, place: work.Place, index: int) -> work.Counts:
    """Puts the choices together; of an image the first set is the reason."""
    parts = [tables.read(place.checked(CHOSEN, i))
             for i in range(place.count(CHOSEN))]
    whole = {name: np.concatenate([part[name] for part in parts])
             for name in parts[0]}
    rows, first, inverse = np.unique(
        whole['row'], return_index=True, return_inverse=True)
    counts = np.ones(len(rows), np.int64)
    if self.config.on_collision == 'keep_multiplicity':
      counts = np.bincount(inverse, whole['count']).astype(np.int64)
    return selections.write(place, index, rows, counts, {
        name: values[first] for name, values in whole.items()
        if name not in ('row', 'count')})

  def _by_samples(self, place: work.Place, number: int, queries: np.ndarray
                  ) -> dict[str, np.ndarray]:
    """Rows, counts and the best query of each."""
    whole, k = self.vectors(place), self.sources[number][1]
    score, near = self._nearest(place, number)
    policy = self.config.on_collision
    if policy == 'next_nearest':
      near, policy = retrieval.next_nearest(near, k), 'unique'
      score = _scores(queries, near, whole)
    taken = retrieval.of_samples(near, policy)
    query, rank = _best(near, taken.rows)
    return {'row': whole.rows[taken.rows],
            'count': taken.counts.astype(np.int64), 'query': query,
            'rank': rank, 'score': score[query, rank],
            'cluster': np.full(len(taken.rows), -1)}

  def _by_clusters(self, place: work.Place, number: int, queries: np.ndarray
                   ) -> dict[str, np.ndarray]:
    """Rows, counts and the cluster of each."""
    fitted = clusters(place)
    falls, _ = kmeans.assign(queries, fitted.centroids,
                             mesh=mesh_lib.accelerators())
    taken = retrieval.of_clusters(
        np.bincount(falls, minlength=len(fitted.centroids)), fitted.labels,
        fitted.distances, more_than=self.config.more_than,
        per_cluster=self.sources[number][1], cap=self.config.cap)
    order = np.sort(taken.rows)
    none = np.full(len(order), -1)
    return {'row': self.vectors(place).rows[order],
            'count': np.ones(len(order), np.int64), 'query': none,
            'rank': none, 'score': np.full(len(order), np.nan, np.float32),
            'cluster': fitted.labels[order].astype(np.int64)}


def clusters(place: work.Place) -> hierarchy.Fitted:
  """Clusters of the pool, as the stage left them."""
  return hierarchy.Fitted(*(np.load(place.checked(CLUSTERS, 0, name))
                            for name in (_CENTROIDS, _LABELS, _DISTANCES)))


def _best(near: np.ndarray, rows: np.ndarray
          ) -> tuple[np.ndarray, np.ndarray]:
  """Query and rank by which each row was first taken, the lowest rank first.

  Args:
    near: [queries, k] places; −1: none.
    rows: [r] places, ascending.
  """
  rank, query = np.divmod(np.arange(near.size), len(near))
  flat = near.T.ravel()
  first = np.full(len(rows), near.size)
  inside = flat >= 0
  np.minimum.at(first, np.searchsorted(rows, flat[inside]),
                np.flatnonzero(inside))
  return query[first], rank[first]


def _scores(queries: np.ndarray, near: np.ndarray, whole) -> np.ndarray:
  """[queries, k] cosines of the chosen ones; −inf of none."""
  places = np.unique(near[near >= 0])
  vectors = neighbors.at(whole, places)
  out = np.full(near.shape, -np.inf, np.float32)
  for rank in range(near.shape[1]):
    good = near[:, rank] >= 0
    out[good, rank] = np.einsum('rd,rd->r', queries[good], vectors[
        np.searchsorted(places, near[good, rank])])
  return out
