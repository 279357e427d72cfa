"""Geometry: the boxes of RandomResizedCrop, and what a reduced JPEG costs."""

import io
import math

import numpy as np
from PIL import Image
import pytest

from dinojax.data import crops
from dinojax.data import images


def jpeg(size, quality=95):
  """A picture with edges and texture at all scales, opened."""
  width, height = size
  rng = np.random.default_rng(0)
  field = np.zeros((height, width, 3))
  for cells in (4, 16, 64, 256):
    noise = rng.normal(size=(cells, cells, 3)) * 255 / cells
    rows = np.arange(height) * cells // height
    columns = np.arange(width) * cells // width
    field += 4 * noise[rows][:, columns]
  pixels = np.clip(127 + field, 0, 255).astype(np.uint8)
  out = io.BytesIO()
  Image.fromarray(pixels).save(out, 'JPEG', quality=quality)
  return images.open_image(out.getvalue())


class Scripted:
  """A generator that returns given numbers."""

  def __init__(self, *numbers):
    self._numbers = list(numbers)

  def uniform(self, low, high):
    return self._numbers.pop(0)

  def integers(self, low, high):
    value = self._numbers.pop(0)
    assert low <= value < high
    return value

  def random(self):
    return self._numbers.pop(0)


class Coded(images.Image):
  """An image whose pixels are their own coordinates."""

  def __init__(self, width, height):
    self.size = width, height
    self.scales = []

  def decode(self, scale=1):
    self.scales.append(scale)
    width, height = self.size
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(
        np.stack([columns, rows, 0 * rows], -1).astype(np.uint8))


def test_box_follows_its_draws():
  # 100 × 80, half the area, aspect 4/3: 73 × 55 (73.03, 54.77).
  rng = Scripted(0.5, math.log(4 / 3), 11, 7)
  assert crops.random_box((100, 80), (0.3, 1), (3 / 4, 4 / 3), rng) == (
      7, 11, 80, 66)


def test_a_box_that_does_not_fit_is_drawn_again():
  misses = [1.0, math.log(3 / 4)] * 9  # 77 × 103 in 100 × 80
  rng = Scripted(*misses, 0.25, 0.0, 0, 0)
  assert crops.random_box((100, 80), (0.3, 1), (3 / 4, 4 / 3), rng) == (
      0, 0, 45, 45)


@pytest.mark.parametrize('size, box', [
    ((300, 90), (90, 0, 210, 90)),  # ratio cut to 4/3: 120 × 90
    ((90, 300), (0, 90, 90, 210)),  # to 3/4: 90 × 120
    ((100, 90), (0, 0, 100, 90))])  # within: everything
def test_after_ten_misses_the_largest_centred_box(size, box):
  rng = Scripted(*[9.0, 0.0] * 10)  # nine times the area
  assert crops.random_box(size, (0.3, 1), (3 / 4, 4 / 3), rng) == box


def test_crops_are_cut_and_flipped_where_they_were_drawn():
  spec = crops.Crops(global_px=20, num_global=2, num_local=0)
  # A box of 20 × 20 at (30, 5): not resized, so its pixels are coordinates.
  draws = [400 / 6000, 0.0, 5, 30]
  got = crops.multi_crop(
      Coded(100, 60), Scripted(*draws, 0.9, *draws, 0.1), spec)
  assert set(got) == {'global'}
  plain, flipped = got['global']
  np.testing.assert_array_equal(plain[3, :, 0], np.arange(30, 50))
  np.testing.assert_array_equal(plain[:, 3, 1], np.arange(5, 25))
  np.testing.assert_array_equal(flipped, plain[:, ::-1])


def test_shapes_types_and_a_single_decoding():
  image = Coded(200, 180)
  got = crops.multi_crop(image, np.random.default_rng(0), crops.Crops(
      global_px=32, local_px=16, num_local=5))
  assert got['global'].shape == (2, 32, 32, 3)
  assert got['local'].shape == (5, 16, 16, 3)
  assert {x.dtype for x in got.values()} == {np.dtype(np.uint8)}
  assert len(image.scales) == 1


@pytest.mark.parametrize('side_px, scale', [
    (20, 1), (39, 1), (63, 1), (64, 2), (127, 2), (128, 4), (256, 8),
    (4000, 8)])
def test_a_crop_keeps_two_pixels_for_each_of_its_own(side_px, scale):
  small = crops.Geometry((0, 0, side_px, side_px), (16, 16))
  large = crops.Geometry((0, 0, 9000, 9000), (16, 16))
  assert crops.reduction([large, small]) == scale


@pytest.mark.parametrize('size', [(1024, 768), (1023, 767), (1601, 1203)])
def test_a_reduced_jpeg_gives_the_same_crops(size):
  spec = crops.Crops(global_px=64, local_px=24, num_local=4)
  reduced, full = jpeg(size), jpeg(size)
  scales = []
  decode = reduced.decode
  reduced.decode = lambda scale: scales.append(scale) or decode(scale)
  whole = full.decode()
  full.decode = lambda scale: whole
  got, want = (crops.multi_crop(image, np.random.default_rng(1), spec)
               for image in (reduced, full))
  assert scales[0] >= 2
  for kind in want:
    gap = got[kind].astype(float) - want[kind]
    # Less than a grey level of 60 (standard deviation) and, above all, not
    # moved: half a pixel would be ten times as much.
    assert np.sqrt(np.mean(gap ** 2)) < 1.3
    assert want[kind].std() > 20


@pytest.mark.parametrize('size, resized, corner', [
    ((500, 375), (341, 256), (58, 16)),  # 341.33 cut; 58.5 to even
    ((375, 500), (256, 341), (16, 58)),
    ((333, 500), (256, 384), (16, 80)),
    ((640, 427), (383, 256), (80, 16)),  # 383.7 cut; 79.5 to even
    ((427, 640), (256, 383), (16, 80)),
    ((256, 256), (256, 256), (16, 16)),
    ((50, 40), (320, 256), (48, 16))])  # enlarged
def test_center_crop_sizes_and_corners_are_torchvisions(
    size, resized, corner):
  image = jpeg(size)
  left, top = corner
  want = jpeg(size).decode().resize(resized, Image.Resampling.BICUBIC).crop(
      (left, top, left + 224, top + 224))
  np.testing.assert_array_equal(crops.center_crop(image), np.asarray(want))


def test_evaluation_decodes_in_full():
  image = Coded(200, 180)
  crops.center_crop(image, resize_px=20, crop_px=16)
  assert image.scales == [1]


def test_a_crop_larger_than_the_image_is_refused():
  with pytest.raises(ValueError, match='resize_px to 40 or more'):
    crops.center_crop(Coded(50, 50), resize_px=32, crop_px=40)
