"""Sources: what is found, in what order, and what is said when nothing is."""

import io
import json
import os
import pickle
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

from dinojax.core import errors
from dinojax.data import photos
from dinojax.data import records
from dinojax.data import sources
from tests.data import tiny_tfds


@pytest.fixture
def folder(tmp_path):
  root = tmp_path / 'images'
  for label in ('dog', 'cat'):
    (root / label / 'more').mkdir(parents=True)
    for i, place in enumerate((root / label, root / label / 'more')):
      Image.new('RGB', (9, 9), (i, 0, 0)).save(place / f'{i}.PNG')
  Image.new('RGB', (9, 9)).save(root / 'loose.jpg')
  (root / 'cat' / 'notes.txt').write_text('x')
  (root / '.hidden.jpg').write_bytes(b'x')
  os.symlink(root, root / 'dog' / 'loop')
  return root


def test_folder_is_sorted_labelled_and_survives_a_loop(folder):
  source = sources.open_source(f'folder:{folder}')
  assert source.classes == ('cat', 'dog')
  assert [(source[i].name, source[i].label) for i in range(len(source))] == [
      ('cat/0.PNG', 0), ('cat/more/1.PNG', 0), ('dog/0.PNG', 1),
      ('dog/more/1.PNG', 1), ('loose.jpg', -1)]


def test_sources_travel_to_workers(folder, tmp_path):
  source = sources.open_source(f'folder:{folder}')
  records.write(source, str(tmp_path / 'out'), num_shards=2)
  packed = sources.open_source(
      f'arrayrecord:{tmp_path}/out/*.arrayrecord')
  packed[0]
  for original in (source, packed, sources.open_source('photos:train')):
    again = pickle.loads(pickle.dumps(original))
    assert again[3] == original[3] and len(again) == len(original)


def test_a_folder_of_shards_is_all_of_them(folder, tmp_path):
  records.write(
      sources.open_source(f'folder:{folder}'), str(tmp_path / 'out'),
      num_shards=2)
  whole = sources.open_source(f'arrayrecord:{tmp_path}/out')
  packed = sources.open_source(f'arrayrecord:{tmp_path}/out/*.arrayrecord')
  assert whole.classes == packed.classes == ('cat', 'dog')
  assert [whole[i] for i in range(len(whole))] == [
      packed[i] for i in range(len(packed))]
  with pytest.raises(errors.UserError, match='give shards alone: .*out/'):
    sources.open_source(f'arrayrecord:{tmp_path}/out/*')


@pytest.mark.parametrize('spec, text', [
    ('folder:/no/such/place', 'check the path'),
    ('arrayrecord:/no/such/*.arrayrecord', 'dinojax convert'),
    ('tfds:mnist', 'has no split'),
    ('tfds:no_such_data_set/train', 'cannot be opened'),
    ('photos:test', 'photos:validation'), ('s3:x', 'folder:DIR')])
def test_nothing_there_is_said_in_a_sentence(spec, text):
  with pytest.raises(errors.UserError, match=text):
    sources.open_source(spec)


def test_tfds_that_is_not_prepared_names_the_command(tmp_path):
  with pytest.raises(errors.UserError, match='tfds build mnist'):
    sources.open_source(f'tfds:mnist/train?data_dir={tmp_path}')


def prepare(builder, folder):
  builder(data_dir=folder, file_format='array_record').download_and_prepare()


def test_tfds_gives_encoded_images_in_any_process(tmp_path):
  prepare(tiny_tfds.TinyPictures, tmp_path)
  source = sources.open_source(
      f'tfds:tiny_pictures/train?data_dir={tmp_path}')
  assert source.classes == ('dark', 'light')
  colours = sorted(
      (np.asarray(Image.open(io.BytesIO(record.image)))[0, 0, 0],
       record.label) for record in (source[i] for i in range(len(source))))
  assert colours == [(40 * i, i // 3) for i in range(6)]
  # A worker process has not imported the builder: the files must do.
  code = ('import pickle, sys; s = pickle.load(sys.stdin.buffer); '
          'sys.stdout.buffer.write(s[2].image)')
  out = subprocess.run([sys.executable, '-c', code], check=True,
                       input=pickle.dumps(source), capture_output=True)
  assert out.stdout == source[2].image


def test_tfds_slices_a_split(tmp_path):
  prepare(tiny_tfds.TinyPictures, tmp_path)
  half, whole = (sources.open_source(
      f'tfds:tiny_pictures/{split}?data_dir={tmp_path}')
                 for split in ('train[:50%]', 'train'))
  assert [half[i].image for i in range(len(half))] == [
      whole[i].image for i in range(3)]


@pytest.mark.parametrize('spec, text', [
    ('tiny_numbers/train', 'no feature named image, only value'),
    ('tiny_numbers/test', 'tfds build tiny_numbers')])
def test_tfds_that_cannot_serve_is_refused(tmp_path, spec, text):
  prepare(tiny_tfds.TinyNumbers, tmp_path)
  with pytest.raises(errors.UserError, match=text):
    sources.open_source(f'tfds:{spec}?data_dir={tmp_path}')


def test_records_keep_their_numbers_past_an_unreadable_file(
    folder, tmp_path, caplog):
  source = sources.open_source(f'folder:{folder}')
  os.remove(folder / 'cat' / 'more' / '1.PNG')
  records.write(source, str(tmp_path / 'out'), num_shards=2)
  packed = sources.open_source(f'arrayrecord:{tmp_path}/out/*.arrayrecord')
  assert packed[1].image == b'' and packed[2] == source[2]
  assert 'cat/more/1.PNG' in caplog.text


def test_records_hold_the_files_byte_for_byte(folder, tmp_path):
  source = sources.open_source(f'folder:{folder}')
  seen = []
  records.write(source, str(tmp_path / 'out'), num_shards=2,
                progress=lambda done, total: seen.append((done, total)))
  assert seen[-1] == (5, 5)
  packed = sources.open_source(f'arrayrecord:{tmp_path}/out/*.arrayrecord')
  assert [packed[i] for i in range(5)] == [source[i] for i in range(5)]
  assert packed.classes == source.classes


def test_an_interrupted_conversion_continues(folder, tmp_path):
  source = sources.open_source(f'folder:{folder}')
  out = tmp_path / 'out'

  class Stop(Exception):
    pass

  def stop(done, total):
    if done == 3:
      raise Stop

  with pytest.raises(Stop):
    records.write(source, str(out), num_shards=2, progress=stop)
  assert not (out / 'records-00001-of-00002.arrayrecord').exists()
  records.write(source, str(out), num_shards=2)
  packed = sources.open_source(f'arrayrecord:{out}/*.arrayrecord')
  assert len(packed) == 5
  with pytest.raises(errors.UserError, match='another source'):
    records.write(source, str(out), num_shards=3)
  assert json.loads((out / 'manifest.json').read_text())['num_shards'] == 2


def test_a_damaged_shard_is_named(folder, tmp_path):
  (tmp_path / 'a.arrayrecord').write_bytes(b'not a record file' * 9)
  with pytest.raises(errors.UserError, match=r'a\.arrayrecord'):
    sources.open_source(f'arrayrecord:{tmp_path}/*.arrayrecord')


def test_photo_tiles_of_the_two_splits_are_a_tile_apart():
  for size in ((512, 384), (576, 384), (384, 384), (640, 427)):
    train = photos.corners(size, 'train')
    held = photos.corners(size, 'validation')
    assert train and held
    edge = max(left for left, _ in train) + photos.TILE_PX
    assert min(left for left, _ in held) - edge >= photos.TILE_PX
    for left, top in train + held:
      assert left + photos.TILE_PX <= size[0]
      assert top + photos.TILE_PX <= size[1]
    assert len(set(train)) == len(train) and len(set(held)) == len(held)


def test_photos_have_enough_tiles_of_every_photograph():
  for split, least in (('train', 100), ('validation', 25)):
    source = sources.open_source(f'photos:{split}')
    labels = np.bincount([source[i].label for i in range(len(source))])
    assert len(labels) == len(source.classes) == 16
    assert labels.min() >= least
  assert len(sources.open_source('photos:validation')) >= 400
