"""`dinojax predict`: segments and objects, as COCO's evaluation reads them."""

import dataclasses
import json

import jax
import numpy as np
from PIL import Image
from pycocotools import mask as coco
import pytest

from dinojax.core import errors
from dinojax.evals import stored_heads
from dinojax.probes import head as head_lib
from dinojax.probes.tasks import align
from dinojax.runs import segment_predictions
from tests.runs import test_predictions

model, images = test_predictions.model, test_predictions.images


@pytest.fixture(scope='module')
def head(model):
  """A head whose queries are sure of their classes."""
  made = test_predictions.made('masks', model)
  task = dataclasses.replace(made.task, answers='panoptic', stuff=(2,))
  rng = np.random.default_rng(3)
  params = jax.tree.map(
      lambda x: np.float32(rng.normal(size=x.shape)), made.params)
  params['class']['bias'] = np.float32([0, 0, 0, -30])  # all are something
  return head_lib.Head(
      task, params, made.stats, made.origin, made.classes, {
          'category ids': [7, 3, 90], 'views': {'crop_px': 32},
          'threshold': 0.05, 'overlap': 0.0})


def predict(head, model, images, out, *words):
  stored_heads.save(str(out.parent / 'head'), head)
  return test_predictions.predict(
      model, out.parent / 'head', images, out, *words)


def test_segments_are_written_as_coco_reads_them(
    head, model, images, tmp_path, capsys):
  out = tmp_path / 'out'
  assert predict(head, model, images, out) == 0
  assert '3 images in' in capsys.readouterr().out
  rows = {row['name']: row for row in test_predictions.lines(out)}
  results = json.loads((out / segment_predictions.RESULTS).read_text())
  assert [x['image_id'] for x in results['annotations']] == sorted(
      row['index'] for row in rows.values())
  count = 0
  for name, size in zip(('a/x.png', 'a/x.jpg', 'y.png'),
                        test_predictions.SIZES, strict=True):
    pixels = np.asarray(Image.open(out / rows[name]['map'])).astype(int)
    assert pixels.shape == (*size[::-1], 3)
    ids = pixels @ np.array([1, 256, 65536])
    assert set(np.unique(ids)) - {0} == {
        each['id'] for each in rows[name]['segments']}
    for each in rows[name]['segments']:
      assert each['area'] == (ids == each['id']).sum()
      assert (each['category_id'], each['class']) in (
          (7, 'cat'), (3, 'dog'), (90, 'fish'))
      count += 1
    assert (out / rows[name]['picture']).exists()
  assert count
  # What is there stays, and the results are of all images again.
  assert predict(head, model, images, out) == 0
  assert json.loads((out / segment_predictions.RESULTS).read_text()) == results


def test_objects_are_written_with_their_run_lengths(
    head, model, images, tmp_path):
  out = tmp_path / 'out'
  assert predict(head, model, images, out, '--as=instances') == 0
  results = json.loads((out / segment_predictions.RESULTS).read_text())
  rows = {row['index']: row for row in test_predictions.lines(out)}
  assert len(results) == sum(len(row['objects']) for row in rows.values())
  for each in results:
    assert set(each) == {'image_id', 'category_id', 'score', 'bbox',
                         'segmentation'}
    row = rows[each['image_id']]
    size = dict(zip(('a/x.png', 'a/x.jpg', 'y.png'), test_predictions.SIZES,
                    strict=True))[row['name']]
    mask = coco.decode(each['segmentation'])
    assert mask.shape == size[::-1] and 0 <= each['score'] <= 1
    if mask.any():
      y, x = np.nonzero(mask)
      np.testing.assert_array_equal(each['bbox'], [
          x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1])
  # Of the same folder, other answers are other predictions.
  assert predict(head, model, images, out) == 2


@pytest.mark.slow  # as a head of masks does in test_predictions
def test_a_head_of_segments_names_pixels_too(head, model, images, tmp_path):
  out = tmp_path / 'out'
  assert predict(head, model, images, out, '--as=semantic') == 0
  for row in test_predictions.lines(out):
    assert set(np.unique(np.asarray(Image.open(out / row['map'])))) <= {0, 1, 2}


def test_answers_that_cannot_be_given_are_sentences(
    head, model, images, tmp_path, capsys):
  linear = test_predictions.made('segmentation', model)
  for some, words, text in (
      (linear, ['--as=panoptic'], 'needs a head of queries, and this one is of '
       'segmentation'),
      (head, ['--as=things'], 'give one of semantic, panoptic, instances'),
      (head, ['--short_px=48'], 'objects are made of squares')):
    assert predict(some, model, images, tmp_path / 'out', *words) == 2
    assert text in capsys.readouterr().err


def test_numbers_of_images_are_those_of_their_names():
  of = segment_predictions.image_ids
  assert of(['val/000000000139.jpg', '285.jpg'], [0, 1]) == [139, 285]
  assert of(['a.jpg', '285.jpg'], [4, 9]) == [4, 9]
  assert of(['a/1.jpg', 'b/1.jpg'], [0, 1]) == [0, 1]  # of two folders


def test_objects_need_pycocotools(head, monkeypatch):
  monkeypatch.setitem(__import__('sys').modules, 'pycocotools', None)
  with pytest.raises(errors.UserError, match=r'pip install "dinojax\[coco\]"'):
    segment_predictions.Segments(head, 'instances')
  assert segment_predictions.Segments(head, 'panoptic').where == (
      segment_predictions.RESULTS)


def test_a_head_of_texts_is_not_predicted_with(model, images, tmp_path, capsys):
  task = align.Align(
      text=align.tower.Config(8, 1, 1, context=4, vocabulary=9, embed_dim=16),
      vision=align.vision_head.Config(16, 2, depth=0, embed_dim=32), depth=4)
  parts = jax.tree.map(lambda x: np.zeros(x.shape, np.float32),
                       head_lib.shapes_of(task, (16,)))
  made = head_lib.Head(task, parts['params'], {}, head_lib.Origin(
      model, '', (16,)))
  assert predict(made, model, images, tmp_path / 'out') == 2
  assert 'aligns texts and makes no maps' in capsys.readouterr().err
