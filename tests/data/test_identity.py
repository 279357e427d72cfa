"""Data that changed between two starts are noticed, and named."""

import json
import os
import subprocess
import sys

from etils import epath
from PIL import Image
import pytest

from dinojax.core import errors
from dinojax.data import identity
from dinojax.data import records
from dinojax.data import sources
from tests.data import tiny_tfds


@pytest.fixture
def folder(tmp_path):
  for i in range(6):
    place = tmp_path / 'images' / 'ab'[i % 2]
    place.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (9, 9), (40 * i, 0, 0)).save(place / f'{i}.png')
  return tmp_path / 'images'


def opened(folder):
  return sources.open_source(f'folder:{folder}')


def start(folder, workdir, *, accept=False, same=lambda text: text):
  data = identity.Data([opened(folder)])
  note = identity.check(epath.Path(workdir), data, accept=accept, same=same)
  data.keep(epath.Path(workdir))
  return note


def test_the_same_data_go_on_and_others_are_named(folder, tmp_path):
  work = tmp_path / 'run'
  work.mkdir()
  assert start(folder, work) == start(folder, work) == ''
  before = (work / 'data.json').read_bytes()
  Image.new('RGB', (9, 9)).save(folder / 'a' / '00.png')
  os.remove(folder / 'b' / '5.png')
  with pytest.raises(errors.UserError) as error:
    start(folder, work)
  message = str(error.value)
  assert 'had 6 records and has 6' in message
  assert '1 came (a/00.png), 1 went (b/5.png)' in message
  assert f'--config.init.source={work}' in message
  assert 'accept_changes' in message
  assert (work / 'data.json').read_bytes() == before
  assert '1 came' in start(folder, work, accept=True)
  assert start(folder, work) == ''


def test_a_renamed_file_and_names_that_are_not_text(folder, tmp_path):
  start(folder, tmp_path)
  os.rename(folder / 'a' / '0.png',
            os.fsencode(folder / 'a') + b'/caf\xe9\x1b.png')
  with pytest.raises(errors.UserError, match=r'\(a/caf\\udce9\\x1b\.png\)'):
    start(folder, tmp_path)
  start(folder, tmp_path, accept=True)
  assert start(folder, tmp_path) == ''


def test_without_the_names_the_digest_still_decides(folder, tmp_path):
  start(folder, tmp_path)
  (tmp_path / 'data_names.json.gz').write_bytes(b'junk')
  assert start(folder, tmp_path) == ''
  os.rename(folder / 'a' / '0.png', folder / 'a' / '9.png')
  with pytest.raises(errors.UserError, match='names of the records are other'):
    start(folder, tmp_path)


@pytest.mark.parametrize('junk', [b'', b'\0' * 40, b'{"a', b'[1]', b'{"a": 1}',
                                  b'[' * 100_000])
def test_a_damaged_file_is_a_sentence(folder, tmp_path, junk):
  (tmp_path / 'data.json').write_bytes(junk)
  with pytest.raises(errors.UserError, match=r'data\.json .*delete'):
    start(folder, tmp_path)


def test_processes_that_see_different_data_are_stopped(folder, tmp_path):
  with pytest.raises(errors.UserError, match='processes .* different data'):
    start(folder, tmp_path, same=lambda text: text.replace('6', '7'))


def test_a_digest_tells_where_names_end():
  assert identity.digest(['ab', 'c']) != identity.digest(['a', 'bc'])
  assert identity.digest(['a', 'b']) != identity.digest(['b', 'a'])


def test_every_source_says_what_its_order_is(folder, tmp_path):
  records.write(opened(folder), str(tmp_path / 'out'), num_shards=2)
  tiny_tfds.TinyPictures(
      data_dir=tmp_path, file_format='array_record').download_and_prepare()
  for spec in (f'folder:{folder}', 'photos:train',
               f'arrayrecord:{tmp_path}/out/*.arrayrecord',
               f'tfds:tiny_pictures/train?data_dir={tmp_path}',
               f'image:{folder}/a/0.png'):
    lines = identity.lines(sources.open_source(spec))
    assert lines == identity.lines(sources.open_source(spec))
    assert identity.lines(sources.open_source(spec), sizes=True)
    json.dumps(lines)


def test_shards_of_other_images_are_other_data(folder, tmp_path):
  spec = f'arrayrecord:{tmp_path}/out/*.arrayrecord'
  records.write(opened(folder), str(tmp_path / 'out'), num_shards=2)
  before = identity.lines(sources.open_source(spec))
  for path in (tmp_path / 'out').iterdir():
    path.unlink()
  os.rename(folder / 'a' / '0.png', folder / 'a' / '9.png')
  records.write(opened(folder), str(tmp_path / 'out'), num_shards=2)
  assert identity.lines(sources.open_source(spec)) != before


class Stop(Exception):
  pass


@pytest.mark.parametrize('change', ['renamed', 'replaced', 'grown'])
def test_a_conversion_does_not_go_on_with_other_files(
    folder, tmp_path, change):
  def stop(done, total):
    if done == 4:
      raise Stop

  out = str(tmp_path / 'out')
  with pytest.raises(Stop):
    records.write(opened(folder), out, num_shards=3, progress=stop)
  if change == 'renamed':
    os.rename(folder / 'a' / '0.png', folder / 'b' / '9.png')
  if change == 'replaced':
    os.remove(folder / 'a' / '0.png')
    Image.new('RGB', (9, 9)).save(folder / 'a' / '1.png')
  if change == 'grown':
    (folder / 'a' / '0.png').write_bytes(b'more')
  with pytest.raises(errors.UserError, match='has changed since'):
    records.write(opened(folder), out, num_shards=3)


@pytest.mark.parametrize('junk', [
    b'', b'\0\0', b'{', b'[]', b'{"classes": 3}', b'{"classes": [1]}',
    b'{"classes": ["a"], "class_counts": "x"}'])
def test_a_damaged_manifest_is_a_sentence(folder, tmp_path, junk):
  records.write(opened(folder), str(tmp_path / 'out'), num_shards=1)
  (tmp_path / 'out' / 'manifest.json').write_bytes(junk)
  with pytest.raises(errors.UserError, match=r'manifest\.json .*again'):
    sources.open_source(f'arrayrecord:{tmp_path}/out/*.arrayrecord')
  with pytest.raises(errors.UserError, match=r'manifest\.json .*again'):
    records.write(opened(folder), str(tmp_path / 'out'), num_shards=1)


def test_tfds_in_tfrecord_names_the_command(tmp_path):
  tiny_tfds.TinyPictures(
      data_dir=tmp_path, file_format='array_record').download_and_prepare()
  for note in tmp_path.rglob('dataset_info.json'):
    note.write_text(note.read_text().replace('array_record', 'tfrecord'))
  for file in list(tmp_path.rglob('*array_record*')):
    file.rename(file.with_name(file.name.replace('array_record', 'tfrecord')))
  with pytest.raises(errors.UserError, match='is prepared as tfrecord') as e:
    sources.open_source(f'tfds:tiny_pictures/train?data_dir={tmp_path}')
  assert '--file_format=array_record --data_dir=' in str(e.value)


DAMAGE = """
import pathlib, sys
from dinojax.core import errors
from dinojax.data import sources
for name in ('dataset_info.json', 'features.json'):
  note, = pathlib.Path(sys.argv[1]).rglob(name)
  whole = note.read_bytes()
  for junk in (b'', b'{', b'[]', b'{"a": 1}', whole[:len(whole) // 2]):
    note.write_bytes(junk)
    try:
      sources.open_source(f'tfds:tiny_pictures/train?data_dir={sys.argv[1]}')
    except errors.UserError as error:
      print('said', str(error).replace(chr(10), ' '))
  note.write_bytes(whole)
"""


def test_damaged_notes_of_tfds_are_sentences(tmp_path):
  tiny_tfds.TinyPictures(
      data_dir=tmp_path, file_format='array_record').download_and_prepare()
  # Another process: this one has the class of the builder.
  out = subprocess.run([sys.executable, '-c', DAMAGE, str(tmp_path)],
                       capture_output=True, text=True)
  assert out.returncode == 0, out.stderr
  assert out.stdout.count('said tfds:tiny_pictures') == 10, out.stdout
