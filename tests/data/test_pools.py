"""Pools: every kind gives the same images, and says what is not there."""

import io
import json
import tarfile

import numpy as np
from PIL import Image
import pyarrow
from pyarrow import parquet
import pytest

from dinojax.core import errors
from dinojax.data import records
from dinojax.data.pools import opened
from dinojax.data.pools import tars


def png(seed):
  pixels = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
  out = io.BytesIO()
  Image.fromarray(pixels).save(out, 'PNG')
  return out.getvalue()


IMAGES = [png(i) for i in range(4)]


def tar(path, members):
  with tarfile.open(path, 'w') as archive:
    for name, data in members:
      info = tarfile.TarInfo(name)
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))


def listed(spec):
  pool = opened.open_pool(spec)
  return pool, [entry for file in pool.files() for entry in pool.entries(file)]


def bytes_of(spec):
  pool, entries = listed(spec)
  return [pool.read(e.file, e.offset, e.size) for e in entries if not e.problem]


def test_every_kind_gives_the_same_bytes(tmp_path):
  folder = tmp_path / 'folder'
  (folder / 'sub').mkdir(parents=True)
  for i, data in enumerate(IMAGES):
    (folder / 'sub' / f'{i}.png').write_bytes(data)
  tar(tmp_path / 'a.tar', [(f'{i}.png', d) for i, d in enumerate(IMAGES[:3])])
  tar(tmp_path / 'b.tar', [('3.png', IMAGES[3])])
  parquet.write_table(pyarrow.table({'image': [{'bytes': d, 'path': 'x'}
                                               for d in IMAGES]}),
                      tmp_path / 'a.parquet', row_group_size=3)
  records.write(opened.sources.open_source(f'folder:{folder}'),
                str(tmp_path / 'records'), num_shards=2)
  for spec in (f'folder:{folder}', str(folder), f'tar:{tmp_path}/*.tar',
               f'parquet:{tmp_path}/a.parquet', str(tmp_path / 'a.parquet'),
               f'arrayrecord:{tmp_path}/records'):
    assert bytes_of(spec) == IMAGES, spec
  assert bytes_of(f'tar:{tmp_path}/{{a..b}}.tar'.replace(
      '{a..b}', '?')) == IMAGES


def test_samples_of_webdataset(tmp_path):
  note = {'url': 'http://a.b/c.png', 'license': 'CC0'}
  tar(tmp_path / '00000.tar', [
      ('d/1.png', IMAGES[0]), ('d/1.json', json.dumps(note).encode()),
      ('d/1.txt', b' a dog\n'), ('d/.hidden.png', IMAGES[3]),
      ('__meta__.png', IMAGES[3]), ('noending', b'x'),
      ('2.left.png', IMAGES[1]), ('2.right.png', IMAGES[2]),
      ('3.json', b'{"url": "http://no.image"}'), ('4.png', IMAGES[3]),
      ('4.json', b'not json')])
  _, entries = listed(str(tmp_path / '00000.tar'))
  assert [e.name for e in entries] == [
      'd/1.png', '2.left.png', '2.right.png', '4.png']
  assert entries[0].url == note['url'] and entries[0].licence == 'CC0'
  assert entries[0].caption == 'a dog' and entries[3].url == ''
  assert bytes_of(str(tmp_path / '00000.tar')) == IMAGES
  assert tars.braced('x-{008..010}.tar') == [
      'x-008.tar', 'x-009.tar', 'x-010.tar']


def test_a_tar_file_that_is_cut_short_keeps_what_is_whole(tmp_path):
  tar(tmp_path / 'a.tar', [(f'{i}.png', d) for i, d in enumerate(IMAGES)])
  data = (tmp_path / 'a.tar').read_bytes()
  third = data.index(IMAGES[2])
  (tmp_path / 'a.tar').write_bytes(data[:third + 20])
  pool, entries = listed(str(tmp_path / 'a.tar'))
  got = [pool.read(e.file, e.offset, e.size) for e in entries[:2]]
  assert got == IMAGES[:2]
  # The third has a header alone: found when it is read, or listed as cut.
  for entry in entries[2:]:
    if not entry.problem:
      with pytest.raises(OSError, match='ends inside'):
        pool.read(entry.file, entry.offset, entry.size)


def test_output_of_img2dataset(tmp_path):
  tar(tmp_path / '00000.tar', [('000000000.jpg', IMAGES[0])])
  parquet.write_table(pyarrow.table({
      'key': ['000000000', '000000001'], 'url': ['http://a/1', 'http://a/2'],
      'caption': ['a cat', None], 'status': ['success', 'failed_to_download'],
      'error_message': [None, '404']}), tmp_path / '00000.parquet')
  with pytest.raises(errors.UserError, match='no finished shard'):
    opened.open_pool(f'img2dataset:{tmp_path}')
  (tmp_path / '00000_stats.json').write_text('{}')
  _, (image, missing) = listed(f'img2dataset:{tmp_path}')
  assert (image.url, image.caption) == ('http://a/1', 'a cat')
  assert missing.problem == 'failed_to_download: 404'
  assert missing.url == 'http://a/2' and not image.problem


def test_what_is_not_there_is_named(tmp_path):
  parquet.write_table(pyarrow.table({'url': ['http://a']}),
                      tmp_path / 'a.parquet')
  for spec, words in (
      (f'folder:{tmp_path}/no', 'is no folder'),
      (f'tar:{tmp_path}/*.tar', 'matches no file'),
      (f'tar:{tmp_path}/a.parquet/{{0..1}}.tar', 'matches no file'),
      (f'parquet:{tmp_path}/a.parquet', 'fetched by img2dataset first'),
      (f'parquet:{tmp_path}/a.parquet?picture=url', 'is not understood'),
      ('nothing:here', 'is not known')):
    with pytest.raises(errors.UserError, match=words):
      opened.open_pool(spec)
  (tmp_path / 'a.tar.gz').write_bytes(b'')
  with pytest.raises(errors.UserError, match='unpack it'):
    opened.open_pool(f'tar:{tmp_path}/a.tar.gz')
  (tmp_path / 'b.parquet').write_bytes(b'x')
  with pytest.raises(errors.UserError, match='is not a readable Parquet'):
    opened.open_pool(f'parquet:{tmp_path}/b.parquet?image=a').order()
    list(opened.open_pool(
        f'parquet:{tmp_path}/b.parquet?image=a').entries('b.parquet'))
