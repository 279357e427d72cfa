"""Images with boxes that have classes: CSV and COCO, good and bad."""

import json

import numpy as np
from PIL import Image
import pytest

from dinojax.core import errors
from dinojax.evals.sets import objects

SIZE = (40, 30)


def table(folder, *lines, head='image,class,x0,y0,x1,y1'):
  (folder / 'a').mkdir(exist_ok=True)
  for name in 'xyz':
    Image.new('RGB', SIZE).save(folder / f'a/{name}.png')
  path = folder / 'boxes.csv'
  path.write_text('\n'.join((head, *lines)) + '\n')
  return objects.opened(f'boxes:{path}', 'train2017')


def test_a_table_has_a_box_a_row(tmp_path):
  got = table(tmp_path, 'a/x.png,dog,1,2,11,22', 'a/y.png,,,,,',
              'a/x.png,cat,0,0,40,30')
  assert got.classes == ('cat', 'dog') and len(got) == 2
  assert (got.most, got.num_empty, got.dropped) == (2, 1, 0)
  picture, truth = got[0].decoded()
  assert picture.size == SIZE and truth.kinds.tolist() == [1, 0]
  np.testing.assert_array_equal(truth.boxes, [[1, 2, 11, 22], [0, 0, 40, 30]])
  assert truth.areas.tolist() == [200, 1200] and not truth.crowd.any()
  assert not len(got[1].decoded()[1].boxes)
  assert got.order() == ['a/x.png', 'a/y.png']
  before = got.digest
  assert table(tmp_path, 'a/x.png,dog,1,2,11,23').digest != before


def test_corners_and_classes_have_the_names_that_people_give(tmp_path):
  got = table(tmp_path, 'a/x.png,7,1,2,11,22',
              head='image,label,xmin,ymin,xmax,ymax')
  assert got.classes == ('7',)
  got = table(tmp_path, 'a/x.png,1,2,11,22', head='image,x0,y0,x1,y1')
  assert got.classes == ('object',)


@pytest.mark.parametrize('line, text', [
    ('a/x.png,dog,1,2,1,22', r'row 2: the box 1, 2, 1, 22 has no area'),
    ('a/x.png,dog,1,2,41,22', r'row 2: the box .* is not within the image of '
     '40 × 30 pixels'),
    ('a/x.png,,1,2,4,22', r'row 2: class is empty: name the class'),
    ('a/x.png,dog,1,two,4,22', r"row 2: y0='two' is no number"),
    ('a/w.png,dog,1,2,4,22', r'a/w.png is missing: images are named as seen'),
    ('a/x.png,,,,,', r'has no image with a box \(1 images\)')])
def test_boxes_that_are_none_are_a_sentence(line, text, tmp_path):
  with pytest.raises(errors.UserError, match=text):
    table(tmp_path, line)


def coco(folder, annotations, images=True, **changes):
  (folder / 'images').mkdir(exist_ok=True)
  rows = []
  for i in (5, 6):
    Image.new('RGB', SIZE).save(folder / f'images/{i}.png')
    rows.append({'id': i, 'file_name': f'{i}.png', 'width': SIZE[0],
                 'height': SIZE[1]} | changes)
  path = folder / 'boxes.json'
  path.write_text(json.dumps({
      'images': rows, 'annotations': annotations,
      'categories': [{'id': 9, 'name': 'dog'}, {'id': 2, 'name': 'cat'}]}))
  return objects.opened(f'coco_boxes:{path}', 'train2017')


def box(image=5, kind=9, place=(1, 2, 10, 20), **more):
  return {'id': 77, 'image_id': image, 'category_id': kind,
          'bbox': list(place)} | more


def test_annotations_of_coco(tmp_path):
  got = coco(tmp_path, [
      box(), box(kind=2, place=(20, 10, 20.6, 20), iscrowd=1, area=33.0),
      box(place=(1, 1, 0, 5))])
  assert got.classes == ('cat', 'dog') and got.category_ids == (2, 9)
  assert (len(got), got.num_empty, got.dropped) == (2, 1, 1)
  _, truth = got[0].decoded()
  # What rounds beyond the image is cut off.
  np.testing.assert_array_equal(truth.boxes, [[1, 2, 11, 22], [20, 10, 40, 30]])
  assert truth.crowd.tolist() == [False, True]
  assert truth.areas.tolist() == [200, 33]


@pytest.mark.parametrize('annotations, changes, text', [
    ([box(place=(30, 2, 20, 20))], {}, 'annotation 77: the box 30, 2, 50, 22 '
     'is not within the image of 40 × 30'),
    ([box(image=4)], {}, 'annotation 77 is of image 4 and category 9'),
    ([box(kind=1)], {}, 'annotation 77 is of image 5 and category 1'),
    ([{'id': 1}], {}, r"no list of COCO .*KeyError\('image_id'\)"),
    ([], {}, r'has no image with a box \(2 images\)')])
def test_annotations_that_are_wrong_are_a_sentence(
    annotations, changes, text, tmp_path):
  with pytest.raises(errors.UserError, match=text):
    coco(tmp_path, annotations, **changes)


def test_images_that_were_not_annotated_are_a_sentence(tmp_path):
  got = coco(tmp_path, [box()], width=50)
  with pytest.raises(errors.UserError, match='5.png has boxes for 50 × 30 '
                     'pixels and 40 × 30 of its own: give the images that'):
    got[0].decoded()


def test_a_test_has_the_classes_of_its_training(tmp_path):
  train = table(tmp_path, 'a/x.png,dog,1,2,11,22', 'a/y.png,cat,1,2,11,22')
  (tmp_path / 'b').mkdir()
  test = table(tmp_path / 'b', 'a/x.png,dog,1,2,11,22')
  got = test.with_classes(train)
  assert got.classes == ('cat', 'dog')
  assert got[0].decoded()[1].kinds.tolist() == [1]
  with pytest.raises(errors.UserError, match='has objects of cat, which .* '
                     'does not have: a head knows the classes'):
    train.with_classes(test)


def test_other_sets_are_refused(tmp_path):
  with pytest.raises(errors.UserError, match="'voc:x' is no set of images "
                     'with boxes: give boxes:FILE.csv'):
    objects.opened('voc:x', 'val2017')
  with pytest.raises(errors.UserError, match='boxes:.*no.csv is not there'):
    objects.opened(f'boxes:{tmp_path}/no.csv', 'val2017')
