"""Layouts of retrieval sets: a miniature of each, with its traps."""

import io
import json
import pickle

import numpy as np
from PIL import Image
import pytest

from dinojax.core import errors
from dinojax.data import images as images_lib
from dinojax.data import sources
from dinojax.evals.sets import copydays
from dinojax.evals.sets import image_files
from dinojax.evals.sets import ranking
from dinojax.evals.sets import searched
from dinojax.metrics import retrieval

E, H, J, N = (retrieval.EASY, retrieval.HARD, retrieval.JUNK,
              retrieval.NEGATIVE)


def picture(seed=0, size=(40, 30), kind='JPEG'):
  """Bytes of a drawn image of (width, height)."""
  low = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
  out = io.BytesIO()
  Image.fromarray(low).resize(size, Image.Resampling.BICUBIC).save(out, kind)
  return out.getvalue()


def put(path, data=None, seed=0):
  """Writes a file, an image unless bytes are given."""
  path.parent.mkdir(parents=True, exist_ok=True)
  kind = 'PNG' if path.suffix == '.png' else 'JPEG'
  path.write_bytes(data if data is not None else picture(seed, kind=kind))


def pixels(data):
  """Decoded pixels."""
  return np.asarray(images_lib.open_image(data).decode())


# --- Oxford and Paris ---

GROUND = {
    'imlist': ['a', 'b', 'c', 'd', 'e'], 'qimlist': ['q', 'r'],
    'gnd': [{'bbx': [10.2, 5.0, 30.0, 99.0], 'easy': np.int64([1]),
             'hard': [0], 'junk': [3]},
            {'bbx': [0, 0, 40, 30], 'easy': [], 'hard': [2], 'junk': []}]}


def revisited(root, truth=GROUND, name='rparis6k'):
  for i, stem in enumerate((*GROUND['imlist'], *GROUND['qimlist'])):
    put(root / 'jpg' / f'{stem}.jpg', seed=i)
  put(root / f'gnd_{name}.pkl', pickle.dumps(truth, 2))
  return f'{name}:{root}'


def test_revisited_has_kinds_and_cut_queries(tmp_path):
  each = searched.open_set(revisited(tmp_path))
  task, = each.tasks(np.zeros(7))
  assert [list(task.kinds(i)) for i in range(2)] == [
      [H, E, N, J, N], [N, N, H, N, N]]
  assert len(each) == 7 and list(task.query) == [5, 6]
  record = each.images[5]
  assert record.name == 'q.jpg'
  whole = pixels((tmp_path / 'jpg/q.jpg').read_bytes())
  # From 10.2 to 30, and cut off at the lower border.
  np.testing.assert_array_equal(pixels(record.image), whole[5:, 10:30])
  np.testing.assert_array_equal(pixels(each.whole().images[5].image), whole)
  # Features of cut queries are not those of whole ones.
  assert each.images.order(True) != each.whole().images.order(True)
  assert 'a.jpg\t' in each.images.order(True)[1]
  assert '2 queries and 5 images, where the published set has 70' in (
      each.facts()['counts'])
  # One level higher, as the archives unpack.
  (tmp_path / 'up').mkdir()
  (tmp_path / 'up/rparis6k').symlink_to(tmp_path)
  assert searched.open_set(f'rparis6k:{tmp_path}/up').digest == each.digest


def test_files_of_paris_that_are_cut_short_are_read(tmp_path):
  spec = revisited(tmp_path)
  path = tmp_path / 'jpg/c.jpg'
  path.write_bytes(path.read_bytes()[:-120])
  with pytest.raises(images_lib.BadImage):
    pixels(path.read_bytes())
  each = searched.open_set(spec)
  assert pixels(each.images[2].image).shape == (30, 40, 3)
  assert each.facts()['files cut short, which are read'] == 1


@pytest.mark.parametrize('change, message', [
    ({'gnd': GROUND['gnd'][:1]}, '2 queries and ground truth of 1'),
    ({'gnd': [{'bbx': [0, 0, 1, 1]}] * 2}, r'query 0 \(q\) has no easy, hard'),
    ({'gnd': [GROUND['gnd'][0] | {'junk': [9]}] * 2},
     r'`junk` of query 0 \(q\) is not of the 5'),
    ({'gnd': [GROUND['gnd'][0] | {'easy': [0.5]}] * 2}, '`easy` of query 0'),
    ({'gnd': [GROUND['gnd'][0] | {'bbx': [5, 5, 2, 9]}] * 2},
     'the box .* is not .left, top, right, bottom'),
    ({'gnd': [GROUND['gnd'][0] | {'bbx': [500, 5, 620, 90]}] * 2},
     'the box .* of q.jpg lies outside its 40 × 30 pixels'),
    ({'imlist': ['zz', *'abcd']}, 'zz.jpg is missing: .*revisitop')])
def test_broken_ground_truth_is_a_sentence(change, message, tmp_path):
  with pytest.raises(errors.UserError, match=message):
    searched.open_set(revisited(tmp_path, GROUND | change))


def test_a_list_is_no_ground_truth(tmp_path):
  with pytest.raises(errors.UserError, match='has no imlist, qimlist, gnd'):
    searched.open_set(revisited(tmp_path, [1, 2]))
  (tmp_path / 'gnd_rparis6k.pkl').unlink()
  with pytest.raises(errors.UserError, match='gnd_rparis6k.pkl is missing'):
    searched.open_set(f'rparis6k:{tmp_path}')


# --- AmsterTime ---


def test_pairs_ask_in_both_directions(tmp_path):
  for i in range(3):
    put(tmp_path / f'old/{i:04}.jpg', seed=i)
    put(tmp_path / f'new/{i:04}.png', seed=i)
  each = searched.open_set(f'amstertime:{tmp_path}')
  first, second = each.tasks(np.zeros(6))
  assert first.title == 'old asks new' and list(first.query) == [0, 1, 2]
  assert list(first.database) == list(second.query) == [3, 4, 5]
  assert list(first.kinds(1)) == [N, E, N]
  assert [each.images[int(i)].name for i in (1, 4)] == ['0001.jpg', '0001.png']
  (tmp_path / 'new/0001.png').unlink()
  with pytest.raises(errors.UserError, match='has no pair for 0001'):
    searched.open_set(f'amstertime:{tmp_path}')
  with pytest.raises(errors.UserError, match='old is missing: AmsterTime is'):
    searched.open_set(f'amstertime:{tmp_path}/old')


# --- Met ---


def met(root, mark=b''):
  lists = {
      'mini_MET_database': [{'path': f'MET/{i}/0.jpg', 'id': 10 + i}
                            for i in range(3)],
      'valset': [{'path': 'test_met/v.jpg', 'MET_id': 11},
                 {'path': 'test_other/v.jpg'}],
      'testset': [{'path': 'test_met/t.jpg', 'MET_id': 12},
                  {'path': 'test_noart/t.jpg', 'MET_id': None}]}
  for name, rows in lists.items():
    put(root / f'ground_truth/{name}.json', mark + json.dumps(rows).encode())
    for i, row in enumerate(rows):
      put(root / 'images' / row['path'], seed=i)
  return f'met_mini:{root}'


def test_met_has_distractors(tmp_path):
  each = searched.open_set(met(tmp_path, b'\xef\xbb\xbf'))
  assert list(each.labels) == [10, 11, 12, 11, -1, 12, -1]
  assert {k: list(v) for k, v in each.parts().items()} == {
      'database': [0, 1, 2], 'validation': [3, 4], 'test': [5, 6]}
  assert each.images[5].name == 'test_met/t.jpg'
  with pytest.raises(errors.UserError, match='MET_database.json is missing'):
    searched.open_set(f'met:{tmp_path}')
  put(tmp_path / 'ground_truth/testset.json', b'[{"MET_id": 3}]')
  with pytest.raises(errors.UserError, match='testset.json is no list of rows'):
    searched.open_set(f'met_mini:{tmp_path}')


# --- a list of one's own ---


def relevance(root, text='query,database,relevance\r\nq.jpg,a/b.jpg,1\r\n'
                         'q.jpg,c.jpg,-1\r\n\r\nr.jpg,c.jpg,0\r\n'):
  for i, name in enumerate(('query/q.jpg', 'query/r.jpg', 'query/s.jpg',
                            'database/a/b.jpg', 'database/c.jpg')):
    put(root / name, seed=i)
  put(root / 'relevance.csv', b'\xef\xbb\xbf' + text.encode())
  return f'relevance:{root}'


def test_a_list_says_what_is_relevant(tmp_path):
  each = searched.open_set(relevance(tmp_path))
  task, = each.tasks(np.zeros(5))
  assert list(task.query) == [0, 1] and list(task.database) == [3, 4]
  assert [list(task.kinds(i)) for i in range(2)] == [[E, J], [N, N]]
  assert each.facts() == {'queries without a line': 1}
  assert each.images[3].name == 'a/b.jpg'


@pytest.mark.parametrize('text, message', [
    ('query,database\nq.jpg,c.jpg\n', 'has no column relevance: its '
                                      'first line must name query,database'),
    ('query,database,relevance\nz.jpg,c.jpg,1\n',
     'row 1: z.jpg is no image of query/'),
    ('query,database,relevance\nq.jpg,z.jpg,1\n', 'z.jpg is no image of data'),
    ('query,database,relevance\nq.jpg,c.jpg,2\n', 'the relevance 2 is none of'),
    ('query,database,relevance\nq.jpg,c.jpg,0\n', 'no query has an answer'),
    ('', 'has no column query')])
def test_wrong_lists_are_sentences(text, message, tmp_path):
  with pytest.raises(errors.UserError, match=message):
    searched.open_set(relevance(tmp_path, text))


def test_groups_of_images_without_a_folder_do_not_ask(tmp_path):
  """Two images beside the sub-folders are no group of two."""
  for i, name in enumerate(('x.jpg', 'y.jpg', 'a/0.jpg', 'a/1.jpg', 'b/0.jpg')):
    put(tmp_path / name, seed=i)
  source = sources.open_source(f'folder:{tmp_path}')
  labels = np.array([source[i].label for i in range(5)])
  task, = ranking.Groups(source).tasks(labels)
  assert [source[int(i)].name for i in task.query] == [
      'a/0.jpg', 'a/1.jpg', 'b/0.jpg']
  assert list(task.kinds(0)) == [J, E, N, N, N]
  with pytest.raises(errors.UserError, match='no query .* another image'):
    ranking.Groups(source).tasks(np.arange(5))
  flat = sources.open_source(f'folder:{tmp_path}/a')
  with pytest.raises(errors.UserError, match='has no groups: put the images'):
    ranking.Groups(flat)
  with pytest.raises(errors.UserError, match='have no class in common'):
    ranking.Groups(source, sources.open_source('patterns:train'))


# --- copies ---


def test_copydays_finds_originals_by_name(tmp_path):
  for i, name in enumerate((
      'original/200000.jpg', 'original/200100.jpg', 'strong/200101.jpg',
      'strong/200102.png', 'strong/200001.jpg', 'jpegqual/15/200100.jpg',
      'crops/50/200000.jpg')):
    put(tmp_path / name, seed=i)
  each = copydays.open_set(f'copydays:{tmp_path}')
  assert {name: list(each.original_of[places])
          for name, places in each.subsets.items()} == {
              'strong': [0, 1, 1], 'jpegqual/15': [1], 'crops/50': [0]}
  assert '2 original images, where the published set has 157' in (
      each.counts()['counts'])
  put(tmp_path / 'strong/300001.jpg')
  with pytest.raises(errors.UserError, match='300001.jpg has no original'):
    copydays.open_set(f'copydays:{tmp_path}')
  with pytest.raises(errors.UserError, match='original is missing: the INRIA'):
    copydays.open_set(f'copydays:{tmp_path}/strong')
  with pytest.raises(errors.UserError, match='is no set of copies'):
    copydays.open_set(f'folder:{tmp_path}')


def test_groups_hold_an_original_and_copies(tmp_path):
  for i, name in enumerate(('g1/original.png', 'g1/a.jpg', 'g2/original.jpg',
                            'g2/b.jpg', 'g2/c.jpg')):
    put(tmp_path / name, seed=i)
  each = copydays.open_set(f'copies:{tmp_path}')
  assert list(each.original_of) == [0, 1, 0, 1, 1] and not each.counts()
  assert [each.images[i].name for i in range(3)] == [
      'g1/original.png', 'g2/original.jpg', 'g1/a.jpg']
  put(tmp_path / 'g3/d.jpg')
  with pytest.raises(errors.UserError, match='g3 has 0 images called original'):
    copydays.open_set(f'copies:{tmp_path}')


def test_joined_sources_count_on():
  joined = image_files.Joined('x', [sources.open_source('patterns:train'),
                               sources.open_source('patterns:validation')])
  first, second = joined.parts()
  assert joined[len(first)].name == sources.open_source(
      'patterns:validation')[0].name
  assert len(joined) == len(first) + len(second)
