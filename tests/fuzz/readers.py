"""What is tried with damaged bytes: each returns a word, or has a fault."""

import pathlib

from etils import epath
import numpy as np

from dinojax.core import errors
from dinojax.data import crops
from dinojax.data import identity
from dinojax.data import images
from dinojax.data import record as record_lib
from dinojax.data import records
from dinojax.features import tables

_CROPS = crops.Crops(num_global=2, global_px=16, num_local=1, local_px=8)


def image(data: bytes) -> str:
  """An image, as training, evaluation or `embed` reads it."""
  use = (
      lambda opened: crops.multi_crop(
          opened, np.random.default_rng(0), _CROPS),
      lambda opened: crops.center_crop(opened, resize_px=16, crop_px=16),
      lambda opened: crops.whole(opened, short_px=16, patch_px=8)
  )[len(data) % 3]
  try:
    use(images.open_image(data))
  except images.BadImage as error:
    assert error.reason.isprintable(), error.reason
    return 'bad image'
  return 'read'


def record(data: bytes) -> str:
  """A record, as it is stored in a shard."""
  try:
    content = records.unpack(data)
  except ValueError:
    return 'refused'
  assert type(content.label) is int and isinstance(content.name, str)
  return 'read'


def shard(data: bytes) -> str:
  """A shard of records, opened and read to its end."""
  pathlib.Path('a.arrayrecord').write_bytes(data)
  try:
    source = records.ArrayRecords('a.arrayrecord')
  except errors.UserError:
    return 'refused'
  bad = 0
  for index in range(min(len(source), 16)):
    try:
      _ = source[index]
    except OSError:
      bad += 1
  return 'bad image' if bad else 'read'


def manifest(data: bytes) -> str:
  """The note beside shards, when they are read and when they are written."""
  folder = pathlib.Path('shards')
  if not folder.exists():
    records.write(_Two(), str(folder), num_shards=1)
  (folder / records.MANIFEST).write_bytes(data)
  try:
    source = records.ArrayRecords(f'{folder}/*.arrayrecord')
    identity.lines(source)
    source.class_counts()
    records.write(_Two(), str(folder), num_shards=1)
  except errors.UserError:
    return 'refused'
  return 'read'


def data_note(data: bytes) -> str:
  """The digests of a run's data, plain or compressed with the names."""
  here, now = epath.Path('.'), identity.Data([_Two()])
  packed = data[:1] == b'\x1f'
  whole = here / 'whole'
  if not whole.exists():
    whole.mkdir()
    now.keep(whole)
  for name, damaged in (('data.json', not packed),
                        ('data_names.json.gz', packed)):
    (here / name).write_bytes(
        data if damaged else (whole / name).read_bytes())
  try:
    identity.check(here, now, accept=False, same=lambda text: text)
  except errors.UserError:
    return 'refused'
  return 'read'


def table(data: bytes) -> str:
  """A finished table, as `embed` looks at one that is in its place."""
  end = 'npz' if b'PK' in data else 'parquet' if b'PAR1' in data else 'csv'
  file = f'a.{end}'
  pathlib.Path(tables.note_path(file) if end == 'csv' else file).write_bytes(
      data)
  return 'refused' if tables.read_settings(file) is None else 'read'


class _Two:
  """Two records without names."""

  spec, classes = 'two', ('a', 'b')

  def __len__(self):
    return 2

  def __getitem__(self, index):
    return record_lib.Record(b'image', index, str(index))
