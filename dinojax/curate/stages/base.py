"""Base of the stages of a recipe."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np

from dinojax.curate import vectors
from dinojax.curate import verdicts
from dinojax.curate.engines import work
from dinojax.curate.stages import pool_rows


@dataclasses.dataclass(frozen=True)
class Stage:
  """A stage; its kinds are subclasses.

  Attributes:
    config: its section of the config.
    reads: names of the stages that it reads: those of the 'pool', the one
      'after' which it comes, whose rows are alive, its 'vectors', 'clusters'.
    name: name in the recipe.
  """

  config: Any
  reads: Mapping[str, str]
  name: str

  version = 1

  @property
  def needs(self) -> tuple[str, ...]:
    """Names of the stages that it reads, each once."""
    return tuple(dict.fromkeys(self.reads.values()))

  def settings(self) -> dict[str, Any]:
    """Values that change what it writes."""
    return {field.name: _plain(getattr(self.config, field.name))
            for field in dataclasses.fields(self.config)
            if not field.metadata.get('free')} | {'reads': dict(self.reads)}

  def input(self, place: work.Place, role: str) -> work.Place:
    """The place of a stage that it reads."""
    return place.inputs[self.reads[role]]

  def num_shards(self, place: work.Place) -> int:
    """Number of shards of rows."""
    return len(self.shard_rows(place))

  def shard_rows(self, place: work.Place) -> list[range]:
    """Rows of every shard."""
    return pool_rows.shard_rows(self.input(place, 'pool'))

  def num_rows(self, place: work.Place) -> int:
    """Number of rows of the pool."""
    return self.shard_rows(place)[-1].stop

  def alive(self, place: work.Place, index: int) -> np.ndarray:
    """[r] bool: rows of a shard that no stage before has dropped."""
    return verdicts.alive(self.input(place, 'after'), index)

  def images(self, place: work.Place, index: int, take: np.ndarray
             ) -> pool_rows.Images:
    """Images of a shard by their places in it, with faces blurred."""
    return pool_rows.Images(
        self.input(place, 'pool'), index, take,
        self.input(place, 'pixels') if 'pixels' in self.reads else None)

  def shard(self, place: work.Place, index: int) -> vectors.Shard:
    """Vectors of the rows of a shard that are alive; no other is read."""
    return vectors.Shard(self.input(place, 'vectors'), index, verdicts.alive(
        self.input(place, 'after'), index), self.shard_rows(place)[index].start)

  def vectors(self, place: work.Place) -> vectors.Vectors:
    """Vectors of all rows that are alive."""
    return vectors.opened(self.input(place, 'vectors'),
                          self.input(place, 'after'), self.shard_rows(place))


def _plain(value: Any) -> Any:
  """A value as JSON has it."""
  if dataclasses.is_dataclass(value):
    return dataclasses.asdict(value)
  if isinstance(value, tuple | list):
    return [_plain(inner) for inner in value]
  return value


def once(place: work.Place) -> int:
  """Number of tasks of a phase that is one task."""
  del place
  return 1
