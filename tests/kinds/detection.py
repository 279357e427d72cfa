"""Boxes and what they are measured by."""

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.losses import boxes
from dinojax.losses import detection as losses
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


@golden.kind('box_utils')
def box_utils(case):
  c, x = case.config, {name: jnp.asarray(value)
                       for name, value in case.inputs.items()}
  c.skip('seed', 'scale')
  height, width = c['image']
  np.testing.assert_array_equal(x['image_height_width'], (height, width))
  ours, theirs = x['boxes_a'], x['boxes_b']
  assert (len(ours), len(theirs)) == (c['n'], c['m'])
  pairs = ours[:, None], theirs[None]
  iou, union = boxes.overlap(*pairs)
  before, changes = x['proposals'], x['deltas']
  values = jnp.array([-.5, 0, 1e-7, 1e-5, .2, .5, .9, 1 - 1e-6, 1, 2])
  return {
      'xyxy_a': boxes.corners(ours), 'xyxy_b': boxes.corners(theirs),
      'cxcywh_again': boxes.of_corners(boxes.corners(ours)),
      'iou': iou, 'union': union, 'giou': boxes.generalized_overlap(*pairs),
      'delta2bbox_unclipped': boxes.corners(boxes.moved(before, changes)),
      'delta2bbox_clipped': boxes.corners(boxes.moved(
          before, changes, jnp.array([[width, height]], jnp.float32))),
      'bbox2delta_pairs': boxes.change(before[:, None], theirs[None]),
      'bbox2delta_rows': boxes.change(before, ours),
      'inverse_sigmoid': boxes.logits(values)}


def objects_of(case, layout):
  """Objects of the images, with more room than is needed."""
  most = max(layout) + 1
  rows = []
  for i, count in enumerate(layout):
    kinds, places = (case.inputs[f'{name}{i}'] for name in (
        'labels', 'boxes'))
    assert len(kinds) == count
    pad = most - count
    rows.append((np.pad(kinds, (0, pad)), np.pad(places, (
        (0, pad), (0, 0))), np.arange(most) < count))
  return losses.Objects(*(jnp.asarray(np.stack(part))
                          for part in zip(*rows, strict=True)))


@golden.kind('detr_loss')
def detr_loss(case):
  c = case.config
  c.skip('seed', 'batch', 'classes', 'proposals', 'queries_one2one',
         'queries_one2many')
  c.only('focal_alpha', losses.ALPHA)
  c.only('lambda_one2many', 1.0)
  in_pixels, last = c['reparam'], c['layers'] - 1
  costs, weights = ({'class': c[f'{kind}_{word}'], 'box': c[f'{kind}_bbox'],
                     'overlap': c[f'{kind}_giou']} for kind, word in (
                         ('cost', 'class'), ('weight', 'ce')))
  usual = losses.WEIGHTS if in_pixels else losses.PARTS_WEIGHTS
  assert costs == weights == dict(usual)
  height, width = c['image']
  extent = jnp.array([width, height], jnp.float32)
  objects = objects_of(case, c['targets'])
  of_group = {'': (objects, 1), '_one2many': (objects, c['k_one2many']),
              'enc': (objects.as_foreground(), 1)}
  inputs = {name: {part: jnp.asarray(value)
                   for part, value in parts.items()}
            for name, parts in named(case.inputs).items()}

  def predicted(parts):
    if not in_pixels:
      return losses.Predicted(parts['logits'], parts['boxes'])
    return losses.Predicted(
        parts['logits'], boxes.moved(parts['boxes_old'], parts['deltas'],
                                     extent[None, None]),
        parts['boxes_old'], parts['deltas'])

  def group(name):
    return of_group['enc' if name == 'enc' else
                    '_one2many' if name.endswith('_one2many') else '']

  def total(inputs):
    each = {}
    for name, parts in inputs.items():
      wanted, copies = group(name)
      each[name] = losses.losses(predicted(parts), wanted, copies=copies)
    return sum(losses.weighted(values, usual)
               for values in each.values()), each

  (value, each), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(
      inputs)
  out = {'total': value}
  for name, values in each.items():
    layer, _, rest = name.partition('_')
    word = {'enc': '_enc', f'layer{last}': ''}.get(
        layer, f'_{layer.removeprefix("layer")}') + (f'_{rest}' if rest else '')
    for theirs, ours in (('ce', 'class'), ('bbox', 'box'),
                         ('giou', 'overlap')):
      out[f'losses/loss_{theirs}{word}'] = values[ours]
    of_query = np.asarray(losses.match(
        predicted(inputs[name]), *group(name)))
    for i in range(len(c['targets'])):
      query = np.flatnonzero(of_query[i] >= 0)
      out[f'{name}/match{i}'] = np.stack([query, of_query[i][query]])
    for part in ('logits', 'deltas' if in_pixels else 'boxes'):
      out[f'grad/{name}/{part}'] = grads[name][part]
  return out


def named(inputs):
  """Inputs of each prediction by its name."""
  out = {}
  for name, value in inputs.items():
    place, _, part = name.partition('/')
    if part:
      out.setdefault(place, {})[part] = value
  return out
