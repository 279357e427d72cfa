"""ArrayRecord shards of encoded images: many small files as few large ones.

A record is a 4-byte little-endian length, that many bytes of JSON (version,
label, name), and the image bytes untouched.
"""

import bisect
from collections.abc import Callable
import itertools
import json
import logging
import struct

from array_record.python import array_record_module
from etils import epath

from dinojax.core import atomic
from dinojax.core import errors
from dinojax.core import paths
from dinojax.core import text
from dinojax.data import identity
from dinojax.data import record as record_lib

_VERSION = 1
MANIFEST = 'manifest.json'


def pack(record: record_lib.Record) -> bytes:
  """A record as stored."""
  header = json.dumps({
      'v': _VERSION, 'label': record.label, 'name': record.name}).encode()
  return struct.pack('<I', len(header)) + header + record.image


def unpack(data: bytes) -> record_lib.Record:
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
    label, name = header['label'], header['name']
    if type(label) is not int or not -2**31 <= label < 2**31 or not (
        isinstance(name, str)):
      raise ValueError('not a dinojax record: its label or name is not one')
    return record_lib.Record(data[4 + size:], label, name)
  except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError,
          RecursionError) as error:
    raise ValueError('not a dinojax record') from error


def write(source: record_lib.Source, folder: str, *, num_shards: int,
          progress: Callable[[int, int], None] = lambda done, total: None
          ) -> list[str]:
  """Writes a source as ArrayRecord shards; an interrupted run continues.

  Args:
    source: records to write, in order.
    folder: folder of the shards; made when missing.
    num_shards: number of files.
    progress: called with the numbers of records done and in all.

  A record that cannot be read is logged and stored empty, so that the others
  keep their numbers; training counts it as a bad image.

  Returns:
    Paths of the shards.

  Raises:
    UserError: the folder holds another source's shards, or cannot be
      written.
  """
  root = epath.Path(paths.expand(folder))
  order = identity.lines(source, sizes=True)
  manifest = {'spec': source.spec, 'count': len(source),
              'num_shards': num_shards, 'classes': list(source.classes),
              'digest': identity.digest(order)}
  counts = getattr(source, 'class_counts', lambda: None)()
  if counts is not None:
    manifest['class_counts'] = counts
  written = []
  try:
    root.mkdir(parents=True, exist_ok=True)
    note = root / MANIFEST
    if note.exists():
      _compare(_read_manifest(note), manifest, folder)
    else:
      if any(root.glob('*.arrayrecord')):
        raise errors.UserError(
            f'{folder} holds records, but no {MANIFEST} that says of what: '
            'choose an empty --out')
      atomic.write_text(note, json.dumps(manifest))
    for shard in range(num_shards):
      start, stop = (len(source) * i // num_shards
                     for i in (shard, shard + 1))
      path = root / f'records-{shard:05d}-of-{num_shards:05d}.arrayrecord'
      if not path.exists():
        _write_shard(source, range(start, stop), path,
                     lambda i: progress(i + 1, len(source)))
      progress(stop, len(source))
      written.append(str(path))
  except OSError as error:
    raise errors.UserError(
        f'--out={folder} cannot be written: {error.strerror or error}'
    ) from error
  return written


def _compare(old: dict, new: dict, folder: str):
  """Refuses to go on with a source that is not as it was.

  Raises:
    UserError: another source or sharding, or other files in it.
  """
  same = [key for key in ('spec', 'num_shards', 'classes')
          if old.get(key) != new[key]]
  if same:
    raise errors.UserError(
        f'{folder} holds records of another source or sharding ('
        f'{", ".join(same)}): choose an empty --out')
  if old.get('count') != new['count'] or old.get('digest') != new['digest']:
    raise errors.UserError(
        f'{new["spec"]} has changed since {folder} was begun: it had '
        f'{old.get("count")} images and has {new["count"]}, and names or '
        'sizes differ; choose an empty --out, or delete it to start again')


def _read_manifest(path: epath.Path) -> dict:
  """Reads the manifest that `write` left.

  Raises:
    UserError: the file is damaged.
  """
  fix = 'convert the images again'
  kept = atomic.read_json(path, fix)
  classes = kept.get('classes') if isinstance(kept, dict) else None
  if not isinstance(classes, list) or not all(
      isinstance(name, str) for name in classes):
    raise errors.UserError(f'{path} is not of dinojax records: {fix}')
  counts = kept.get('class_counts')
  if counts is not None and not (
      isinstance(counts, list) and len(counts) == len(classes)
      and all(type(n) is int for n in counts)):
    raise errors.UserError(f'{path} is not of dinojax records: {fix}')
  return kept


def _write_shard(source, indices: range, path: epath.Path, done):
  temporary = path.parent / (path.name + '.tmp')
  writer = array_record_module.ArrayRecordWriter(
      str(temporary), 'group_size:1')
  for index in indices:
    writer.write(pack(_read(source, index)))
    done(index)
  writer.close()
  temporary.rename(path)


def _read(source: record_lib.Source, index: int) -> record_lib.Record:
  try:
    return source[index]
  except OSError as error:
    logging.warning('%s: record %d is stored empty: %s', text.printable(
        source.spec), index, text.printable(error))
    return record_lib.Record(b'', -1, f'unreadable/{index}')


class ArrayRecords:
  """Shards written by `write`, as one source."""

  def __init__(self, pattern: str):
    """Opens every file that matches; of a folder, all of its shards.

    Raises:
      UserError: no file matches, or one is damaged.
    """
    self.spec = f'arrayrecord:{pattern}'
    path = epath.Path(paths.expand(pattern))
    try:
      if path.is_dir():
        path = path / '*.arrayrecord'
      files = sorted(
          str(p) for p in path.parent.glob(path.name) if '.tmp' not in p.name)
    except (OSError, ImportError, ValueError) as error:
      raise errors.UserError(
          f'{self.spec} cannot be opened: {error}; check the path, and '
          '`pip install gcsfs` for gs://') from error
    if not files:
      raise errors.UserError(
          f'{self.spec} matches no file: write shards with `dinojax convert '
          'records`, and quote the pattern')
    self._paths = files
    self._readers: dict[int, array_record_module.ArrayRecordReader] = {}
    self._starts = [0]
    for shard, path_name in enumerate(files):
      count = self._reader(shard).num_records()
      if not count:
        raise errors.UserError(
            f'{path_name} holds no records or is damaged: write it again, or '
            f'give shards alone: {path.parent}/*.arrayrecord')
      self._starts.append(self._starts[-1] + count)
    note = path.parent / MANIFEST
    self._manifest = _read_manifest(note) if note.exists() else {}
    self.classes = tuple(self._manifest.get('classes', ()))

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

  def order(self, sizes: bool = False) -> list[str]:
    """The shards: how many records of which source, or how many bytes.

    The names of the records would have to be read from all of them.
    """
    del sizes  # they are in the digest of the manifest
    counts = [b - a for a, b in itertools.pairwise(self._starts)]
    return [f'{epath.Path(path).name}\t{count}\t'
            + str(self._manifest.get('digest')
                  or epath.Path(path).stat().length)
            for path, count in zip(self._paths, counts, strict=True)]

  def class_counts(self) -> list[int] | None:
    """Number of records of each class, where they were noted."""
    return self._manifest.get('class_counts')

  def __getstate__(self) -> dict:
    return self.__dict__ | {'_readers': {}}

  def __len__(self) -> int:
    return self._starts[-1]

  def __getitem__(self, index: int) -> record_lib.Record:
    shard = bisect.bisect_right(self._starts, index) - 1
    try:
      data = self._reader(shard).read([index - self._starts[shard]])[0]
      return unpack(data)
    except errors.UserError:
      raise
    except Exception as error:  # the reader's are of many kinds
      # To the pipeline, a damaged record is an image that cannot be read.
      raise OSError(
          f'record {index} of {self._paths[shard]}: '
          f'{(str(error).splitlines() or [""])[0]}') from error
