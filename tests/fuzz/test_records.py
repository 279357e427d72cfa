"""Damaged records, shards, notes and tables: refused, or a bad image."""

import gzip
import json
import pathlib

from etils import epath
import numpy as np
import pytest

from dinojax.data import identity
from dinojax.data import record as record_lib
from dinojax.data import records
from dinojax.features import tables
from tests.fuzz import mutate
from tests.fuzz import readers

TRIES, MANY = 200, 20_000
RECORD = records.pack(record_lib.Record(b'image' * 9, 3, 'a/größe.png'))


def shard(folder) -> bytes:
  records.write(readers._Two(), str(folder), num_shards=1)
  path, = pathlib.Path(folder).glob('*.arrayrecord')
  return path.read_bytes()


def table(folder, kind) -> bytes:
  part, out = str(folder / 'part.npz'), str(folder / f'out.{kind}')
  tables.write_shard(part, {
      'names': np.array(['a', 'b']), 'labels': np.array([0, 1]),
      'features': np.ones((2, 3), np.float32),
      'bad': np.array([['c', 'empty']]), 'index': np.arange(2)})
  tables.join(out, [part], {'version': 1}, ('x', 'y'))
  return pathlib.Path(out).read_bytes()


def seeds(name, folder) -> list[bytes]:
  note = {'classes': ['a', 'b'], 'class_counts': [1, 1], 'count': 2,
          'digest': identity.digest(['2']), 'num_shards': 1, 'spec': 'two'}
  if name == 'record':
    return [RECORD]
  if name == 'shard':
    return [shard(folder)]
  if name == 'manifest':
    return [json.dumps(note).encode()]
  if name == 'data_note':
    identity.Data([readers._Two()]).keep(epath.Path(folder))
    return [(folder / 'data.json').read_bytes(),
            (folder / 'data_names.json.gz').read_bytes(),
            gzip.compress(b'{"two": [1, 2, "x"]}')]
  return [table(folder, 'npz'), table(folder, 'parquet'), json.dumps(
      {'settings': {'a': 1}, 'rows': 2, 'bad': []}).encode()]


NAMES = ['record', 'shard', 'manifest', 'data_note', 'table']


def damage(name, folder, tries, seed):
  outcomes = mutate.outcomes(
      seeds(name, folder), f'tests.fuzz.readers:{name}', tries, seed)
  assert not outcomes.faults, outcomes.report()
  return outcomes.counts


@pytest.mark.parametrize('name', NAMES)
def test_damage_is_refused_or_read(name, tmp_path):
  counts = damage(name, tmp_path, TRIES, seed=1)
  assert counts.total() == TRIES
  if name not in ('data_note', 'record'):
    assert counts['refused'] > 20


@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_much_damage_is_refused_or_read(name, tmp_path):
  damage(name, tmp_path, MANY, seed=2)


@pytest.mark.parametrize('header', [
    b'[]', b'3', b'"v"', b'{}', b'{"v": 1, "label": "x", "name": "a"}',
    b'{"v": 1, "label": 1, "name": 5}', b'{"v": 1, "label": true, "name": ""}',
    b'{"v": 1, "label": 1e99, "name": "a"}', b'[' * 100_000, b'\xff',
    b'{"v": 1, "label": 99999999999999999999, "name": "a"}'])
def test_a_header_of_other_types_is_refused(header):
  data = len(header).to_bytes(4, 'little') + header + b'image'
  with pytest.raises(ValueError, match='not a dinojax record'):
    records.unpack(data)
