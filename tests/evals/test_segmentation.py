"""Segmentation: windows and absent classes."""

import jax
import numpy as np
import pytest

from dinojax.evals import segmentation
from dinojax.metrics import segmentation as segmentation_metrics


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
  total = segmentation_metrics.areas(np.zeros((4, 4)), np.zeros((4, 4)), 3)
  scores = segmentation_metrics.scores(total)
  assert scores['mIoU'] == 1 and np.isnan(scores['per_class_iou'][1:]).all()


def test_windows_of_a_pointwise_model_change_nothing():
  image = jax.random.normal(jax.random.key(0), (1, 20, 27, 3))
  predict = lambda x: 2 * x
  options = dict(size=(20, 27))
  whole = segmentation.infer(predict, image, **options)
  np.testing.assert_allclose(whole, 2 * image, rtol=1e-6)
  slid = segmentation.infer(
      predict, image, crop_px=12, stride_px=8, **options)
  np.testing.assert_allclose(slid, whole, rtol=1e-6)
  mirrored = segmentation.infer(
      predict, image[:, :, ::-1], mirrored=True, **options)
  np.testing.assert_array_equal(mirrored, whole)
  shares = segmentation.infer(predict, image, probabilities=True, **options)
  np.testing.assert_allclose(shares.sum(-1), 1, rtol=1e-5)
