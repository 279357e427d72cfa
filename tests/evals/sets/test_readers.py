"""Official layouts in small, and what is said of those that are not whole."""

import numpy as np
from PIL import Image
import pytest

from dinojax.core import errors
from dinojax.evals.sets import boxes
from dinojax.evals.sets import navi
from dinojax.evals.sets import pairs
from dinojax.evals.sets import videos
from tests.evals.sets import made


def test_davis_is_read_in_the_order_of_its_list(tmp_path):
  test = videos.open_set(f'davis:{made.davis(tmp_path)}')
  assert [test[i].name for i in range(test.num_videos)] == ['dog', 'bear']
  assert len(test) == 10 and test[0].objects() == (1,)
  np.testing.assert_array_equal(
      test[0].labels(2, (1,)), made.square(8).astype(int))


def test_masks_of_0_and_255_have_an_object(tmp_path):
  made.videos(tmp_path, names=('a',))
  for path in (tmp_path / 'Annotations/a').iterdir():
    Image.fromarray(made.square(value=255)).save(path)
  video = videos.open_set(f'videos:{tmp_path}')[0]
  assert video.objects() == (255,) and video.labels(1, (255,)).max() == 1
  # Beside other numbers it is no object.
  both = made.square(value=255)
  both[:4] = 3
  Image.fromarray(both).save(tmp_path / 'Annotations/a/00000.png')
  assert videos.open_set(f'videos:{tmp_path}')[0].objects() == (3,)


@pytest.mark.parametrize('change, message', [
    (lambda r: (r / 'Annotations/a/00000.png').unlink(),
     '00000.png is missing: the first frame of a video needs a mask'),
    (lambda r: made.palette(np.zeros((48, 64), np.uint8),
                            r / 'Annotations/a/00000.png'),
     '00000.png is 0 everywhere'),
    (lambda r: made.scene(size=(60, 48)).save(r / 'JPEGImages/a/00002.jpg'),
     '00002.jpg has 60 × 48 pixels, and 00000 64 × 48'),
    (lambda r: made.scene().save(r / 'Annotations/a/00000.png'),
     'has colours'),
    (lambda r: (r / 'JPEGImages/a/00003.jpg').unlink(),
     '00003.png is the mask of no frame'),
    (lambda r: [(r / f'Annotations/a/{i:05d}.png').unlink()
                for i in range(1, 5)], 'of the first frame alone'),
    (lambda r: (r / 'Annotations').rename(r / 'Masks'),
     'Annotations is missing: videos:DIR holds')])
def test_videos_that_are_not_whole_are_refused(tmp_path, change, message):
  made.videos(tmp_path, names=('a',))
  change(tmp_path)
  with pytest.raises(errors.UserError, match=message):
    videos.open_set(f'videos:{tmp_path}')


def test_a_mask_of_another_size_is_refused(tmp_path):
  made.videos(tmp_path, names=('a',))
  made.palette(made.square()[:40], tmp_path / 'Annotations/a/00002.png')
  with pytest.raises(errors.UserError, match='masks are as large as'):
    videos.open_set(f'videos:{tmp_path}')[0].labels(2, (1,))


@pytest.mark.parametrize('spec', ['voc2007', 'boxes', 'coco20k'])
def test_boxes_are_those_of_the_square(tmp_path, spec):
  if spec == 'voc2007':
    test = boxes.open_set(f'voc2007:{made.voc(tmp_path)}')
    assert [test[i].name for i in range(2)] == ['000001', '000000']
    first, second = test[1], test[0]
  elif spec == 'coco20k':
    test = boxes.open_set(f'coco20k:{made.coco(tmp_path)}')
    second, first = test[0], test[1]
    assert len(test) == 2  # nothing is in the third image
  else:
    test = boxes.open_set(made.boxes(tmp_path, encoding='utf-8-sig',
                                     end='\r\n'))
    first, second = test[0], test[1]
    assert second.boxes.shape == (2, 4)
  np.testing.assert_array_equal(first.boxes[0], [16, 16, 32, 32])
  np.testing.assert_array_equal(second.boxes[0], [24, 16, 40, 32])


@pytest.mark.parametrize('row, message', [
    ({'x1': 65}, r'row 2: the box 16, 16, 65, 32 is not within the image of '
     '64 × 48 pixels'),
    ({'x1': 3}, 'has no area'), ({'x0': 'left'}, "x0='left' is no number"),
    ({'image': 'gone.png'}, 'gone.png is missing')])
def test_boxes_that_cannot_be_are_refused(tmp_path, row, message):
  made.boxes(tmp_path)
  made.table(tmp_path / 'boxes.csv', [{
      'image': 'b0.png', 'x0': 16, 'y0': 16, 'x1': 32, 'y1': 32} | row])
  with pytest.raises(errors.UserError, match=message):
    boxes.open_set(f'boxes:{tmp_path}/boxes.csv')


def test_all_pairs_of_a_group_are_made_of_keypoints(tmp_path):
  test = pairs.open_set(made.keypoints(tmp_path, encoding='utf-8-sig'))
  assert len(test) == 3 and len(test.pairs) == 6
  pair = test.pairs[0]
  np.testing.assert_array_equal(pair.target_places - pair.source_places,
                                [[8, 0], [8, 0]])
  assert pair.scale == 64
  assert len(test.chosen(4)) == 4 and test.chosen(4)[-1] == test.pairs[-1]


def test_keypoints_outside_are_refused(tmp_path):
  made.keypoints(tmp_path)
  made.table(tmp_path / 'points.csv', [
      {'image': '0.png', 'part': 'a', 'x': 65, 'y': 3}])
  with pytest.raises(errors.UserError,
                     match='row 2: 65, 3 is not within 0.png'):
    pairs.open_set(f'keypoints:{tmp_path}/points.csv')


@pytest.mark.parametrize('matrix', [
    '1 0 8\n0 1 0\n', '1 0\n0 1\n', '1 0 x\n0 1 0\n0 0 1\n',
    '0 0 0\n0 0 0\n0 0 0\n', '1 0 8\n0 1\n0 0 1\n'])
def test_homographies_that_are_none_are_refused(tmp_path, matrix):
  spec = made.homographies(tmp_path)
  pairs.open_set(spec)
  (tmp_path / 'H.txt').write_text(matrix)
  with pytest.raises(errors.UserError, match='H.txt is no homography'):
    pairs.open_set(spec)


def test_spair_has_classes_and_viewpoints(tmp_path):
  test = pairs.open_set(f'spair:{made.spair(tmp_path)}')
  assert [(p.group, p.part, p.scale) for p in test.pairs] == [
      ('dog', 0, 16), ('cat', 1, 16)]
  assert len(test) == 4 and test.part == 'viewpoint'


def test_navi_has_points_before_the_camera(tmp_path):
  test = pairs.open_set(f'navi:{made.navi(tmp_path)}')
  assert len(test) == 2 and test.pairs == [(0, 1)]
  surfaces = [test.surface(i, 64, 16) for i in (0, 1)]
  for surface in surfaces:
    inside = surface.xyz[..., 2] > 0
    assert 0.5 < inside.mean() < 1
    np.testing.assert_allclose(surface.xyz[inside][:, 2], 1, atol=1e-3)
    # Points are at their cells of the square, seen through its camera.
    places = surface.xyz[inside] @ surface.intrinsics.T
    ys, xs = np.nonzero(inside)
    np.testing.assert_allclose(places[:, :2] / places[:, 2:], 4 * np.stack(
        [xs + 0.5, ys + 0.5], 1), atol=2)
  np.testing.assert_allclose(navi.relative(*(s.pose for s in surfaces)),
                             [[1, 0, 0, 0.1], [0, 1, 0, 0], [0, 0, 1, 0]])


@pytest.mark.parametrize('reader, spec, message', [
    (videos, 'davis:{}', 'JPEGImages/480p is missing: get DAVIS-2017'),
    (boxes, 'voc2012:{}', 'trainval.txt is missing: get the trainval archive'),
    (boxes, 'coco20k:{}', 'coco_20k_filenames.txt is missing: get train2014'),
    (pairs, 'spair:{}', 'PairAnnotation/test is missing: get SPair-71k'),
    (pairs, 'navi:{}', 'pairs-wild_set.txt is missing: get navi_v1.5'),
    (pairs, 'spair:{}/gone', 'is not there: give'),
    (pairs, 'other:{}', 'is no set of pairs of images: give'),
    (boxes, 'folder:{}', 'is no set of images with boxes: give'),
    (videos, 'folder:{}', 'is no set of videos with masks: give')])
def test_the_first_missing_file_is_named(tmp_path, reader, spec, message):
  with pytest.raises(errors.UserError, match=message):
    reader.open_set(spec.format(tmp_path))
