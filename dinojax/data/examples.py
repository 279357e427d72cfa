"""Examples that a head learns from: shuffled epochs of a source with labels.

A row is a function of (seed, its global number), as in pretraining, so any
number of workers and processes makes the same batches, and a training that
continues builds them from its step.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any, Protocol

import numpy as np

from dinojax.data import mixture
from dinojax.data import pipeline

Arrays = dict[str, np.ndarray]


class Items(Protocol):
  """A random-access sequence of records, which have a `name`."""

  spec: str

  def __len__(self) -> int:
    """Number of records."""

  def __getitem__(self, index: int) -> Any:
    """Reads one record."""


@dataclasses.dataclass(frozen=True)
class Examples:
  """Everything that a row depends on; travels to the workers.

  Attributes:
    source: records.
    prepare: makes the arrays of a row, with random choices of its own; may
      raise BadImage or OSError, and another record takes the place.
    num_images: images of a step, over all processes: the same on any mesh.
    batch_size: rows of a step; those from `num_images` on are padding, copies
      of the last image with `weight` 0.
    seed: start of all random numbers.
    group_images: rows that belong together: each is alone.
  """

  source: Items
  prepare: Callable[[Any, np.random.Generator], Arrays]
  num_images: int
  batch_size: int
  seed: int
  group_images: int = 1

  def sample(self, row: int) -> dict:
    """Arrays of one global row number, with `weight` and `bad`."""
    step, place = divmod(row, self.batch_size)
    position = step * self.num_images + min(place, self.num_images - 1)
    epoch, place_in_epoch = divmod(position, len(self.source))
    index = int(order(len(self.source), self.seed, epoch)[place_in_epoch])
    rng = mixture.generator(self.seed, 1, position)
    out, problem = pipeline.readable(
        self.source, index, rng, lambda record: self.prepare(record, rng))
    return out | {'weight': np.float32(place < self.num_images),
                  'bad': np.bool_(problem is not None), 'problem': problem}

  def collate(self, samples: Sequence[dict]) -> dict:
    """Rows as a batch."""
    return {'problems': [s['problem'] for s in samples if s['problem']]} | {
        key: np.stack([s[key] for s in samples])
        for key in samples[0] if key != 'problem'}


@functools.lru_cache(maxsize=4)
def order(count: int, seed: int, epoch: int) -> np.ndarray:
  """[count] the order of an epoch, in which every record is read once."""
  return mixture.generator(seed, 2, epoch).permutation(count)
