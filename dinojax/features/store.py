"""A long piece of work in shards beside its result, so that it can continue.

`feats.npz.shards/` holds settings.json and the finished shards of feats.npz.
A shard appears under its name when it is whole, and depends on the settings
and its number alone.
"""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import zipfile

import jax
import numpy as np

from dinojax.core import errors
from dinojax.core import paths
from dinojax.core import tree
from dinojax.data import identity
from dinojax.data import record as record_lib
from dinojax.features import backbone as backbone_lib
from dinojax.features import tables

_NOTE = 'settings.json'
DATA = 'data'  # the setting that is a digest of names and sizes
# Fields of a backbone that change its speed, not its features.
_FREE_FIELDS = ('attention', 'packing', 'remat')


def key(model: backbone_lib.Backbone, source: record_lib.Source, *,
        name: str = '') -> dict:
  """Settings that say of which weights and of which images a result is.

  Args:
    model: the backbone.
    source: records.
    name: a name of the weights, kept beside their digest.
  """
  return {'model': f'{name} {digest(model.config, model.params)}',
          'source': source.spec, 'images': len(source),
          DATA: identity.digest(identity.lines(source, sizes=True)),
          'mean': list(model.mean), 'std': list(model.std)}


def digest(config, params: tree.Tree) -> str:
  """Digest of the configuration and about a thousand values of every tensor.

  Training moves every value, so a few of them tell two models apart.
  """
  fields = {key: value for key, value in dataclasses.asdict(config).items()
            if key not in _FREE_FIELDS}
  out = hashlib.sha256(repr(sorted(fields.items())).encode())
  for name, value in tree.items(params):
    flat = np.asarray(jax.device_get(value)).reshape(-1)
    out.update(f'{name} {value.shape}'.encode())
    out.update(flat[::max(flat.size // 1000, 1)].tobytes())
  return out.hexdigest()[:16]


class Store:
  """The shards of one result.

  Attributes:
    folder: folder of the shards.
    count: number of shards.
    num_done: number of finished shards, from the first on; counted by `held`.
    is_finished: True if the result itself is there.
  """

  def __init__(self, out: str, settings: dict, *, num_rows: int,
               rows_per_shard: int):
    """Compares a result that is there with the settings.

    Args:
      out: path of the result, .npz, .parquet or .csv.
      settings: values that change the result, as JSON.
      num_rows: number of rows of the source.
      rows_per_shard: rows of every shard but the last.

    Raises:
      UserError: a result is there, of other settings or other images.
    """
    self._out = pathlib.Path(paths.expand(out))
    self.folder = self._out.with_name(f'{self._out.name}.shards')
    self._settings = json.loads(json.dumps(settings))
    self._num_rows, self._rows_per_shard = num_rows, rows_per_shard
    self.count = -(-num_rows // rows_per_shard)
    self.is_finished, self.num_done = self._out.exists(), 0
    if self.is_finished:
      self._compare(tables.read_settings(str(self._out)), str(self._out))

  def _compare(self, old: dict | None, place: str, *, data: bool = True):
    if old is None:
      raise errors.UserError(
          f'{place} exists and was not written by `dinojax embed`: choose '
          'another --out')
    new = self._settings
    differs = [f'{key} was {old.get(key)!r} and is {new.get(key)!r}'
               for key in {**old, **new}
               if key != DATA and old.get(key) != new.get(key)]
    if not differs and old.get(DATA) != new.get(DATA) and data:
      raise errors.UserError(
          f'{place} was made of other images than {new.get("source")} has '
          'now: names or sizes of files differ. Put them back, choose '
          'another --out, or delete it to start again')
    if differs:
      raise errors.UserError(
          f'{place} was made with other settings: {"; ".join(differs)}. Use '
          'the same, choose another --out, or delete it to start again')

  @contextlib.contextmanager
  def held(self, check: Callable[[], None] = lambda: None):
    """Makes the folder, for this process alone, and counts what is done.

    Args:
      check: called before shards of an earlier run are gone on with.

    Raises:
      UserError: it holds shards of other settings, or another run is at work
        in it.
    """
    note = self.folder / _NOTE
    self.folder.mkdir(parents=True, exist_ok=True)
    with open(self.folder / 'lock', 'w') as lock:
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except OSError as error:
        raise errors.UserError(
            f'{self.folder} is in use by another run: wait for it, or choose '
            'another --out') from error
      if note.exists() and any(self.folder.glob('shard-*.npz')):
        old = _read_note(note)
        self._compare(old, str(self.folder), data=False)
        self.num_done = next(
            (i for i in range(self.count) if not _is_whole(self.path(i))),
            self.count)
        check()
        self._compare(old, str(self.folder))
      self._replace(note, lambda path: path.write_text(
          json.dumps(self._settings, indent=1)))
      yield

  def path(self, number: int) -> pathlib.Path:
    """The file of one shard."""
    return self.folder / f'shard-{number:05d}-of-{self.count:05d}.npz'

  def rows(self, number: int) -> range:
    """Row numbers of one shard."""
    start = number * self._rows_per_shard
    return range(start, min(start + self._rows_per_shard, self._num_rows))

  def write(self, number: int, shard: tables.Shard):
    """Keeps a finished shard."""
    self._replace(self.path(number),
                  lambda path: tables.write_shard(str(path), shard))

  def join(self, classes: Sequence[str]):
    """Writes the result from all shards."""
    shards = [str(self.path(i)) for i in range(self.count)]
    if tables.suffix(str(self._out)) == 'csv':  # first: with it, it is whole
      self._replace(pathlib.Path(tables.note_path(str(self._out))),
                    lambda path: tables.write_note(
                        str(path), shards, self._settings, classes))
    self._replace(self._out, lambda path: tables.join(
        str(path), shards, self._settings, classes))

  def remove(self):
    """Deletes the shards."""
    if (self.folder / _NOTE).exists():
      shutil.rmtree(self.folder, ignore_errors=True)

  def _replace(self, path: pathlib.Path, put: Callable[[pathlib.Path], None]):
    """Writes beside the shards, then takes the name; durable."""
    temporary = self.folder / f'unfinished-{path.name}'
    try:
      put(temporary)
      with open(temporary, 'rb+') as file:
        os.fsync(file.fileno())
      temporary.replace(path)
    except OSError as error:
      raise errors.UserError(
          f'{path} cannot be written: {error.strerror or error}; make room '
          'and start the same command again: finished shards are kept'
      ) from error


def _read_note(path: pathlib.Path) -> dict | None:
  try:
    return json.loads(path.read_text())
  except ValueError:
    return None


def _is_whole(path: pathlib.Path) -> bool:
  """Tells whether a shard is there with its table of contents in order."""
  try:
    with zipfile.ZipFile(path) as file:
      return bool(file.namelist())
  except (OSError, zipfile.BadZipFile):
    return False
