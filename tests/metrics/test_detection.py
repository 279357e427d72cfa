"""Average precision against pycocotools, on drawn boxes and masks."""

import numpy as np
from pycocotools import coco as coco_lib
from pycocotools import cocoeval
from pycocotools import mask as runs
import pytest

from dinojax.metrics import detection

SIDE, CLASSES = 160, 3
NAMES = ('AP', 'AP50', 'AP75', 'AP small', 'AP medium', 'AP large', 'AR1',
         'AR10', 'AR100', 'AR small', 'AR medium', 'AR large')


def some_boxes(rng, count):
  corner = rng.integers(0, SIDE - 20, (count, 2))
  side = rng.integers(6, 130, (count, 2))
  return np.concatenate([corner, np.minimum(corner + side, SIDE)], axis=1)


def image(rng):
  """Objects and predictions, most of them near an object."""
  truth = some_boxes(rng, rng.integers(1, 7))
  near = truth[rng.integers(0, len(truth), 14)] + rng.integers(-9, 10, (14, 4))
  near = np.clip(near, 0, SIDE)
  near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
  ours = np.concatenate([near, some_boxes(rng, 5)])
  return {'truth': truth, 'true_label': rng.integers(0, CLASSES, len(truth)),
          'crowd': rng.random(len(truth)) < 0.2, 'ours': ours,
          'label': rng.integers(0, CLASSES, len(ours)),
          'score': rng.permutation(len(ours)) / 20 + rng.random() / 100}


def masks_of(boxes):
  out = np.zeros((len(boxes), SIDE, SIDE), bool)
  for mask, (left, top, right, bottom) in zip(out, boxes, strict=True):
    mask[top:bottom, left:right] = True
  return out


def theirs(images, kind):
  """The twelve numbers of COCOeval."""
  annotations, found = [], []
  shape = lambda box, mask: {
      'bbox': [*map(float, box[:2]), *map(float, box[2:] - box[:2])],
      'segmentation': runs.encode(np.asfortranarray(mask.astype(np.uint8))),
      'area': float(mask.sum())}
  for number, each in enumerate(images):
    for box, mask, label, crowd in zip(
        each['truth'], masks_of(each['truth']), each['true_label'],
        each['crowd'], strict=True):
      annotations.append(shape(box, mask) | {
          'id': len(annotations) + 1, 'image_id': number,
          'category_id': int(label), 'iscrowd': int(crowd)})
    for box, mask, label, score in zip(
        each['ours'], masks_of(each['ours']), each['label'], each['score'],
        strict=True):
      found.append(shape(box, mask) | {
          'image_id': number, 'category_id': int(label),
          'score': float(score)})
  truth = coco_lib.COCO()
  truth.dataset = {
      'images': [{'id': i, 'width': SIDE, 'height': SIDE}
                 for i in range(len(images))], 'annotations': annotations,
      'categories': [{'id': i, 'name': str(i)} for i in range(CLASSES)]}
  truth.createIndex()
  if kind == 'bbox':
    found = [{name: x for name, x in each.items() if name != 'segmentation'}
             for each in found]
  work = cocoeval.COCOeval(truth, truth.loadRes(found), kind)
  work.evaluate()
  work.accumulate()
  work.summarize()
  return np.where(work.stats < 0, np.nan, 100 * work.stats)


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_average_precision_is_that_of_pycocotools(kind):
  rng = np.random.default_rng(0)
  images = [image(rng) for _ in range(12)]
  some = []
  for each in images:
    areas = lambda boxes: (boxes[:, 2:] - boxes[:, :2]).prod(1)
    overlaps = detection.box_overlaps(
        each['ours'], each['truth'], each['crowd']) if kind == 'bbox' else (
            detection.mask_overlaps(masks_of(each['ours']), masks_of(
                each['truth']), each['crowd']))
    some.append(detection.matches(
        overlaps, each['label'], each['score'], areas(each['ours']),
        each['true_label'], areas(each['truth']), each['crowd'], CLASSES))
  scores = detection.average_precision(some)
  np.testing.assert_allclose(
      [scores[name] for name in NAMES], theirs(images, kind), rtol=1e-9)
