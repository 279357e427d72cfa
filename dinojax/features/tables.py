"""Shards of a table joined into one .npz, .parquet or .csv, shard by shard.

A shard is a dict of arrays with rows leading: names, labels, features, and
grids for patches; `bad` lists what is left out. Memory stays that of a shard,
whatever the length of the whole.
"""

from collections.abc import Callable, Iterator, Sequence
import csv
import importlib.util
import json
import zipfile

import numpy as np

from dinojax.core import errors

Shard = dict[str, np.ndarray]
SETTINGS = 'settings'
_COLUMNS = ('names', 'labels', 'features', 'grids', 'bad')
# A fixed date: the same rows are the same bytes.
_DATE = (1980, 1, 1, 0, 0, 0)


def check(path: str, features: str):
  """Refuses a file that cannot hold the features, or be written here.

  Raises:
    UserError: see `suffix`, or patches in a .csv.
  """
  if suffix(path) == 'csv' and features == 'patches':
    raise errors.UserError(
        f'--out={path} has a row for each image, and --features=patches many '
        'features: end it with .npz or .parquet')


def suffix(path: str) -> str:
  """'npz', 'parquet' or 'csv'.

  Raises:
    UserError: another one, or the package it needs is missing.
  """
  end = path.rpartition('.')[2]
  if end not in _WRITERS:
    raise errors.UserError(
        f'--out={path} is neither .npz nor .parquet nor .csv: end it with one '
        'of them')
  if end == 'parquet' and importlib.util.find_spec('pyarrow') is None:
    raise errors.UserError(
        f'--out={path} needs the package pyarrow: `pip install '
        '"dinojax[parquet]"`, or end it with .npz')
  return end


def write_shard(path: str, shard: Shard):
  """Writes one shard."""
  with zipfile.ZipFile(path, 'w') as file:
    for name, value in shard.items():
      _write_member(file, name, value.dtype, value.shape, [value])


def read_shard(path: str) -> Shard:
  """Reads one shard, whole."""
  with np.load(path) as file:
    return dict(file)


def join(path: str, shards: Sequence[str], settings: dict,
         classes: Sequence[str]):
  """Writes a table of all shards.

  Args:
    path: .npz or .parquet.
    shards: files of `write_shard`, in order.
    settings: kept in the table, see `read_settings`.
    classes: names of the labels; with them, or any label, a table has labels.
  """
  columns = [name for name in _COLUMNS if name in _headers(shards[0])]
  if not classes and all((_column(shard, 'labels') < 0).all()
                         for shard in shards):
    columns.remove('labels')
  _WRITERS[suffix(path)](path, shards, columns, settings, classes)


def read_settings(path: str) -> dict | None:
  """The settings of a finished table; None: not one of ours."""
  try:
    if suffix(path) == 'npz':
      with np.load(path) as file:
        return json.loads(str(file[SETTINGS]))
    if suffix(path) == 'csv':
      return _note(path)[SETTINGS]
    from pyarrow import parquet
    metadata = parquet.read_schema(path).metadata or {}
    return json.loads(metadata[f'dinojax.{SETTINGS}'.encode()])
  except errors.UserError:
    raise
  except Exception:  # a damaged or foreign file has many errors
    return None


def summary(path: str) -> tuple[int, list[list[str]]]:
  """Rows of a shard or table, and [name, reason] of what is left out."""
  if suffix(path) == 'npz':
    return _headers(path)['names'][0][0], _column(path, 'bad').tolist()
  if suffix(path) == 'csv':
    note = _note(path)
    return note['rows'], note['bad']
  from pyarrow import parquet
  metadata = parquet.read_metadata(path)
  return metadata.num_rows, json.loads(metadata.metadata[b'dinojax.bad'])


def _join_npz(path: str, shards: Sequence[str], columns: Sequence[str],
              settings: dict, classes: Sequence[str]):
  headers = [_headers(shard) for shard in shards]
  whole = {SETTINGS: np.array(json.dumps(settings))}
  if 'labels' in columns:
    whole['classes'] = np.array(classes, np.str_)
  with zipfile.ZipFile(path, 'w') as file:
    for name in columns:
      shapes, dtypes = zip(*(h[name] for h in headers), strict=True)
      # A shard in which no image could be read does not know the width.
      inner = next((s[1:] for s in shapes if s[0]), shapes[0][1:])
      dtype = np.result_type(*dtypes)  # of names: the longest
      shape = (sum(s[0] for s in shapes), *inner)
      _write_member(file, name, dtype, shape,
                    (_column(shard, name) for shard in shards))
    for name, value in whole.items():
      _write_member(file, name, value.dtype, value.shape, [value])


def _write_member(file: zipfile.ZipFile, name: str, dtype: np.dtype,
                  shape: tuple[int, ...], blocks):
  """An array in an .npz, written block by block."""
  header = {'descr': np.lib.format.dtype_to_descr(dtype),
            'fortran_order': False, 'shape': shape}
  info = zipfile.ZipInfo(f'{name}.npy', _DATE)
  with file.open(info, 'w', force_zip64=True) as member:
    np.lib.format.write_array_header_1_0(member, header)
    for block in blocks:
      member.write(np.ascontiguousarray(block, dtype).tobytes())


def _headers(shard: str) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
  """Shape and dtype of every array of a shard, without reading it."""
  out = {}
  with zipfile.ZipFile(shard) as file:
    for name in file.namelist():
      with file.open(name) as member:
        np.lib.format.read_magic(member)
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
      out[name.removesuffix('.npy')] = shape, dtype
  return out


def _column(shard: str, name: str) -> np.ndarray:
  with np.load(shard) as file:
    return file[name]


def _join_parquet(path: str, shards: Sequence[str], columns: Sequence[str],
                  settings: dict, classes: Sequence[str]):
  """A row group a shard; `bad`, classes and settings in the metadata."""
  import pyarrow
  from pyarrow import parquet
  bad = [row for shard in shards for row in _column(shard, 'bad').tolist()]
  metadata = {f'dinojax.{key}': json.dumps(value) for key, value in {
      SETTINGS: settings, 'classes': list(classes), 'bad': bad}.items()}
  writer = None
  try:
    for table in _tables(pyarrow, shards, columns):
      if writer is None:
        writer = parquet.ParquetWriter(
            path, table.schema.with_metadata(metadata), use_dictionary=False)
      writer.write_table(table.replace_schema_metadata(metadata))
  finally:
    if writer is not None:
      writer.close()


def _tables(pyarrow, shards: Sequence[str], columns: Sequence[str]) -> Iterator:
  """Shards with rows as Arrow tables."""
  for path in shards:
    shard = read_shard(path)
    if not len(shard['names']):
      continue
    table = {'name': pyarrow.array(shard['names'].tolist())}
    if 'labels' in columns:
      table['label'] = pyarrow.array(shard['labels'])
    if 'grids' in columns:
      table['grid'] = _fixed_lists(pyarrow, shard['grids'])
    table['feature'] = _fixed_lists(pyarrow, shard['features'])
    if len(shard['features']) != len(shard['names']):  # all patches in turn
      ends = np.cumsum(shard['grids'].prod(1, dtype=np.int32), dtype=np.int32)
      table['feature'] = pyarrow.ListArray.from_arrays(
          np.concatenate([[0], ends]).astype(np.int32), table['feature'])
    yield pyarrow.table(table)


def _fixed_lists(pyarrow, values: np.ndarray):
  """[r, …, d] as an Arrow array of nested lists of fixed sizes."""
  out = pyarrow.array(values.reshape(-1))
  for size in values.shape[:0:-1]:
    out = pyarrow.FixedSizeListArray.from_arrays(out, size)
  return out


def note_path(path: str) -> str:
  """The file beside a .csv that has its settings and what is left out."""
  return f'{path}.json'


def write_note(path: str, shards: Sequence[str], settings: dict,
               classes: Sequence[str]):
  """Writes what a .csv has no place for."""
  bad = [row for shard in shards for row in _column(shard, 'bad').tolist()]
  rows = sum(_headers(shard)['names'][0][0] for shard in shards)
  with open(path, 'w', encoding='utf-8') as file:
    json.dump({SETTINGS: settings, 'classes': list(classes), 'rows': rows,
               'bad': bad}, file, indent=1)


def _note(path: str) -> dict:
  with open(note_path(path), encoding='utf-8') as file:
    return json.load(file)


def _join_csv(path: str, shards: Sequence[str], columns: Sequence[str],
              settings: dict, classes: Sequence[str]):
  """A row for each image: name, label and class, and its features."""
  del settings  # in the note
  labelled = 'labels' in columns
  widths = [shape[1] for shape, _ in (
      _headers(shard)['features'] for shard in shards) if shape[0]]
  head = ['name', *(['label', 'class'] if labelled else []),
          *(f'feature_{i}' for i in range(widths[0]))]
  with open(path, 'w', encoding='utf-8', newline='') as file:
    writer = csv.writer(file)
    writer.writerow(head)
    for shard in map(read_shard, shards):
      for row, (name, label) in enumerate(
          zip(shard['names'].tolist(), shard['labels'].tolist(), strict=True)):
        known = 0 <= label < len(classes)
        writer.writerow([
            name, *([label, classes[label] if known else ''] if labelled
                    else []),
            # As few digits as give the same number again.
            *shard['features'][row].astype(str).tolist()])


_WRITERS: dict[str, Callable] = {
    'npz': _join_npz, 'parquet': _join_parquet, 'csv': _join_csv}
