"""Dedup: of images that are near each other, one stays.

Edges are kept with their scores above a floor, so that other thresholds need
no other search. Components can chain images that are not alike; how far that
goes is measured for the largest of them.
"""

from collections.abc import Iterator, Sequence
import dataclasses
from typing import Any, Literal

import numpy as np

from dinojax.core import errors
from dinojax.core import fields
from dinojax.curate import chaining
from dinojax.curate import draws
from dinojax.curate import neighbors
from dinojax.curate import tables
from dinojax.curate import vectors
from dinojax.curate import verdicts
from dinojax.curate.engines import work
from dinojax.curate.stages import base
from dinojax.curate.stages import joined

BUILD, EDGES, RECALL = 'build', 'edges', 'recall'
LARGEST = 'largest'
_RECALL = 31  # stream of random numbers
_INDEX = 'faiss'


@dataclasses.dataclass(frozen=True)
class Settings:
  """Near images, of which one stays."""

  threshold: fields.Unit = 0.6  # Cosine above which two images are joined.
  # Cosine above which an edge is kept, for other thresholds.
  floor: fields.Unit = 0.45
  k: fields.Positive = 64  # Neighbours of every image.
  # exact; inverted: a part of all vectors, with its recall measured; auto: by
  # the number of images.
  search: Literal['auto', 'exact', 'inverted'] = 'auto'
  probes: fields.Positive = 32  # Lists of an inverted file that are searched.
  recall_queries: fields.Positive = 10_000  # Images that measure recall.
  # Image of a component that stays: that of the most pixels, or the first.
  keep: Literal['largest', 'first'] = 'largest'
  # Images of the largest component; one that is larger is cut at higher
  # thresholds. 0: any.
  max_component: fields.Natural = 0
  seed: fields.Natural = 0  # Number of the draws.


class Dedup(base.Stage):
  """One image of every component of near images."""

  def settings(self) -> dict[str, Any]:
    """All values.

    Raises:
      UserError: edges above the threshold would not be kept.
    """
    c = self.config
    if c.floor > c.threshold:
      raise errors.UserError(
          f'dedup.floor={c.floor} is above dedup.threshold={c.threshold}, so '
          'that edges between them would be lost: set dedup.floor='
          f'{c.threshold} or less')
    return super().settings()

  def phases(self) -> Sequence[work.Phase]:
    """Searches, measures recall, joins, looks at the largest, judges."""
    some = lambda place: int(self._is_inverted(place))
    return (work.Phase(BUILD, some, self._build, True),
            work.Phase(EDGES, self.num_shards, self._edges, True),
            work.Phase(RECALL, some, self._recall, True),
            work.Phase(joined.JOIN, base.once, self._join),
            work.Phase(LARGEST, base.once, self._largest),
            work.Phase(verdicts.ROWS, self.num_shards, self._judge))

  def _is_inverted(self, place: work.Place) -> bool:
    return self.config.search == 'inverted' or (
        self.config.search == 'auto'
        and len(self.vectors(place)) > neighbors.EXACT_BELOW)

  def _build(self, place: work.Place, index: int) -> work.Counts:
    neighbors.build(self.vectors(place), place.file(BUILD, index, _INDEX),
                    seed=self.config.seed)
    return {}

  def _search(self, place: work.Place, whole: vectors.Vectors
              ) -> neighbors.Search:
    if self._is_inverted(place):
      return neighbors.inverted(
          place.checked(BUILD, 0, _INDEX), self.config.probes)
    return neighbors.exact(whole)

  def _edges(self, place: work.Place, index: int) -> work.Counts:
    """Edges of the images of a shard."""
    whole = self.vectors(place)
    shard, edges = whole.shards[index], {
        'a': np.zeros(0, np.int64), 'b': np.zeros(0, np.int64),
        'score': np.zeros(0, np.float32)}
    if len(shard):
      edges = neighbors.edges(
          shard.read(), shard.rows, whole.rows, self._search(place, whole),
          k=self.config.k, floor=self.config.floor)
    tables.write(place.file(EDGES, index), edges)
    return {'edges': len(edges['a']),
            'edges_above_threshold': int((edges['score']
                                          > self.config.threshold).sum())}

  def _recall(self, place: work.Place, index: int) -> work.Counts:
    """Edges above the threshold that the inverted file finds, of a draw."""
    whole = self.vectors(place)
    rows = whole.rows
    keys = draws.keys(rows, self.config.seed, _RECALL)
    chosen = np.sort(np.argsort(keys)[:self.config.recall_queries])
    queries = neighbors.at(whole, chosen)
    pairs = []
    for search in (neighbors.exact(whole), self._search(place, whole)):
      edges = neighbors.edges(queries, rows[chosen], rows, search,
                              k=self.config.k, floor=self.config.threshold)
      pairs.append(set(zip(edges['a'].tolist(), edges['b'].tolist(),
                           strict=True)))
    return {'recall_edges': len(pairs[0]),
            'recall_found': len(pairs[0] & pairs[1])}

  def _join(self, place: work.Place, index: int) -> work.Counts:
    """Components above the threshold, those that are too large cut again."""
    del index
    label = chaining.cut(
        lambda threshold: above(place, threshold), self.num_rows(place),
        self.config.threshold, self.config.max_component)
    return joined.keep(self, place, label,
                       largest=self.config.keep == 'largest')

  def _largest(self, place: work.Place, index: int) -> work.Counts:
    """How alike the images of the largest components are."""
    tables.write(place.file(LARGEST, index), chaining.diagnose(
        joined.labels(place),
        list(above(place, self.config.threshold)), self.vectors(place)))
    return {}

  def _judge(self, place: work.Place, index: int) -> work.Counts:
    return joined.judge(self, place, index)


def above(place: work.Place, threshold: float) -> Iterator[chaining.Edges]:
  """Edges above a threshold of the stage, a shard at a time."""
  for part in range(place.count(EDGES)):
    table = tables.read(place.checked(EDGES, part))
    over = table['score'] > np.float32(threshold)
    yield table['a'][over], table['b'][over], table['score'][over]
