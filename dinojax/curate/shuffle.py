"""A shuffle of rows by a key, through files that every engine can read.

Each task of the first phase writes its rows in the order of their partitions,
a row group for each; each of the second reads its own group of every file.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from pyarrow import parquet

from dinojax.core import atomic
from dinojax.curate import tables


def write(path: str, columns: Mapping[str, np.ndarray], *, key: str,
          num_partitions: int):
  """Writes rows by partition: a row's is its key modulo their number.

  Args:
    path: the file.
    columns: arrays [r] or [r, d] by name.
    key: name of a column of uint64.
    num_partitions: number of row groups.
  """
  partition = columns[key] % np.uint64(num_partitions)
  order = np.argsort(partition, kind='stable')
  ends = np.searchsorted(partition[order], np.arange(num_partitions), 'right')
  with atomic.replacing(path) as temporary:
    writer, start = None, 0
    for end in ends.tolist():
      table = tables.table({name: values[order[start:end]]
                            for name, values in columns.items()})
      writer = writer or parquet.ParquetWriter(
          temporary, table.schema, compression='zstd')
      writer.write_table(table, row_group_size=max(end - start, 1))
      start = end
    writer.close()


def read(files: Sequence[str], partition: int) -> dict[str, np.ndarray]:
  """Rows of a partition, of all files in order."""
  parts = []
  for path in files:
    group = parquet.ParquetFile(path).read_row_group(partition)
    parts.append(tables.arrays(group))
  return {name: np.concatenate([part[name] for part in parts])
          for name in parts[0]}
