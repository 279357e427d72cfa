"""Windows: nothing is left out, and products equal sums of windows."""

import numpy as np
import pytest

from dinojax.evals import windows
from dinojax.kernels import resample


@pytest.mark.parametrize('size, crop, stride', [
    (20, 12, 8), (12, 12, 8), (5, 12, 8), (37, 16, 11)])
def test_windows_cover_every_pixel_and_stay_inside(size, crop, stride):
  starts = windows.starts(size, crop, stride)
  covered = set()
  for start in starts:
    covered |= set(range(start, min(start + crop, size)))
    assert start >= 0 and start + min(crop, size) <= size
  assert covered == set(range(size))


def test_a_view_below_a_window_has_square_ones():
  assert windows.Windows(512, 341).shape((300, 400)) == (300, 300)
  assert windows.Windows(512, 341).shape((480, 640)) == (480, 512)
  assert windows.Windows().shape((480, 640)) == (480, 640)
  # The stride is never wider than a window.
  tops, lefts = windows.Windows(512, 341).starts((100, 500))
  assert lefts == [0, 100, 200, 300, 400] and tops == [0]


def test_sizes_of_views_round_as_the_reference():
  assert windows.view_size((333, 500), 512) == (512, 769)
  assert windows.view_size((500, 333), 512) == (769, 512)
  assert windows.view_size((333, 500), 512, 0.9) == (480, 721)  # 460
  assert windows.view_size((333, 500), 512, 1.32) == (675, 1014)
  assert windows.view_size((30, 41), None) == (30, 41)


@pytest.mark.parametrize('flip', [False, True])
def test_assembly_equals_summed_windows(flip):
  """Patches to windows, windows summed, counts, resized: step by step."""
  rng = np.random.default_rng(0)
  views = windows.Windows(16, 11)
  size, out_size, tokens = (16, 37), (21, 30), 4
  tops, lefts = views.starts(size)
  values = rng.normal(size=(len(tops) * len(lefts), tokens, tokens, 3)).astype(
      np.float32)
  total, count = np.zeros((*size, 3)), np.zeros((*size, 1))
  for value, (top, left) in zip(
      values, ((t, x) for t in tops for x in lefts), strict=True):
    part = (slice(top, top + 16), slice(left, left + 16))
    total[part] += resample.resize_linear(value[None], (16, 16))[0]
    count[part] += 1
  want = np.asarray(resample.resize_linear(
      (total / count)[None].astype(np.float32), out_size))[0]
  want = want[:, ::-1] if flip else want
  to_window = resample.linear_matrix(tokens, 16)
  axes = [windows.matrix(n, 16, first, to_window, m, flip and not i)
          for i, (n, first, m) in reversed(list(enumerate(zip(
              size[::-1], (lefts, tops), out_size[::-1], strict=True))))]
  grid = windows.side_by_side(values, len(tops))
  for at_once in (1, 7, 21):  # whatever rows are made at a time
    got = windows.assembled(
        ((grid, *axes),), num_rows=at_once, is_class=False)
    np.testing.assert_allclose(got, want, atol=1e-5)
  classes = windows.assembled(((grid, *axes),), num_rows=7, is_class=True)
  np.testing.assert_array_equal(classes, want.argmax(-1))


def test_views_are_averaged_as_probabilities():
  """Two views outvote a third, which is surer, as sums of logits do not."""
  sure, unsure = np.float32([[[9.0, 0.0]]]), np.float32([[[0.0, 4.0]]])
  axes = (np.ones((1, 1), np.float32),) * 2
  views = ((sure, *axes), (unsure, *axes), (unsure, *axes))
  assert windows.assembled(
      views, num_rows=1, is_class=True, softmax=True)[0, 0] == 1
  assert windows.assembled(views, num_rows=1, is_class=True)[0, 0] == 0
  mean = windows.assembled(views, num_rows=1, is_class=False)
  np.testing.assert_allclose(mean[0, 0], [3, 8 / 3], rtol=1e-6)


def test_windows_of_a_pointwise_model_change_nothing():
  image = np.random.default_rng(0).normal(size=(20, 27, 3)).astype(np.float32)
  double = lambda x: 2 * x
  got = windows.slid(double, image, windows.Windows(12, 8), (20, 27))
  np.testing.assert_allclose(got, 2 * image, rtol=1e-5, atol=1e-6)
  back = windows.slid(double, image[:, ::-1], windows.Windows(12, 8),
                      (20, 27), flip=True)
  np.testing.assert_allclose(back, got, rtol=1e-5, atol=1e-6)


def test_blocks_divide_the_rows_and_bound_the_values():
  assert windows.rows_at_once(64, 100, 10) == 64
  assert windows.rows_at_once(64, 2**20, 2) == 4
  assert windows.rows_at_once(96, 2**23, 150) == 1
