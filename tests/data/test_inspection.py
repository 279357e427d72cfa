"""Pictures that are shown: readable ones, of all classes, by any spelling."""

import itertools

from PIL import Image
import pytest

from dinojax.core import errors
from dinojax.data import inspection
from dinojax.data import records
from dinojax.data import sources


@pytest.fixture
def folder(tmp_path):
  for label, count in (('ant', 9), ('bee', 2), ('cat', 1)):
    (tmp_path / 'images' / label).mkdir(parents=True)
    for i in range(count):
      Image.new('RGB', (9, 9), ('abc'.index(label[0]) * 50, i, 0)).save(
          tmp_path / 'images' / label / f'{i}.png')
  return tmp_path / 'images'


def seen(source, count, say=print):
  return [image.getpixel((0, 0))[:2]
          for image in inspection.readable(source, count, say=say)]


def test_pictures_are_spread_over_the_classes(folder):
  source = sources.open_source(str(folder))
  assert seen(source, 5) == [(0, 0), (50, 0), (100, 0), (0, 1), (50, 1)]
  assert len(seen(source, 99)) == 12
  assert sorted(inspection.spread(source, 3)) == list(range(12))


def test_unreadable_images_give_way_and_are_named(folder):
  (folder / 'ant' / '0.png').write_bytes(b'')
  (folder / 'cat' / '0.png').write_bytes(b'not an image')
  messages = []
  assert seen(sources.open_source(str(folder)), 2, messages.append) == [
      (50, 0), (0, 1)]
  assert messages == ['left out: ant/0.png: empty file',
                      'left out: cat/0.png: not an image of a known format']


def test_nothing_readable_is_an_error(tmp_path):
  for i in range(3):
    (tmp_path / f'{i}.jpg').write_bytes(b'')
  with pytest.raises(errors.UserError, match=r'none of 3 .*0\.jpg: empty'):
    seen(sources.open_source(str(tmp_path)), 2)


def test_every_spelling_of_embed_is_drawn(folder, tmp_path):
  records.write(sources.open_source(str(folder)), str(tmp_path / 'out'),
                num_shards=1)
  spec = f'arrayrecord:{tmp_path}/out/*.arrayrecord'
  source = sources.open_source(spec)
  # Labels are not known without reading: far from each other.
  assert list(itertools.islice(inspection.spread(source, 3), 4)) == [
      0, 5, 11, 1]
  assert len(seen(source, 3)) == 3
  assert seen(sources.open_source(f'{folder}/bee/1.png'), 4) == [(50, 1)]
