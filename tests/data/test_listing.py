"""Folders: what is read, what is left out, and what is said about it."""

import io
import logging
import os
import socket

from etils.epath import backend
import fsspec
from fsspec.implementations import memory
from PIL import Image
import pytest

from dinojax.core import errors
from dinojax.data import listing
from dinojax.data import sources


def png(path, shade=0):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new('RGB', (9, 9), (shade, 0, 0)).save(path, 'PNG')


def names(source):
  return [source[i].name for i in range(len(source))]


def test_every_ending_of_the_formats_that_are_read_is_read(tmp_path, caplog):
  endings = ('jfif jfi jif JPG jpe apng dib ico j2k jpx pnm pfm tif avif avifs '
             'vda webp mpo').split()
  for ending in endings:
    png(tmp_path / f'x.{ending}')  # the content decides, not the name
  source = sources.open_source(f'folder:{tmp_path}')
  assert len(source) == len(endings) and not caplog.text
  assert '.psd' not in listing.SUFFIXES and '.eps' not in listing.SUFFIXES


def test_what_is_left_out_is_counted_in_a_line(tmp_path, caplog):
  png(tmp_path / 'a.png')
  for name in ('b.HEIC', 'c.heic', 'd.CR2', 'e.dcm', 'f.jxl', 'g.psd',
               'h.xyz', 'noending', 'notes.txt', 'labels.csv', 'm.json'):
    (tmp_path / name).write_bytes(b'x')
  sources.open_source(f'folder:{tmp_path}')
  first = caplog.messages[0]
  assert 'by their endings: 8 (2 × .heic, ' in first
  assert '.txt' not in caplog.text and '.json' not in caplog.text
  for what in ('phones', 'raw', 'DICOM', 'JPEG XL', 'image editors'):
    assert what in caplog.text
  # Opened again, for k-NN: said once.
  count = len(caplog.messages)
  sources.open_source(f'folder:{tmp_path}')
  assert len(caplog.messages) == count


def test_text_beside_images_needs_no_line(tmp_path, caplog):
  png(tmp_path / 'a.png')
  (tmp_path / 'labels.csv').write_text('x')
  sources.open_source(f'folder:{tmp_path}')
  assert not caplog.messages


def test_a_folder_of_nothing_but_phone_photographs_says_what_to_do(tmp_path):
  (tmp_path / 'a.HEIC').write_bytes(b'x')
  with pytest.raises(errors.UserError, match='no images, but 1 .*mogrify'):
    sources.open_source(f'folder:{tmp_path}')


def test_an_entry_that_cannot_be_looked_at_ends_nothing(tmp_path, caplog):
  png(tmp_path / 'a' / '1.png')
  png(tmp_path / 'lost+found' / '2.png')
  os.symlink('self.png', tmp_path / 'a' / 'self.png')
  os.symlink('nowhere.png', tmp_path / 'a' / 'dangling.png')
  os.symlink('/dev/zero', tmp_path / 'a' / 'zero.png')
  with socket.socket(socket.AF_UNIX) as server:
    os.chdir(tmp_path)  # names of sockets are short
    server.bind('socket.png')
    source = sources.open_source(f'folder:{tmp_path}')
  assert source.order() == ['a/1.png', 'a/self.png']
  with pytest.raises(OSError, match='symbolic links'):
    _ = source[1]
  assert source.classes == ('a',)
  assert '1 (lost+found: a folder of the system)' in caplog.text
  assert 'lead nowhere: 1 (a/dangling.png)' in caplog.text
  assert 'nor folders: 2 (socket.png, a/zero.png)' in caplog.text


def test_a_folder_without_permission_is_passed_over_and_named(
    tmp_path, caplog, monkeypatch):
  png(tmp_path / 'a' / '1.png')
  png(tmp_path / 'b\x1b[2J' / '2.png')
  scan = os.scandir

  def denied(path):  # tests may run as root, whom nothing is denied
    if 'b\x1b' in str(path):
      raise PermissionError(13, 'Permission denied', path)
    return scan(path)

  monkeypatch.setattr(os, 'scandir', denied)
  assert len(sources.open_source(f'folder:{tmp_path}')) == 1
  assert r'1 (b\x1b[2J: Permission denied)' in caplog.text
  monkeypatch.setattr(os, 'scandir', lambda path: denied('b\x1b'))
  with pytest.raises(errors.UserError, match='Permission denied'):
    sources.open_source(f'folder:{tmp_path}')


def test_train_and_test_folders_are_no_classes(tmp_path, caplog):
  for split in ('Train', 'val', 'extra'):
    png(tmp_path / split / 'cat' / '1.png')
  sources.open_source(f'folder:{tmp_path}')
  assert not caplog.messages
  source = sources.open_training(f'folder:{tmp_path}')
  assert source.classes == ('Train', 'extra', 'val')
  assert f'data.train=folder:{tmp_path}/Train' in caplog.text
  what, fix = sources.no_classes(source)  # as `dinojax doctor` has it
  assert 'holds Train/ and val/' in what
  assert fix.endswith(f'data.validation=folder:{tmp_path}/val')
  assert listing.splits(('train', 'cat')) is None


@pytest.mark.parametrize('spelling', ['{}', 'image:{}'])
def test_one_image_is_a_source(tmp_path, spelling):
  png(tmp_path / 'photo.PNG', 7)
  source = sources.open_source(spelling.format(tmp_path / 'photo.PNG'))
  assert len(source) == 1 and source.classes == ()
  assert source[0].name == 'photo.PNG' and source[0].label == -1
  assert Image.open(io.BytesIO(source[0].image)).getpixel((0, 0))[0] == 7
  assert len(sources.open_source(str(tmp_path))) == 1
  with pytest.raises(errors.UserError, match='is a file'):
    sources.open_source(f'folder:{tmp_path}/photo.PNG')
  with pytest.raises(errors.UserError, match='no folder or image of that name'):
    sources.open_source(f'{tmp_path}/nothing.png')


class Bucket(memory.MemoryFileSystem):
  """A store in memory that answers to gs://, without a package for it."""

  protocol = ('gcs', 'gs')
  store, pseudo_dirs = {}, ['']

  def ls(self, path, detail=True, **kwargs):
    if 'secret' in path:
      raise PermissionError('secret')
    if 'broken' in path:
      raise RuntimeError('the store has an error of its own')
    return super().ls(path, detail=detail, **kwargs)


@pytest.fixture
def bucket(monkeypatch):
  monkeypatch.setattr(
      fsspec, 'filesystem', lambda name, **options: Bucket())
  backend.fsspec_backend._get_filesystem.cache_clear()
  yield Bucket()
  Bucket.store.clear()
  backend.fsspec_backend._get_filesystem.cache_clear()


def test_a_folder_of_a_bucket_is_listed_as_one_on_a_disk(bucket, caplog):
  for i, name in enumerate((
      'dog/2.png', 'cat/more/1.PNG', 'cat/0.jpg', 'loose.jpg', '.hidden.jpg',
      '.cache/3.jpg', 'cat/notes.txt', 'cat/a.heic', 'lost+found/4.png')):
    bucket.pipe_file(f'gs://bucket/images/{name}', bytes([i]))
  source = sources.open_source('folder:gs://bucket/images')
  assert names(source) == ['cat/0.jpg', 'cat/more/1.PNG', 'dog/2.png',
                           'loose.jpg']
  assert source.classes == ('cat', 'dog')
  assert [source[i].label for i in range(4)] == [0, 0, 1, -1]
  assert source[0].image == b'\2' and source.class_counts() == [2, 1]
  assert source.order(sizes=True)[0] == 'cat/0.jpg\t1'
  assert '1 × .heic' in caplog.text and 'lost+found' in caplog.text


@pytest.mark.parametrize('place', ['nothing', 'secret', 'broken'])
def test_a_bucket_that_cannot_be_listed_is_a_sentence(bucket, place):
  with pytest.raises(errors.UserError, match='bucket, path and your cred'):
    sources.open_source(f'folder:gs://bucket/{place}')


def test_one_level_of_a_bucket_that_cannot_be_listed_is_named(bucket, caplog):
  for name in ('a/1.png', 'secret/2.png'):
    bucket.pipe_file(f'gs://bucket/images/{name}', b'x')
  source = sources.open_source('folder:gs://bucket/images')
  assert names(source) == ['a/1.png']
  assert 'not entered: 1 (secret: PermissionError)' in caplog.text


def test_a_missing_package_for_a_bucket_is_a_sentence(monkeypatch):
  def missing(*args, **kwargs):
    raise ImportError('Please install gcsfs to access Google Storage')
  monkeypatch.setattr(fsspec, 'filesystem', missing)
  with pytest.raises(errors.UserError, match='pip install gcsfs'):
    sources.open_source('folder:gs://bucket/images')
  with pytest.raises(errors.UserError, match='pip install gcsfs'):
    sources.open_source('arrayrecord:gs://bucket/*.arrayrecord')


def test_a_store_that_fails_while_reading_is_a_bad_image(bucket, monkeypatch):
  bucket.pipe_file('gs://bucket/images/1.png', b'x')
  source = sources.open_source('folder:gs://bucket/images')
  monkeypatch.setattr(Bucket, 'open', lambda *a, **k: 1 / 0)
  with pytest.raises(OSError, match='ZeroDivisionError'):
    _ = source[0]


@pytest.fixture(autouse=True)
def _all_logs(caplog, monkeypatch, tmp_path):
  caplog.set_level(logging.WARNING)
  monkeypatch.chdir(tmp_path)
