"""Parquet files with encoded images in a column."""

from collections.abc import Iterator, Sequence
import functools
import glob
import os
from typing import Any
import urllib.parse

import pyarrow
from pyarrow import parquet

from dinojax.core import errors
from dinojax.core import paths
from dinojax.data.pools import entry as entry_lib
from dinojax.data.pools import files as files_lib

# Columns of images as others name them; a struct holds `bytes`.
_IMAGES = ('image', 'jpg', 'jpeg', 'png', 'webp', 'bytes', 'image_bytes')
_TEXTS = {'url': ('url', 'image_url'), 'licence': ('license', 'licence'),
          'caption': ('caption', 'text', 'alt'),
          'name': ('name', 'key', 'id', 'file_name'),
          'problem': ('error_message',)}


class Parquets:
  """Files with a row for each image."""

  def __init__(self, pattern: str):
    """Finds the files that match.

    Args:
      pattern: path, folder or pattern; ?image=COLUMN names the column, and
        &caption=COLUMN that of the texts.

    Raises:
      UserError: none, or no column of images.
    """
    self.spec = f'parquet:{pattern}'
    place, _, query = paths.expand(pattern).partition('?')
    named = dict(urllib.parse.parse_qsl(query))
    if query and not {'image', 'caption'} >= named.keys() > set():
      raise errors.UserError(
          f'{self.spec}: ?{query} is not understood: name the column of the '
          'images as ?image=COLUMN, that of texts as ?caption=COLUMN')
    if os.path.isdir(place):
      place = os.path.join(place, '*.parquet')
    self._files = files_lib.Files(self.spec, glob.glob(place))
    self._texts = _TEXTS | ({'caption': (named['caption'],)} if (
        'caption' in named) else {})
    self._column = named.get('image') or self._guessed()
    self._named = named | {'image': self._column}

  def _guessed(self) -> str:
    """Name of the column of images.

    Raises:
      UserError: none looks like one.
    """
    first = self._files.path(self._files.names[0])
    schema = _opened(first).schema_arrow
    for name in _IMAGES:
      if name in schema.names and _holds_bytes(schema.field(name).type):
        return name
    raise errors.UserError(
        f'{first} has no column of encoded images among '
        f'{", ".join(schema.names)}: name it as ?image=COLUMN; rows with '
        'addresses alone are fetched by img2dataset first')

  def files(self) -> Sequence[str]:
    """Names of the files."""
    return self._files.names

  def order(self) -> Sequence[str]:
    """Names and sizes of the files."""
    return self._files.sizes()

  def entries(self, file: str) -> Iterator[entry_lib.Entry]:
    """Rows of a file, in order."""
    opened = _opened(self._files.path(file))
    here = set(opened.schema_arrow.names)
    for option, name in self._named.items():
      if name not in here:
        raise errors.UserError(
            f'{file} has no column {name} among {", ".join(sorted(here))}: '
            f'move it away, or name another one of {self.spec} by '
            f'?{option}=COLUMN')
    columns = {key: next((n for n in names if n in here), None)
               for key, names in self._texts.items()}
    start = 0
    for group in range(opened.num_row_groups):
      some = opened.read_row_group(
          group, [name for name in columns.values() if name]).to_pydict()
      for place in range(opened.metadata.row_group(group).num_rows):
        texts = {key: _text(key, some[name][place])
                 for key, name in columns.items() if name}
        name = f'{os.path.basename(file)}/{start + place}'
        yield entry_lib.Entry(**{
            **texts, 'name': texts.get('name') or name, 'file': file,
            'offset': start + place})
      start += opened.metadata.row_group(group).num_rows

  def read(self, file: str, offset: int, size: int) -> bytes:
    """Bytes of a row; those of its group are kept for the next ones."""
    del size
    path = self._files.path(file)
    for group, start, stop in _groups(path):
      if start <= offset < stop:
        value = _images(path, group, self._column)[offset - start].as_py()
        value = value.get('bytes') if isinstance(value, dict) else value
        if value is None:
          raise OSError('the row has no image')
        return value
    raise OSError(f'{file} has no row {offset}')


def rows(path: str) -> list[dict]:
  """Rows of a file of texts and numbers.

  Raises:
    UserError: it is missing or damaged.
  """
  return _opened(path).read().to_pylist()


def _opened(path: str) -> parquet.ParquetFile:
  try:
    return parquet.ParquetFile(path)
  except (OSError, pyarrow.ArrowException) as error:
    raise errors.UserError(
        f'{path} is not a readable Parquet file: '
        f'{(str(error).splitlines() or [""])[0]}; write it again, or move it '
        'away') from error


def _text(key: str, value: Any) -> str:
  return entry_lib.caption(value) if key == 'caption' else str(value or '')


def _holds_bytes(kind: pyarrow.DataType) -> bool:
  if pyarrow.types.is_struct(kind):
    index = kind.get_field_index('bytes')
    return index >= 0 and _holds_bytes(kind.field(index).type)
  return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)


@functools.lru_cache(maxsize=64)
def _groups(path: str) -> list[tuple[int, int, int]]:
  """Number, first row and end of every row group."""
  metadata, out, start = _opened(path).metadata, [], 0
  for group in range(metadata.num_row_groups):
    stop = start + metadata.row_group(group).num_rows
    out.append((group, start, stop))
    start = stop
  return out


@functools.lru_cache(maxsize=1)
def _images(path: str, group: int, column: str) -> pyarrow.ChunkedArray:
  return _opened(path).read_row_group(group, [column])[column]
