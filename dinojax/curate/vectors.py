"""Descriptors and embeddings of rows, in files of one shard of rows each."""

from collections.abc import Iterator, Sequence
import functools

import numpy as np

from dinojax.curate import tables
from dinojax.curate import verdicts
from dinojax.curate.engines import work

VECTORS = 'vectors'
_ARRAY = 'vectors.npy'


def write(place: work.Place, index: int, rows: np.ndarray,
          vectors: np.ndarray):
  """Writes the vectors of a shard.

  Args:
    place: place of the stage.
    index: shard.
    rows: [r] rows of the pool, ascending.
    vectors: [r, d], kept as float16.
  """
  np.save(place.file(VECTORS, index, _ARRAY), vectors.astype(np.float16))
  tables.write(place.file(VECTORS, index), {'row': np.asarray(rows, np.int64)})


class Shard:
  """Vectors of the rows of a shard that are alive.

  Attributes:
    rows: [r] rows of the pool.
  """

  def __init__(self, place: work.Place, index: int, alive: np.ndarray,
               first: int):
    """Finds out which rows are alive; vectors stay on the disk.

    Args:
      place: place of the stage that described them.
      index: shard.
      alive: [rows of the shard] bool.
      first: first row of the shard.
    """
    rows = tables.read(place.checked(VECTORS, index))['row']
    self._take = np.flatnonzero(alive[rows - first])
    self.rows = rows[self._take]
    self._path = place.checked(VECTORS, index, _ARRAY)

  def __len__(self) -> int:
    return len(self.rows)

  def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
    """[r, d] float16."""
    # Mapped anew each time: pages of a mapping that stays count as memory.
    return np.load(self._path, mmap_mode='r')[self._take[start:stop]]

  @functools.cached_property
  def width(self) -> int:
    """Length of a vector."""
    return np.load(self._path, mmap_mode='r').shape[1]


class Vectors:
  """Vectors of all rows that are alive, read in slices.

  Attributes:
    shards: parts, some of which may be empty.
    shape: (rows, width).
  """

  def __init__(self, shards: Sequence[Shard]):
    """Puts shards one after the other."""
    self.shards = shards
    self._starts = np.cumsum([0, *map(len, shards)])
    self.shape = int(self._starts[-1]), max(
        (shard.width for shard in shards if len(shard)), default=0)

  def __len__(self) -> int:
    return self.shape[0]

  @property
  def rows(self) -> np.ndarray:
    """[r] rows of the pool."""
    return np.concatenate([shard.rows for shard in self.shards])

  def __getitem__(self, part: slice) -> np.ndarray:
    """[r, d] float16 of consecutive ones."""
    start, stop, _ = part.indices(self.shape[0])
    parts = [np.zeros((0, self.shape[1]), np.float16)]
    number = int(np.searchsorted(self._starts, start, 'right')) - 1
    while start < stop:
      first, after = self._starts[number:number + 2]
      parts.append(self.shards[number].read(
          start - first, min(stop, after) - first))
      start, number = max(start, after), number + 1
    return np.concatenate(parts)

  def blocks(self, size: int) -> Iterator[tuple[int, np.ndarray]]:
    """First place and vectors, so many at a time."""
    for start in range(0, len(self), size):
      yield start, self[start:start + size]


def opened(described: work.Place, judged: work.Place,
           shard_rows: Sequence[range]) -> Vectors:
  """Vectors of the rows that are alive after a stage."""
  return Vectors([
      Shard(described, index, verdicts.alive(judged, index), rows.start)
      for index, rows in enumerate(shard_rows)])
