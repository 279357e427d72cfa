"""ArrayRecord shards of encoded images: many small files as few large ones.

A record is a 4-byte little-endian length, that many bytes of JSON (version,
label, name), and the image bytes untouched.
"""

import bisect
from collections.abc import Callable
import json
import logging
import struct

from array_record.python import array_record_module
from etils import epath

from dinojax.core import errors
from dinojax.data import sources

_VERSION = 1
MANIFEST = 'manifest.json'


def pack(record: sources.Record) -> bytes:
  """A record as stored."""
  header = json.dumps({
      'v': _VERSION, 'label': record.label, 'name': record.name}).encode()
  return struct.pack('<I', len(header)) + header + record.image


def unpack(data: bytes) -> sources.Record:
  """The inverse of `pack`.

  Raises:
    ValueError: not written by `pack`.
  """
  if len(data) < 4:
    raise ValueError('not a dinojax record: shorter than its header')
  size, = struct.unpack('<I', data[:4])
  try:
    header = json.loads(data[4:4 + size])
    if header['v'] != _VERSION:
      raise ValueError(f'record version {header["v"]}, not {_VERSION}')
    return sources.Record(data[4 + size:], header['label'], header['name'])
  except (KeyError, UnicodeDecodeError, json.JSONDecodeError) as error:
    raise ValueError('not a dinojax record') from error


def write(source: sources.Source, folder: str, *, num_shards: int,
          progress: Callable[[int, int], None] = lambda done, total: None
          ) -> list[str]:
  """Writes a source as ArrayRecord shards; an interrupted run continues.

  Args:
    source: records to write, in order.
    folder: of the shards; made when missing.
    num_shards: files.
    progress: called with records done and in all.

  A record that cannot be read is logged and stored empty, so that the others
  keep their numbers; training counts it as a bad image.

  Returns:
    Paths of the shards.

  Raises:
    UserError: the folder holds another source's shards, or cannot be
      written.
  """
  root = epath.Path(folder)
  manifest = {'spec': source.spec, 'count': len(source),
              'num_shards': num_shards, 'classes': list(source.classes)}
  paths = []
  try:
    root.mkdir(parents=True, exist_ok=True)
    note = root / MANIFEST
    if note.exists() and json.loads(note.read_text()) != manifest:
      raise errors.UserError(
          f'{folder} holds records of another source or sharding: choose an '
          'empty --out')
    note.write_text(json.dumps(manifest))
    for shard in range(num_shards):
      start, stop = (len(source) * i // num_shards
                     for i in (shard, shard + 1))
      path = root / f'records-{shard:05d}-of-{num_shards:05d}.arrayrecord'
      if not path.exists():
        _write_shard(source, range(start, stop), path,
                     lambda i: progress(i + 1, len(source)))
      progress(stop, len(source))
      paths.append(str(path))
  except OSError as error:
    raise errors.UserError(
        f'--out={folder} cannot be written: {error.strerror or error}'
    ) from error
  return paths


def _write_shard(source, indices: range, path: epath.Path, done):
  temporary = path.parent / (path.name + '.tmp')
  writer = array_record_module.ArrayRecordWriter(
      str(temporary), 'group_size:1')
  for index in indices:
    writer.write(pack(_read(source, index)))
    done(index)
  writer.close()
  temporary.rename(path)


def _read(source: sources.Source, index: int) -> sources.Record:
  try:
    return source[index]
  except OSError as error:
    logging.warning('%s: record %d is stored empty: %s',
                    source.spec, index, error)
    return sources.Record(b'', -1, f'unreadable/{index}')


class ArrayRecords:
  """Shards written by `write`, as one source."""

  def __init__(self, pattern: str):
    """Opens every file that matches.

    Raises:
      UserError: no file matches, or one is damaged.
    """
    self.spec = f'arrayrecord:{pattern}'
    path = epath.Path(pattern)
    found = sorted(
        str(p) for p in path.parent.glob(path.name) if '.tmp' not in p.name)
    if not found:
      raise errors.UserError(
          f'{self.spec} matches no file: write shards with `dinojax convert '
          'records`, and quote the pattern')
    self._paths = found
    self._readers: dict[int, array_record_module.ArrayRecordReader] = {}
    self._starts = [0]
    for shard, path_name in enumerate(found):
      count = self._reader(shard).num_records()
      if not count:
        raise errors.UserError(
            f'{path_name} holds no records or is damaged: write it again')
      self._starts.append(self._starts[-1] + count)
    note = path.parent / MANIFEST
    self.classes = tuple(
        json.loads(note.read_text())['classes']) if note.exists() else ()

  def _reader(self, shard: int) -> array_record_module.ArrayRecordReader:
    if shard not in self._readers:
      try:
        self._readers[shard] = array_record_module.ArrayRecordReader(
            self._paths[shard], 'readahead_buffer_size:0')
      except (RuntimeError, ValueError, OSError) as error:
        raise errors.UserError(
            f'{self._paths[shard]} is not a readable ArrayRecord file: '
            f'{(str(error).splitlines() or [""])[0]}; write it again'
        ) from error
    return self._readers[shard]

  def __getstate__(self) -> dict:
    return self.__dict__ | {'_readers': {}}

  def __len__(self) -> int:
    return self._starts[-1]

  def __getitem__(self, index: int) -> sources.Record:
    shard = bisect.bisect_right(self._starts, index) - 1
    try:
      data = self._reader(shard).read([index - self._starts[shard]])[0]
      return unpack(data)
    except (RuntimeError, ValueError) as error:
      # To the pipeline, a damaged record is an image that cannot be read.
      raise OSError(
          f'record {index} of {self._paths[shard]}: '
          f'{(str(error).splitlines() or [""])[0]}') from error
