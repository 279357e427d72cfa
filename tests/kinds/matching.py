"""Protocols without training: matches, boxes, masks of videos, PCA."""

import jax.numpy as jnp
import numpy as np

from dinojax.evals import cut
from dinojax.evals import matching
from dinojax.evals import propagation
from dinojax.metrics import correspondence
from dinojax.metrics import video
from dinojax.runs import pictures
from tests import golden


@golden.kind('pck_spair')
def pck_spair(case):
  c, x = case.config, case.inputs
  side = c['image_size']
  rows, columns = x['source_features'].shape[2:]
  known = (x['source_keypoints'][..., 2] > 0) & (
      x['target_keypoints'][..., 2] > 0)
  out = {}
  for prefix, at in (('', 'corner'), ('own_patch_centre/', 'centre')):
    places, error, close, near = _transferred(
        x, side, (rows, columns), known, at)
    if at == 'corner':
      out |= {'patch_xy': places, 'error_nearest_keypoint': close,
              'nearest_keypoint': near}
    out[f'{prefix}error'] = error
    group = np.broadcast_to(x['class'][:, None], error.shape)
    for alpha in c['alphas']:
      by_class = correspondence.pck(error.reshape(-1), group.reshape(-1), alpha)
      out[f'{prefix}pck_{alpha}/per_class'] = np.array(
          [by_class[i] for i in sorted(by_class)])
      out[f'{prefix}pck_{alpha}/mean_over_classes'] = (
          correspondence.mean_of_groups(by_class))
  return out


def _transferred(x, side, grid, known, at):
  """Patches, errors, errors to the nearest keypoint and its number."""
  shape = known.shape
  patches = np.full((*shape, 2), -1, np.int32)
  error, close = np.full(shape, -1.0), np.full(shape, -1.0)
  near = np.full(shape, -1, np.int32)
  patch = np.array([side / grid[1], side / grid[0]])
  for i, keep in enumerate(known):
    source, target = (matching.unit(x[f'{name}_features'][i], axis=0)
                      .transpose(1, 2, 0) for name in ('source', 'target'))
    asked, truth = (x[f'{name}_keypoints'][i][:, :2].astype(np.float64)
                    for name in ('source', 'target'))
    # Both of the case's variants sample as the reference does.
    rows = matching.sample(source, jnp.asarray(asked / patch, jnp.float32),
                           aligned_corners=True)
    index = np.asarray(matching.nearest(
        rows, target.reshape(-1, target.shape[-1]),
        np.ones(grid[0] * grid[1], bool))[0])
    patches[i] = np.stack([index % grid[1], index // grid[1]], -1)
    places = correspondence.patch_places(index, grid[1], 1.0, at) * patch
    scale = side * x['scale'][i]
    error[i] = correspondence.distances(places, truth) / scale
    gaps = correspondence.distances(places[:, None], truth[None]) / scale
    gaps[:, x['target_keypoints'][i][:, 2] == 0] = np.inf
    close[i], near[i] = gaps.min(1), gaps.argmin(1)
    error[i, ~keep] = close[i, ~keep] = near[i, ~keep] = -1
  return patches, error, close, near


@golden.kind('navi_recall')
def navi_recall(case):
  c, x = case.config, case.inputs
  step = 1 / c['scale_factor']
  out, errors_3d, errors_2d, angles = {}, [], [], []
  weights = []
  for i, pose in enumerate(x['rt01']):
    xyz = []
    for name in ('xyz0', 'xyz1'):
      grid = x[name][i]
      size = [int(n * c['scale_factor']) for n in grid.shape[1:]]
      rows, columns = (np.floor(np.arange(n) * step).astype(int)
                       for n in size)
      xyz.append(grid[:, rows][:, :, columns].transpose(1, 2, 0))
    features = [x[name][i].transpose(1, 2, 0)
                for name in ('features0', 'features1')]
    kept, index, weight = map(np.asarray, matching.dense(
        *features, xyz[0][..., 2] > 0, xyz[1][..., 2] > 0,
        size=xyz[0].shape[:2], num_matches=c['num_correspondences']))
    points, truth = xyz[0].reshape(-1, 3)[kept], xyz[1].reshape(-1, 3)[index]
    reached = correspondence.moved(points.astype(np.float64), pose)
    weights.append(np.sort(weight)[::-1])
    errors_3d.append(np.sort(correspondence.distances(reached, truth)))
    errors_2d.append(np.sort(correspondence.distances(
        correspondence.project(reached, x['intrinsics1'][i]),
        correspondence.project(truth, x['intrinsics1'][i]))))
    angles.append(correspondence.rotation_degrees(pose))
  errors_3d, errors_2d, angles = map(
      np.array, (errors_3d, errors_2d, angles))
  for key in case.outputs:
    name, _, unit = key.partition('recall_')
    if unit.endswith('m') and not name:
      out[key] = correspondence.recall(errors_3d, float(unit[:-1]))
    elif unit.endswith('px') and not name:
      out[key] = correspondence.recall(errors_2d, float(unit[:-2]))
  share = (errors_3d < 0.02).mean(1)
  return out | {
      'weights_sorted': weights, 'error_3d_sorted': errors_3d,
      'error_2d_sorted': errors_2d, 'angle': angles,
      'recall_2cm_by_angle': np.nan_to_num(correspondence.by_bin(
          share, angles, c['angle_bins']), nan=-1)}


@golden.kind('tokencut_box')
def tokencut_box(case):
  c = case.config
  got = cut.discover(
      jnp.asarray(case.inputs['features']), patch_px=c['patch_size'],
      image_px=tuple(c['image_size']), tau=c['tau'], eps=c['eps'],
      weighted=c['similarity_weights'])
  assert got.converged
  return {'box': got.box, 'mask': got.mask, 'seed': np.int32(got.seed),
          'vector': got.vector, 'eigenvalues_1_2': got.eigenvalues}


@golden.kind('label_propagation')
def label_propagation(case):
  c, x = case.config, case.inputs
  c.only('variant', 'v1', 'v3')
  c.only('neighborhood', 'circle', 'square', 'none')
  is_v1, size = c['variant'] == 'v1', tuple(c['frame_size'])
  c.only('upsample', 'bilinear' if is_v1 else 'nearest')
  shape = c['neighborhood']
  radius = None if shape == 'none' or (is_v1 and not c['radius']) else (
      c['radius'])
  c.skip('radius')  # of no neighbourhood
  rule = propagation.Rule(
      context=c['context'], radius=radius,
      neighborhood='square' if shape == 'none' else shape,
      top_k=c['topk'], temperature=c['temperature'])
  features, mask = x['features'], x['first_mask']
  labels = propagation.one_hot(mask, int(mask.max()) + 1, features.shape[1:3])
  state = propagation.start(features[0], labels, rule)
  soft, hard = [], []
  for frame in features[1:]:
    state, shares = propagation.step(state, frame, rule)
    soft.append(np.asarray(shares).transpose(2, 0, 1))
    hard.append(np.asarray(
        propagation.hard_v1(shares, size, c['patch_size']) if is_v1
        else propagation.hard(shares, size)))
  out = {'first_one_hot': labels.transpose(2, 0, 1), 'soft': soft,
         'hard': hard}
  if not is_v1:
    out['probabilities_last'] = np.asarray(
        propagation.probabilities(shares, size)).transpose(2, 0, 1)
  return out


@golden.kind('davis_j_and_f')
def davis_j_and_f(case):
  c, x, out = case.config, case.inputs, {}
  bound, pixels = c['bound_fraction'], c['bound_pixels_variant']
  measures = {'J': video.region,
              'F': lambda *a: video.contour(*a, bound=bound)}
  objects = range(1, c['objects'] + 1)
  names = sorted({key.split('/')[0] for key in x if key.startswith('seq')})
  for letter, measure in measures.items():
    lines = []
    for name in names:
      truth, given = x[f'{name}/truth'], x[f'{name}/prediction']
      values = np.array([measure(truth == k, given == k) for k in objects])
      out[f'{name}/{letter}'] = values
      lines += [video.statistics(row) for row in values[:, 1:-1]]
    for i, statistic in enumerate(('mean', 'recall', 'decay')):
      column = np.array([line[i] for line in lines])
      out[f'{letter}_{statistic}_per_object'] = column
      out[f'{letter}_{statistic}'] = column.mean()
    first = (x['seq0/truth'] == 1, x['seq0/prediction'] == 1)
    out[f'void/{letter}'] = measure(*first, x['void'])
  out['bound/F'] = video.contour(*first, bound=pixels)
  out['J_and_F'] = (out['J_mean'] + out['F_mean']) / 2
  out['bmap'] = video.outline(first[0][0])
  return out


@golden.kind('pca_foreground')
def pca_foreground(case):
  c, x = case.config, case.inputs
  got = pictures.foreground_pca(
      x['features'][None], x['classifier_weight'],
      float(x['classifier_bias']), threshold=c['threshold'],
      median=c['filter'], components=c['components'], gain=c['gain'])
  return {'score': got.score[0], 'score_filtered': got.filtered[0],
          'foreground': got.mask[0], 'components': got.axes,
          'explained_variance': got.variance, 'mean': got.mean,
          'picture': got.colours[0].transpose(2, 0, 1)}
