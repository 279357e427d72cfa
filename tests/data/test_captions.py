"""Images with captions: the same from files of every kind, or a sentence."""

import json
import pathlib
import pickle

import numpy as np
import pyarrow
from pyarrow import parquet
import pytest

from dinojax.core import errors
from dinojax.data import captions
from dinojax.data import sources
from tests.data import test_pools

IMAGES = test_pools.IMAGES[:3]
TEXTS = [['a dog', 'a brown dog, running'], ['Żółta łódź'], ['x', 'y', 'z']]


def files(folder):
  folder.mkdir(parents=True)
  for i, data in enumerate(IMAGES):
    (folder / f'{i}.png').write_bytes(data)


def coco(**changes):
  return {
      'images': [{'id': 10 + i, 'file_name': f'{i}.png'} for i in range(3)],
      'annotations': [{'image_id': 10 + i, 'id': 9, 'caption': f' {text}\n'}
                      for i, some in enumerate(TEXTS) for text in some]
  } | changes


def table(**changes):
  return pyarrow.table({
      'id': ['a', 'b', 'c'], 'image': [{'bytes': d} for d in IMAGES],
      'caption': TEXTS} | changes)


@pytest.fixture
def every(tmp_path):
  """Specs of the same images and captions."""
  files(tmp_path / 'csv' / 'images')
  lines = [f'images/{i}.png,"{text}",{"val" if i else "train"}'
           for i, some in enumerate(TEXTS) for text in some]
  (tmp_path / 'csv' / 'a.csv').write_text(
      '\n'.join(['\ufeffimage,caption,part', *lines]) + '\n')
  files(tmp_path / 'coco' / 'val2017')
  (tmp_path / 'coco' / 'annotations').mkdir()
  (tmp_path / 'coco/annotations/captions_val2017.json').write_text(
      json.dumps(coco()))
  test_pools.tar(tmp_path / '0.tar', [
      ('d/0.png', IMAGES[0]), ('d/0.txt', '\n'.join(TEXTS[0]).encode()),
      ('1.json', json.dumps({'caption': TEXTS[1][0]}).encode()),
      ('1.png', IMAGES[1]), ('notes.json', b'{"version": 1}')])
  test_pools.tar(tmp_path / '1.tar', [
      ('1.png', IMAGES[2]), ('1.json', json.dumps(
          {'captions': TEXTS[2], 'caption': 'another'}).encode())])
  parquet.write_table(table(), tmp_path / 'a.parquet', row_group_size=2)
  return {
      'csv': f'csv:{tmp_path}/csv/a.csv',
      'coco': f'coco:{tmp_path}/coco/annotations/captions_val2017.json',
      'tar': f'tar:{tmp_path}/?.tar',
      'parquet': f'parquet:{tmp_path}/*.parquet'}


@pytest.mark.parametrize('kind', ['csv', 'coco', 'tar', 'parquet'])
def test_every_kind_gives_the_same(every, kind):
  source = captions.open_captions(every[kind])
  for opened in (source, pickle.loads(pickle.dumps(source))):
    assert [opened[i].image for i in range(len(opened))] == IMAGES
    assert [opened.of(i) for i in range(len(opened))] == TEXTS
  assert list(source.captions) == sum(TEXTS, [])
  assert source.owners().tolist() == [0, 0, 1, 2, 2, 2]
  assert len({source[i].name for i in range(3)}) == 3
  assert source[1].label == -1 and source.classes == ()
  assert source.spec == every[kind]


def test_what_changes_a_caption_changes_the_digest(every):
  before = captions.open_captions(every['csv'])
  path = pathlib.Path(every['csv'].partition(':')[2])
  path.write_text(path.read_text().replace('a brown dog', 'a black dog'))
  after = captions.open_captions(every['csv'])
  assert before.digest != after.digest
  assert [a == b for a, b in zip(before.order(), after.order(), strict=True)
          ] == [False, True, True]


def test_lines_and_columns_are_chosen(every, tmp_path):
  spec = every['csv']
  assert len(captions.open_captions(f'{spec}?part=val')) == 2
  titles = captions.open_captions(f'{spec}?caption_column=part&part=val')
  assert titles.of(1) == ['val'] * 3
  renamed = table().rename_columns(['key', 'jpg', 'words'])
  parquet.write_table(renamed, tmp_path / 'a.parquet')
  source = captions.open_captions(f'{every["parquet"]}?caption=words')
  assert source.of(2) == TEXTS[2] and source[0].name == 'a'


@pytest.mark.parametrize('form', ['tar', 'parquet'])
def test_output_of_img2dataset(tmp_path, form, caplog):
  rows = {'key': ['0', '1'], 'caption': ['a\ncat ', 'lost'],
          'status': ['success', 'failed_to_download'],
          'error_message': [None, '404']}
  if form == 'tar':
    test_pools.tar(tmp_path / '00000.tar', [('0.jpg', IMAGES[0])])
    (tmp_path / '00000_stats.json').write_text('{}')
  else:
    rows['jpg'] = [IMAGES[0], None]
  parquet.write_table(pyarrow.table(rows), tmp_path / '00000.parquet')
  source = captions.open_captions(f'img2dataset:{tmp_path}')
  assert [source.of(0), source[0].image] == [['a cat'], IMAGES[0]]
  assert len(source) == 1 and '1 images were not fetched' in caplog.text


def test_empty_captions_are_named_or_left_out(every, tmp_path, caplog):
  texts = [TEXTS[0], [''], ['x', ' ', 'z']]
  path = tmp_path / 'coco/annotations/captions_val2017.json'
  path.write_text(json.dumps(coco(annotations=[
      {'image_id': 10 + i, 'caption': text}
      for i, some in enumerate(texts) for text in some])))
  with pytest.raises(errors.UserError, match=(
      'the caption of 1.png is empty: write one, or .*empty=skip')):
    captions.open_captions(every['coco'])
  source = captions.open_captions(f'{every["coco"]}?empty=skip')
  assert [source.of(i) for i in range(2)] == [TEXTS[0], ['x', 'z']]
  assert '1 images without a caption are left out' in caplog.text
  with pytest.raises(errors.UserError, match='empty=fill is not known'):
    captions.open_captions(f'{every["coco"]}?empty=fill')
  test_pools.tar(tmp_path / '1.tar', [('1.png', IMAGES[2])])
  with pytest.raises(errors.UserError, match='the caption of 1.tar/1.png is'):
    captions.open_captions(every['tar'])
  assert len(captions.open_captions(f'{every["tar"]}?empty=skip')) == 2
  parquet.write_table(table(caption=[['a', ''], ['b'], None]),
                      tmp_path / 'a.parquet')
  with pytest.raises(errors.UserError, match='the caption of c is empty'):
    captions.open_captions(every['parquet'])


def test_images_that_are_missing_are_named(every, tmp_path):
  (tmp_path / 'csv' / 'images' / '1.png').unlink()
  with pytest.raises(errors.UserError, match='1 images are missing.*images/1'):
    captions.open_captions(every['csv'])
  (tmp_path / 'coco' / 'val2017').rename(tmp_path / 'coco' / 'pictures')
  with pytest.raises(errors.UserError, match=r'name their folder, \?images='):
    captions.open_captions(every['coco'])
  assert len(captions.open_captions(
      f'{every["coco"]}?images={tmp_path}/coco/pictures')) == 3
  test_pools.tar(tmp_path / '1.tar', [('1.txt', b'words')])
  with pytest.raises(errors.UserError, match='1.tar has a caption called 1 an'):
    captions.open_captions(every['tar'])


def test_damaged_files_are_named(every, tmp_path):
  path = tmp_path / '1.tar'
  test_pools.tar(path, [('1.png', IMAGES[0]), ('2.png', IMAGES[1])])
  data = path.read_bytes()
  for damaged in (data[:data.rindex(b'2.png')] + b'x' * 900,
                  data[:data.index(IMAGES[0]) + 20]):
    path.write_bytes(damaged)
    with pytest.raises(errors.UserError, match='1.tar is cut short or damag'):
      captions.open_captions(f'{every["tar"]}?empty=skip')


def test_a_name_belongs_to_one_image(every, tmp_path):
  path = tmp_path / 'coco/annotations/captions_val2017.json'
  images = coco()['images']
  for changes, text in (
      ({'images': [*images, images[1]]}, 'two images of the id 11.* 1.png'),
      ({'images': [*images, {'id': 99, 'file_name': '1.png'}]},
       'the caption of|two images called 1.png'),
      ({'images': images[:2]}, 'a caption of the image 12, which is not')):
    path.write_text(json.dumps(coco(**changes)))
    with pytest.raises(errors.UserError, match=text):
      captions.open_captions(every['coco'])
  parquet.write_table(table(id=['a', 'b', 'a']), tmp_path / 'a.parquet')
  with pytest.raises(errors.UserError, match='has two images called a: give'):
    captions.open_captions(every['parquet'])
  test_pools.tar(tmp_path / '1.tar', [
      (name, data) for name, data in (
          ('1.png', IMAGES[0]), ('1.txt', b'a'), ('2.png', IMAGES[1]),
          ('2.txt', b'b'), ('1.png', IMAGES[2]), ('1.txt', b'c'))])
  with pytest.raises(errors.UserError, match='two images called 1.tar/1.png'):
    captions.open_captions(every['tar'])


@pytest.mark.parametrize('spec, text', [
    ('lmdb:x', 'is no set of images with captions: give csv:FILE, coco:'),
    ('csv:', 'is no set of images'), ('csv:{}/no.csv', 'no.csv is missing'),
    ('csv:{}/csv/a.csv?part=test', 'has no line that fits: check .* part'),
    ('csv:{}/csv/a.csv?caption_column=x', 'has no column x: its columns are'),
    ('csv:{}/csv/a.csv?kind=x', 'has no column kind: its columns are'),
    ('coco:{}/csv/a.csv', 'is no list of captions of COCO'),
    ('coco:{}/coco/annotations/captions_val2017.json?image=x',
     r'image is not known: it takes \?images=DIR'),
    ('tar:{}/?.tar?image=x', r'\?image is not known'),
    ('tar:{}/no*.tar', 'matches no file'),
    ('parquet:{}/a.parquet?caption=x', 'has no column x among caption, id'),
    ('parquet:{}/a.parquet?text=x', 'is not understood')])
def test_what_is_not_there_is_a_sentence(every, tmp_path, spec, text):
  with pytest.raises(errors.UserError, match=text):
    captions.open_captions(spec.format(tmp_path))


def test_a_question_mark_may_stand_for_a_letter():
  assert captions.split('tar:a/?.tar') == ('tar:a/?.tar', {})
  assert captions.split('tar:a?/?.tar?empty=skip') == (
      'tar:a?/?.tar', {'empty': 'skip'})
  assert captions.split('csv:a=b/c?.csv') == ('csv:a=b/c?.csv', {})


def test_texts_in_one_piece():
  texts = ['', 'a', '草 🐶', '\ud83d', 'b' * 100]
  strings = captions.Strings(texts)
  assert list(strings) == texts and strings[-1] == texts[-1]
  assert list(pickle.loads(pickle.dumps(strings))) == texts
  assert list(captions.Strings([])) == []
  with pytest.raises(IndexError):
    strings[5]


def test_it_is_a_source_like_others(every):
  opened = captions.open_captions(every['csv'])
  assert isinstance(opened[0], sources.Record)
  assert np.all(np.diff(opened.first) > 0)
