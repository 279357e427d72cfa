"""Boxes and what they are measured by."""

import numpy as np

from dinojax.metrics import detection
from tests import golden


@golden.kind('coco_map')
def coco_map(case):
  c, x = case.config, case.inputs
  c.skip('seed', 'images', 'max_gt', 'categories', 'absent', 'crowd',
         'false_positives', 'flood')
  kinds = {kind: i for i, kind in enumerate(x['category_ids'].tolist())}
  corners = lambda rows: np.concatenate(
      [rows[:, 2:4], rows[:, 2:4] + rows[:, 4:6]], axis=1).astype(np.float64)
  number = lambda rows: np.array([kinds[kind] for kind in rows[:, 1]], int)
  images = []
  for image in x['image_ids']:
    truth, found = (x[name][x[name][:, 0] == image]
                    for name in ('ground_truth', 'detections'))
    crowd = truth[:, 7] > 0
    images.append(detection.matches(
        detection.box_overlaps(corners(found), corners(truth), crowd),
        number(found), found[:, 6], found[:, 4].astype(float) * found[:, 5],
        number(truth), truth[:, 6], crowd, len(kinds)))
  precision, recall = detection.curves(images)
  scores = detection.average_precision(images)
  return {'stats': np.nan_to_num(
      np.array(list(scores.values())) / 100, nan=-1.0),
          'recall_iou_class': recall[0],
          'ap_iou_class': np.where((precision[0] > -1).any(-1), precision[
              0].mean(-1), -1), 'precision_iou50': precision[0, 0].T}
