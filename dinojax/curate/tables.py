"""Tables of rows as Parquet: equal contents are equal bytes."""

from collections.abc import Mapping, Sequence
import os
from typing import Any

import numpy as np
import pyarrow
from pyarrow import parquet

from dinojax.core import atomic
from dinojax.core import errors

_FIX = 'delete the folder of its stage, and start the same command again'


def write(path: str | os.PathLike, columns: Mapping[str, Any]):
  """Writes columns of one length.

  Args:
    path: a file, which is there whole or not at all.
    columns: arrays [r] of numbers or booleans, arrays [r, d], or lists of
      texts or of bytes, by name. An empty list is one of texts.
  """
  whole = table(columns)
  with atomic.replacing(path) as temporary:
    parquet.write_table(whole, temporary, compression='zstd')


def read(path: str | os.PathLike,
         names: Sequence[str] | None = None) -> dict[str, Any]:
  """Columns of a file of `write`: arrays, and lists of texts or bytes.

  Args:
    path: the file.
    names: columns to read; None: all.

  Raises:
    UserError: it is missing or damaged.
  """
  try:
    whole = parquet.read_table(
        path, columns=list(names) if names else None, memory_map=True)
  except (OSError, pyarrow.ArrowException) as error:
    raise errors.UserError(
        f'{path} cannot be read ({_first_line(error)}): {_FIX}') from error
  return arrays(whole)


def table(columns: Mapping[str, Any]) -> pyarrow.Table:
  """Columns as Arrow has them, see `write`."""
  return pyarrow.table({name: _column(values)
                        for name, values in columns.items()})


def arrays(whole: pyarrow.Table) -> dict[str, Any]:
  """The inverse of `table`."""
  return {name: _values(whole[name]) for name in whole.column_names}


def _column(values: Any) -> pyarrow.Array:
  if not isinstance(values, np.ndarray):
    if any(isinstance(value, bytes) for value in values[:1]):
      return pyarrow.array(values, pyarrow.binary())
    return pyarrow.array([_utf8(value) for value in values], pyarrow.string())
  if values.ndim == 1:
    return pyarrow.array(values)
  return pyarrow.FixedSizeListArray.from_arrays(
      pyarrow.array(values.reshape(-1)), values.shape[1])


def _utf8(value: str) -> str:
  """A text without halves of characters, which JSON may hold."""
  return value if value.isascii() else value.encode(
      'utf-8', 'replace').decode()


def _values(column: pyarrow.ChunkedArray) -> Any:
  kind = column.type
  if pyarrow.types.is_fixed_size_list(kind):
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), kind.list_size)
  if pyarrow.types.is_string(kind) or pyarrow.types.is_binary(kind):
    return column.to_pylist()
  return column.to_numpy()


def _first_line(error: Exception) -> str:
  return (str(error).splitlines() or [type(error).__name__])[0]
