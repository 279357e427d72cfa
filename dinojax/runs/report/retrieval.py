"""Sheets by which the numbers of a retrieval are chosen: by looking.

Queries with what they find at some ranks, and queries beside images of their
cluster: where what is found no longer resembles the query, there is N, or M.
"""

from collections.abc import Iterator
import os

import numpy as np

from dinojax.core import atomic
from dinojax.curate import kmeans
from dinojax.curate import neighbors
from dinojax.curate import references
from dinojax.curate import sheets
from dinojax.curate.engines import work
from dinojax.curate.stages import retrieve
from dinojax.data import sources
from dinojax.parallel import mesh as mesh_lib
from dinojax.runs.report import pool_images

RANKS = (1, 2, 4, 8, 16, 32)
_QUERIES, _MEMBERS = 3, 9  # of a cluster, on a line
_ASKED = (40, 110, 170)
_NAME = 'inspect-{}.png'

Rows = Iterator[tuple[str, list[sheets.Tile]]]


def write(folder: str, stage: retrieve.Retrieve, place: work.Place,
          count: int) -> list[str]:
  """Draws a sheet for every set of queries.

  Args:
    folder: workdir.
    stage: the stage, which has ended.
    place: its place.
    count: queries, or clusters, of a sheet, drawn by chance.

  Returns:
    Paths of the sheets.
  """
  known = references.References(place, retrieve.QUERIES)
  pool = pool_images.PoolImages(stage.input(place, 'pool'), None)
  paths = []
  for number, (spec, _) in enumerate(stage.sources):
    draw = (_by_samples if number < len(stage.config.samples)
            else _by_clusters)
    queries = _Queries(known, number, spec, pool)
    paths.append(os.path.join(folder, _NAME.format(number)))
    with atomic.replacing(paths[-1]) as temporary:
      sheets.draw(list(draw(stage, place, queries, pool, count))).save(
          temporary, 'PNG')
  return paths


class _Queries:
  """Queries of a set.

  Attributes:
    vectors: [q, d].
  """

  def __init__(self, known: references.References, number: int, spec: str,
               pool: pool_images.PoolImages):
    """Opens the source; images are read when they are drawn."""
    self._places = np.flatnonzero(known.source == number)
    self._known, self._pool = known, pool
    self._source = sources.open_source(spec)
    self.vectors = known.of(number)

  def tile(self, query: int) -> sheets.Tile:
    """The image of a query."""
    place = int(self._places[query])
    index = int(self._known.index[place])
    return sheets.Tile(lambda: self._source[index].image,
                       self._known.names[place], _ASKED)

  def some(self, among: np.ndarray, count: int) -> np.ndarray:
    """Numbers drawn by chance, ascending."""
    return self._pool.some(among, count)


def _by_samples(stage: retrieve.Retrieve, place: work.Place,
                queries: _Queries, pool: pool_images.PoolImages,
                count: int) -> Rows:
  """Queries, and what they find at some ranks with its cosine."""
  whole = stage.vectors(place)
  chosen = queries.some(np.arange(len(queries.vectors)), count)
  score, near = neighbors.exact(whole)(queries.vectors[chosen], max(RANKS))
  rows = whole.rows
  for query, scores, places in zip(chosen.tolist(), score, near, strict=True):
    yield '', [queries.tile(query)] + [
        pool.tile(int(rows[places[rank - 1]]),
                  f'{rank}: {scores[rank - 1]:.3f}')
        for rank in RANKS if places[rank - 1] >= 0]


def _by_clusters(stage: retrieve.Retrieve, place: work.Place,
                 queries: _Queries, pool: pool_images.PoolImages,
                 count: int) -> Rows:
  """Queries of a cluster, beside images of it that are drawn by chance."""
  fitted = retrieve.clusters(place)
  falls, _ = kmeans.assign(
      queries.vectors, fitted.centroids, mesh=mesh_lib.accelerators())
  asked = np.bincount(falls, minlength=len(fitted.centroids))
  rows = stage.vectors(place).rows
  for number in queries.some(np.flatnonzero(
      asked > stage.config.more_than), count).tolist():
    mine = np.flatnonzero(fitted.labels == number)
    tiles = [queries.tile(query) for query in queries.some(np.flatnonzero(
        falls == number), _QUERIES).tolist()]
    yield f'{asked[number]} queries, {len(mine)} images', tiles + [
        pool.tile(int(rows[i]), f'{fitted.distances[i]:.3f}')
        for i in pool.some(mine, _MEMBERS).tolist()]
