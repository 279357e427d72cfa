"""A shuffle of rows by a key, through files that every engine can read.

Each task of the first phase writes its rows in the order of their partitions,
a row group for each; each of the second reads its own group of every file.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow
from pyarrow import parquet

from dinojax.core import atomic
from dinojax.curate import tables


def write(path: str, columns: Mapping[str, Any], *, key: str,
          num_partitions: int):
  """Writes rows by partition: a row's is its key modulo their number.

  Args:
    path: the file.
    columns: arrays [r] or [r, d], or lists of texts, by name.
    key: name of a column of uint64.
    num_partitions: number of row groups.
  """
  partition = columns[key] % np.uint64(num_partitions)
  order = np.argsort(partition, kind='stable')
  ends = np.searchsorted(partition[order], np.arange(num_partitions), 'right')
  table = tables.table(columns).take(order)
  with atomic.replacing(path) as temporary, parquet.ParquetWriter(
      temporary, table.schema, compression='zstd') as writer:
    start = 0
    for end in ends.tolist():
      writer.write_table(table.slice(start, end - start),
                         row_group_size=max(end - start, 1))
      start = end


def read(files: Sequence[str], partition: int) -> dict[str, Any]:
  """Rows of a partition, of all files in order."""
  return tables.arrays(pyarrow.concat_tables(
      parquet.ParquetFile(path).read_row_group(partition) for path in files))
