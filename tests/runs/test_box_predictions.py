"""`dinojax predict`: boxes of a detector, as COCO's evaluation reads them."""

import json

from PIL import Image
import pytest

from dinojax.evals import stored_heads
from tests.runs import test_predictions

model, images = test_predictions.model, test_predictions.images


@pytest.fixture(scope='module')
def head(model, tmp_path_factory):
  folder = tmp_path_factory.mktemp('head')
  made = test_predictions.made('detector', model)
  made.facts['category ids'] = [7, 3, 90]
  stored_heads.save(str(folder), made)
  return folder


def test_boxes_are_written_as_coco_reads_them(
    head, model, images, tmp_path, capsys):
  out = tmp_path / 'out'
  words = ('--squares_px=32', '--flips')
  assert test_predictions.predict(model, head, images, out, *words) == 0
  assert '3 images in' in capsys.readouterr().out
  rows = {row['name']: row for row in test_predictions.lines(out)}
  results = json.loads((out / 'coco.json').read_text())
  assert sum(len(row['objects']) for row in rows.values()) == len(results) > 0
  for name, size in zip(('a/x.png', 'a/x.jpg', 'y.png'),
                        test_predictions.SIZES, strict=True):
    assert Image.open(out / rows[name]['picture']).width >= size[0]
    for each in rows[name]['objects']:
      left, top, width, height = each['bbox']
      assert min(left, top, width, height) >= 0 and 0 < each['score'] <= 1
      assert left + width <= size[0] + 0.01 and top + height <= (
          size[1] + 0.01)
      assert (each['category_id'], each['class']) in (
          (7, 'cat'), (3, 'dog'), (90, 'fish'))
    of_image = [each for each in results
                if each['image_id'] == rows[name]['index']]
    assert of_image == [
        {'image_id': rows[name]['index']} | {
            key: value for key, value in each.items() if key != 'class'}
        for each in rows[name]['objects']]
  # Other views are other predictions.
  assert test_predictions.predict(model, head, images, out) == 2
  assert 'holds predictions of another head' in capsys.readouterr().err


@pytest.mark.parametrize('words, text', [
    (['--as=panoptic'], 'needs a head of queries, and this one is of detector'),
    (['--short_px=48'], 'segments and objects are made of squares'),
    (['--squares_px=48,x'], '--squares_px=48,x are no sides in pixels'),
    (['--squares_px=4'], '--squares_px=4 gives 5 proposals for 10 queries'),
    (['--squares_px=50'], '--squares_px=50 is no whole number of patches of '
     '4 pixels: set --squares_px=48')])
def test_answers_that_cannot_be_given_are_sentences(
    words, text, head, model, images, tmp_path, capsys):
  assert test_predictions.predict(
      model, head, images, tmp_path / 'out', *words) == 2
  assert text in capsys.readouterr().err


def test_other_heads_have_no_squares(model, images, tmp_path, capsys):
  stored_heads.save(str(tmp_path / 'head'), test_predictions.made(
      'segmentation', model))
  for words, text in ((['--squares_px=48'], 'squares_px is of detectors'),
                      (['--as=boxes'], 'needs a detector, and this one is of '
                       'segmentation')):
    assert test_predictions.predict(
        model, tmp_path / 'head', images, tmp_path / 'out', *words) == 2
    assert text in capsys.readouterr().err
