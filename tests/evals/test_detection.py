"""Boxes: their crops, and a detector that learns to draw them."""

import numpy as np
from PIL import Image
import pytest

from dinojax.core import errors
from dinojax.data import map_crops
from dinojax.evals.protocols import detection
from dinojax.evals.sets import objects as sets
from tests.evals import objects
from tests.evals import test_dense
from tests.evals import test_segments

QUICK = dict(
    hidden=64, num_heads=4, num_encoder_layers=1, num_layers=2,
    num_queries=30, num_extra=60, most_targets=5, dropout=0.0,
    learning_rate=2e-3, warmup_steps=10, batch_size=8, crop_px=48,
    box_px=8.0, scales=(0.8, 1.0), pictures=2)


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
  root = tmp_path_factory.mktemp('objects')
  objects.save(root / 'train', 24, test_segments.SIZES, 0)
  objects.save(root / 'test', 6, test_segments.SIZES, 1)
  return root


def opened(root, part):
  return sets.opened(f'coco_boxes:{root}/{part}/instances.json?images='
                     f'{root}/{part}/images', 'val2017')


@pytest.mark.slow  # a training of minutes
def test_drawn_things_are_found(drawn, tmp_path):
  counted, told = [], []
  settings = detection.Settings(**QUICK, steps=500, views_px=(64,), flips=True)
  job = test_dense.job(tmp_path, {part: (opened(drawn, part),) for part in (
      'train', 'test')}, progress=counted.append)
  measured, = detection.run(job, settings)
  scores = measured.scores()
  assert scores['AP50'] > 60, scores
  assert sum(counted) == detection.passes(settings, {'test': 6})
  assert set(measured.pictures) == {'test0', 'test5'}
  assert measured.facts['AP by class'].keys() == {'box', 'disc'}
  assert measured.head.kind == 'detector' and not told
  assert list(measured.rows['index']) == list(range(6))


def test_a_crop_has_its_boxes_where_they_are_seen():
  """A white rectangle on black, wherever it is cut, scaled and mirrored."""
  pixels = np.zeros((60, 90, 3), np.uint8)
  pixels[20:40, 30:75] = 255
  truth = sets.Truth(np.float64([[30, 20, 75, 40], [0, 0, 2, 2]]),
                     np.array([5, 6]), np.array([False, True]),
                     np.float64([900, 4]))
  make = map_crops.Boxed(64, (0.6, 1.0), part=0.6, most=3)
  sizes = set()
  for seed in range(20):
    got = make(Image.fromarray(pixels), truth, np.random.default_rng(seed))
    assert got['image'].shape == (64, 64, 3)
    assert got['kinds'].tolist() == [5, -1, -1]  # no crowd
    rows, columns = got['extent']
    assert not got['image'][rows:].any() and not got['image'][:, columns:].any()
    left, top, right, bottom = got['boxes'][0]
    assert 0 <= left < right <= columns and 0 <= top < bottom <= rows
    seen = np.argwhere(got['image'][..., 0] > 127)
    np.testing.assert_allclose(
        [left, top, right, bottom], [*seen.min(0)[::-1],
                                     *(seen.max(0)[::-1] + 1)], atol=1)
    sizes.add((int(rows), int(columns)))
  assert len(sizes) > 10


def test_the_largest_objects_are_learned_from_and_slivers_are_not():
  picture = Image.new('RGB', (40, 40))
  truth = sets.Truth(np.float64([[0, 0, 4, 4], [0, 0, 40, 30], [8, 8, 20, 20]]),
                     np.array([1, 2, 3]), np.zeros(3, bool), np.zeros(3))
  got = map_crops.Boxed(40, (1, 1), part=1.0, most=2)(
      picture, truth, np.random.default_rng(0))
  assert got['kinds'].tolist() == [2, 3]
  empty = map_crops.Boxed(40, (1, 1), part=1.0, most=2)(
      picture, sets.NOTHING, np.random.default_rng(0))
  assert empty['kinds'].tolist() == [-1, -1]
  assert (empty['boxes'] == [0, 0, 1, 1]).all()


def test_what_is_not_learned_from_is_told(drawn, tmp_path):
  told = []
  train = opened(drawn, 'train')
  train.dropped = 2
  some = sets.Set('boxes:x.csv', [
      ('a', train._items[0][1], None), ('b', sets.NOTHING, None)], 'x', 'x',
                  classes=train.classes, dropped=2)
  job = test_dense.job(tmp_path, {})
  detection._tell(job.__class__(**vars(job) | {'say': told.append}), some,
                  detection.Settings(most_targets=1))
  assert [line.partition(':')[0] for line in told[:1]] == [
      '1 of 2 images of boxes']
  assert 'teach where there is none' in told[0]
  assert '2 boxes of boxes:x.csv have no area' in told[1]
  assert len(told) == 3 or some.most == 1


def test_boxes_beyond_an_image_end_before_training(drawn, tmp_path):
  content = opened(drawn, 'test')
  name, truth, size = content._items[0]
  bad = sets.Set(content.spec, [(name, sets.Truth(
      truth.boxes + 100, truth.kinds, truth.crowd, truth.areas), size)],
                 f'{drawn}/test/images', 'x.json', classes=content.classes)
  job = test_dense.job(tmp_path, {'train': (bad,), 'test': ()})
  with pytest.raises(errors.UserError, match='x.json: 000.png: the box .* is '
                     'not within the image'):
    detection.run(job, detection.Settings(**QUICK))
