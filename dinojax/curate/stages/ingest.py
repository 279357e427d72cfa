"""Ingest: a number, sums and measures for every image of a pool.

An image is decoded once: what later stages ask of its pixels (size, entropy,
a thumbnail to hash) is measured here, so that their thresholds can be changed
in seconds. What cannot be read is a row with the reason.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import os
from typing import Any

import numpy as np

from dinojax.core import errors
from dinojax.core import fields
from dinojax.core import text
from dinojax.curate import measures
from dinojax.curate import tables
from dinojax.curate import verdicts
from dinojax.curate.engines import work
from dinojax.curate.stages import base
from dinojax.curate.stages import pool_rows
from dinojax.data import identity
from dinojax.data import images
from dinojax.data.pools import entry as entry_lib

LIST = 'list'
_KNOWN = entry_lib.Entry._fields[:-1]  # its problem is a reason of `Seen`
_COLUMNS = ('row', 'pool', *_KNOWN, *measures.Seen._fields)


@dataclasses.dataclass(frozen=True)
class Settings:
  """Images of the pool, and what is measured of each."""

  # Pools, whose rows are numbered in this order: folder:DIR, tar:GLOB,
  # img2dataset:DIR, parquet:GLOB[?image=COLUMN], or what training reads.
  pools: tuple[str, ...] = ()
  # Rows of a shard, which is one task of most stages.
  rows_per_shard: fields.Positive = 10_000
  # Pixels of the largest image that is decoded.
  max_pixels: fields.Positive = images.DEFAULT_MAX_PIXELS


class Ingest(base.Stage):
  """Rows of one or several pools."""

  def settings(self) -> dict[str, Any]:
    """All values, and a digest of what the pools hold.

    Raises:
      UserError: no pool, or one that cannot be opened.
    """
    if not self.config.pools:
      raise errors.UserError(
          'ingest.pools is empty: name the images, such as '
          "--config.ingest.pools=\"('folder:DIR',)\"")
    return super().settings() | {'files': [
        identity.digest(pool_rows.pool(spec).order())
        for spec in self.config.pools]}

  def phases(self) -> Sequence[work.Phase]:
    """Lists files, numbers rows, looks at images."""
    return (work.Phase(LIST, lambda place: len(self._files()), self._list),
            work.Phase(pool_rows.INDEX, base.once, self._index),
            work.Phase(verdicts.ROWS, lambda place: len(
                pool_rows.shard_rows(place)), self._look))

  def _files(self) -> list[tuple[int, str]]:
    """Number of the pool, and file, of every task of the list."""
    return [(number, file) for number, spec in enumerate(self.config.pools)
            for file in pool_rows.pool(spec).files()]

  def _list(self, place: work.Place, index: int) -> work.Counts:
    """Lists the images of a file."""
    number, file = self._files()[index]
    # Names of files need not be texts.
    entries = [entry._replace(
        name=text.printable(entry.name), file=os.fsencode(entry.file))
               for entry in pool_rows.pool(
                   self.config.pools[number]).entries(file)]
    tables.write(place.file(LIST, index),
                 _columns(entry_lib.Entry._fields, entries))
    return {'listed': len(entries)}

  def _index(self, place: work.Place, index: int) -> work.Counts:
    """Writes the first row of every file, and of every shard."""
    starts = np.cumsum([0, *(c['listed'] for c in place.counts(LIST))])
    if not starts[-1]:
      raise errors.UserError(
          f'{", ".join(self.config.pools)} holds no images: check '
          'ingest.pools')
    tables.write(place.file(pool_rows.INDEX, index), {'start': starts})
    tables.write(place.file(pool_rows.INDEX, index, pool_rows.SHARDS), {
        'start': np.append(np.arange(
            0, starts[-1], self.config.rows_per_shard), starts[-1])})
    return {}

  def _look(self, place: work.Place, index: int) -> work.Counts:
    """Measures the images of a shard."""
    rows, thumbnails = [], []
    for row, pool, entry in self._entries(place, index):
      seen, thumbnail = self._seen(self.config.pools[pool], entry)
      rows.append((row, pool, *entry[:-1], *seen))
      thumbnails.append(thumbnail)
    np.save(place.file(verdicts.ROWS, index, pool_rows.THUMBNAILS),
            np.array(thumbnails, np.float16))
    tables.write(place.file(verdicts.ROWS, index), _columns(_COLUMNS, rows))
    bad = sum(bool(row[-1]) for row in rows)  # a reason
    return {'images': len(rows) - bad, 'unreadable': bad}

  def _entries(self, place: work.Place, index: int
               ) -> Iterator[tuple[int, int, entry_lib.Entry]]:
    """Row, pool and entry of the rows of a shard."""
    starts = tables.read(place.checked(pool_rows.INDEX, 0))['start'].tolist()
    files, rows = self._files(), pool_rows.shard_rows(place)[index]
    number = int(np.searchsorted(starts, rows.start, 'right')) - 1
    while number < len(files) and starts[number] < rows.stop:
      first, after = starts[number], starts[number + 1]
      table = tables.read(place.checked(LIST, number))
      columns = [list(table[name]) if isinstance(table[name], list)
                 else table[name].tolist()
                 for name in entry_lib.Entry._fields]
      for row in range(max(rows.start, first), min(rows.stop, after)):
        yield row, files[number][0], entry_lib.Entry(
            *(column[row - first] for column in columns))
      number += 1

  def _seen(self, spec: str, entry: entry_lib.Entry
            ) -> tuple[measures.Seen, np.ndarray]:
    """Measures of an image."""
    if entry.problem:
      return measures.unreadable(text.printable(entry.problem))
    try:
      data = pool_rows.read(spec, entry.file, entry.offset, entry.size)
      return measures.look(data, self.config.max_pixels)
    except images.BadImage as error:
      return measures.unreadable(error.reason)
    except OSError as error:
      return measures.unreadable(
          text.printable(error.strerror or str(error)))


def _columns(names: Sequence[str], rows: Sequence[tuple]) -> dict[str, Any]:
  """Columns of rows: numbers as arrays, texts and bytes as lists."""
  columns = list(zip(*rows, strict=True)) or [()] * len(names)
  return {name: np.array(column) if column and isinstance(
      column[0], int | float) else list(column)
          for name, column in zip(names, columns, strict=True)}
