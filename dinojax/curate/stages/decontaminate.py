"""Decontaminate: what is near an image of a benchmark goes, and who says so.

Every image of the pool is told its nearest reference and the score, those that
stay too. In the transitive form all of a component goes that holds a
reference.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from dinojax.core import errors
from dinojax.core import fields
from dinojax.curate import components
from dinojax.curate import describers
from dinojax.curate import neighbors
from dinojax.curate import references
from dinojax.curate import tables
from dinojax.curate import vectors
from dinojax.curate import verdicts
from dinojax.curate.engines import work
from dinojax.curate.stages import base
from dinojax.curate.stages import dedup

REFERENCES, NEAREST, JOIN = 'references', 'nearest', 'join'
_TAINTED = 'tainted.npy'


@dataclasses.dataclass(frozen=True)
class Settings:
  """Benchmarks, whose images are to be no part of the training set."""

  # Sources as training reads them: folder:DIR, csv:FILE, tfds:NAME/SPLIT.
  references: tuple[str, ...] = ()
  threshold: fields.Unit = 0.45  # Cosine above which an image is a copy.
  # Takes what is joined to a reference by other images of the pool along.
  transitive: bool = True


@dataclasses.dataclass(frozen=True)
class Decontaminate(base.Stage):
  """Verdicts by references.

  Attributes:
    describer: describes references as the pool was described.
    floor: cosine above which the stage dedup kept edges.
  """

  describer: describers.Describer = None
  floor: float | None = None

  def settings(self) -> dict[str, Any]:
    """All values.

    Raises:
      UserError: no references, or edges that were not kept.
    """
    c = self.config
    if not c.references:
      raise errors.UserError(
          'decontaminate.references is empty: name the images of benchmarks, '
          'or leave the stage out')
    if c.transitive and (self.floor is None or self.floor > c.threshold):
      edges = ('there is no stage dedup before it'
               if self.floor is None else f'dedup.floor={self.floor} leaves '
               'out')
      raise errors.UserError(
          f'decontaminate.threshold={c.threshold} needs the edges of the pool '
          f'above it, which {edges}: '
          + ('put dedup before it' if self.floor is None else
             f'set dedup.floor={c.threshold}')
          + ', or decontaminate.transitive=False')
    return super().settings() | {'describer': dict(self.describer.facts())}

  def phases(self) -> Sequence[work.Phase]:
    """Describes references, searches them, joins, judges."""
    return (work.Phase(
        REFERENCES, lambda place: len(self.config.references),
        lambda place, index: references.describe(
            place, REFERENCES, index, self.config.references[index],
            self.describer), self.describer.whole),
            work.Phase(NEAREST, self.num_shards, self._nearest, True),
            work.Phase(JOIN, base.once, self._join),
            work.Phase(verdicts.ROWS, self.num_shards, self._judge))

  def _nearest(self, place: work.Place, index: int) -> work.Counts:
    """Nearest reference of every described image of a shard."""
    known = references.References(place, REFERENCES)
    rows = self.shard_rows(place)[index]
    # Copies that are dropped already lead to references, too.
    shard = vectors.Shard(self.input(place, 'vectors'), index,
                          np.ones(len(rows), bool), rows.start)
    best, score = np.zeros(0, np.int64), np.zeros(0, np.float32)
    if len(shard):
      references.check_width(known.vectors, shard.width, 'references')
      score, best = (column[:, 0] for column in neighbors.among(
          known.vectors, shard.read(), 1))
    tables.write(place.file(NEAREST, index), {
        'row': shard.rows, 'reference': best, 'score': score})
    return {'near_a_reference': int((score > self.config.threshold).sum())}

  def _read(self, place: work.Place, index: int) -> dict[str, np.ndarray]:
    return tables.read(place.checked(NEAREST, index))

  def _join(self, place: work.Place, index: int) -> work.Counts:
    """Marks the rows of components that hold a reference."""
    tainted = np.zeros(self.num_rows(place), bool)
    for part in range(place.count(NEAREST)):
      near = self._read(place, part)
      tainted[near['row'][near['score'] > self.config.threshold]] = True
    if self.config.transitive:
      union = components.Union(len(tainted))
      edges = self.input(place, 'edges')
      for a, b, _ in dedup.above(edges, self.config.threshold):
        union.add(a, b)
      label = union.labels()
      whole = np.zeros(len(tainted), bool)
      whole[label[tainted]] = True
      tainted = whole[label]
    np.save(place.file(JOIN, index, _TAINTED), tainted)
    return {}

  def _judge(self, place: work.Place, index: int) -> work.Counts:
    known, rows = (references.References(place, REFERENCES),
                   self.shard_rows(place)[index])
    near = self._read(place, index)
    place_of = near['row'] - rows.start
    score = np.full(len(rows), -1, np.float32)
    nearest = np.full(len(rows), -1, np.int64)
    score[place_of], nearest[place_of] = near['score'], near['reference']
    tainted = np.load(place.checked(JOIN, 0, _TAINTED),
                      mmap_mode='r')[rows.start:rows.stop]
    names = [known.names[i] if i >= 0 else '' for i in nearest.tolist()]
    reasons = []
    for gone, value, name in zip(
        tainted.tolist(), score.tolist(), names, strict=True):
      direct = value > self.config.threshold
      reasons.append('' if not gone else (
          f'reference: {name} at {value:.3f}' if direct else
          'chained: other images lead to a reference'))
    return verdicts.write(
        place, index, rows, self.alive(place, index), reasons,
        reference=nearest, reference_name=names, reference_score=score)
