"""Segmentation against the reference values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.evals import segmentation
from tests import golden


def nhwc(x):
  return x.transpose(0, 2, 3, 1)


@pytest.mark.parametrize('prefix, labels', [
    ('plain', 'label'), ('reduce_zero', 'label_zero_is_background')])
def test_mean_iou_equals_the_reference(prefix, labels):
  case = golden.load('segmentation_miou')
  total = np.stack([segmentation.areas(
      predicted, label, case.meta['config']['num_classes'],
      zero_is_background=prefix == 'reduce_zero') for predicted, label in zip(
          case.inputs['pred'], case.inputs[labels], strict=True)])
  case.check(f'{prefix}/areas', total, rtol=0, atol=0)
  for name, value in segmentation.scores(total.sum(0)).items():
    # The reference values hold −1 for a class that is absent.
    case.check(f'{prefix}/{name}', np.nan_to_num(value, nan=-1), rtol=1e-6,
               atol=1e-6)


def test_sliding_windows_equal_the_reference():
  case = golden.load('segmentation_inference')
  kernel = jnp.asarray(case.inputs['conv_weight'].transpose(2, 3, 1, 0))

  def predict(x):
    out = jax.lax.conv_general_dilated(
        x, kernel, (2, 2), ((1, 1), (1, 1)),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    return segmentation.resize(out, x.shape[1:3])

  got = segmentation.slide(
      predict, jnp.asarray(nhwc(case.inputs['x'])),
      crop_px=case.meta['config']['crop'],
      stride_px=case.meta['config']['stride'])
  np.testing.assert_allclose(got, nhwc(case.outputs['slide']), atol=1e-6)


def test_the_linear_head_equals_the_reference():
  case = golden.load('segmentation_inference')
  w = case.weights['head']
  logits = segmentation.linear_head(
      [jnp.asarray(nhwc(case.inputs[f'feat{i}'])) for i in (0, 1)],
      mean=w['batchnorm_layer.running_mean'],
      variance=w['batchnorm_layer.running_var'],
      scale=w['batchnorm_layer.weight'], bias=w['batchnorm_layer.bias'],
      kernel=w['conv.weight'][:, :, 0, 0].T, kernel_bias=w['conv.bias'])
  np.testing.assert_allclose(
      logits, nhwc(case.outputs['linear_head_eval']), atol=2e-6)
  np.testing.assert_allclose(
      segmentation.resize(logits, (17, 13)),
      nhwc(case.outputs['linear_head_predict']), atol=2e-6)


@pytest.mark.parametrize('size, crop, stride', [
    (20, 12, 8), (12, 12, 8), (5, 12, 8), (37, 16, 11)])
def test_windows_cover_every_pixel_and_stay_inside(size, crop, stride):
  starts = segmentation.windows(size, crop, stride)
  covered = set()
  for start in starts:
    covered |= set(range(start, min(start + crop, size)))
    assert start >= 0 and start + min(crop, size) <= size
  assert covered == set(range(size))


def test_an_absent_class_is_no_zero():
  total = segmentation.areas(np.zeros((4, 4)), np.zeros((4, 4)), 3)
  scores = segmentation.scores(total)
  assert scores['mIoU'] == 1 and np.isnan(scores['per_class_iou'][1:]).all()
