"""Rows of a pool as the stage ingest leaves them: shards, bytes, sizes."""

import functools
import os

from array_record.python import array_record_module
import numpy as np

from dinojax.curate import tables
from dinojax.curate import verdicts
from dinojax.curate.engines import work
from dinojax.data import record
from dinojax.data.pools import entry as entry_lib
from dinojax.data.pools import opened

INDEX = 'index'  # phase of one task
SHARDS = 'shards.parquet'
THUMBNAILS = 'thumbnails.npy'
JUDGED = 'judged'  # phase of a stage that blurs
BLURRED, BLURRED_ROWS = 'blurred.arrayrecord', 'blurred.parquet'
_PLACE = ('name', 'pool', 'file', 'offset', 'size')


def shard_rows(place: work.Place) -> list[range]:
  """Rows of every shard."""
  path = place.checked(INDEX, 0, SHARDS)
  return list(_shard_rows(path, os.stat(path).st_mtime_ns))


@functools.lru_cache(maxsize=16)
def _shard_rows(path: str, written_ns: int) -> tuple[range, ...]:
  """Rows of every shard, of a file as it was written at a time."""
  del written_ns
  starts = tables.read(path)['start'].tolist()
  return tuple(map(range, starts[:-1], starts[1:]))


def areas(place: work.Place, wanted: np.ndarray) -> np.ndarray:
  """[rows] pixels of the wanted rows of a pool, 0 of others."""
  out = np.zeros(len(wanted), np.int64)
  for index, rows in enumerate(shard_rows(place)):
    if wanted[rows.start:rows.stop].any():
      table = tables.read(place.checked(verdicts.ROWS, index),
                          ['width', 'height'])
      out[rows.start:rows.stop] = table['width'] * table['height']
  return out


def read(spec: str, file: bytes, offset: int, size: int) -> bytes:
  """Encoded bytes of a row.

  Args:
    spec: its pool.
    file, offset, size: as in the table of rows.

  Raises:
    OSError: it cannot be read.
  """
  return pool(spec).read(os.fsdecode(file), offset, size)


@functools.lru_cache(maxsize=16)
def pool(spec: str) -> entry_lib.Pool:
  """An opened pool, kept for the tasks of a process."""
  return opened.open_pool(spec)


class Images:
  """Images of some rows of a shard, as a source.

  Attributes:
    rows: [r] rows of the pool.
  """

  classes = ()

  def __init__(self, place: work.Place, index: int, take: np.ndarray,
               blurred: work.Place | None = None):
    """Takes rows by their places in the shard.

    Args:
      place: place of the stage ingest.
      index: shard.
      take: [r] places.
      blurred: place of the stage that blurred faces.
    """
    self.spec = f'shard {index} of {place.folder}'
    table = tables.read(place.checked(verdicts.ROWS, index), _PLACE)
    pools = work.manifest(place)['settings']['pools']
    self.rows = shard_rows(place)[index].start + take
    self._entries = [
        (table['name'][i], pools[table['pool'][i]], table['file'][i],
         int(table['offset'][i]), int(table['size'][i])) for i in take]
    self._blurred: dict[int, int] = {}
    if blurred is not None and blurred.done(JUDGED, index):
      rows = tables.read(blurred.checked(
          JUDGED, index, BLURRED_ROWS))['row'].tolist()
      self._blurred = {row: i for i, row in enumerate(rows)}
      self._file = blurred.checked(JUDGED, index, BLURRED)

  def __len__(self) -> int:
    return len(self._entries)

  def __getitem__(self, index: int) -> record.Record:
    name, *where = self._entries[index]
    number = self._blurred.get(int(self.rows[index]))
    if number is None:
      return record.Record(read(*where), -1, name)
    return record.Record(self._reader.read([number])[0], -1, name)

  @functools.cached_property
  def _reader(self) -> array_record_module.ArrayRecordReader:
    return array_record_module.ArrayRecordReader(
        self._file, 'readahead_buffer_size:0')

  def __getstate__(self) -> dict:
    return {key: value for key, value in self.__dict__.items()
            if key != '_reader'}
