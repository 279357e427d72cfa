"""One geometry moves pixels, labels and boxes to the same places."""

import dataclasses

import numpy as np
from PIL import Image
import pytest

from dinojax.data import crops
from dinojax.data import geometry

SIZE = (160, 120)


def scene(boxes):
  """Rectangles of their own colour and label on black."""
  pixels = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
  labels = np.zeros((SIZE[1], SIZE[0]), np.int32)
  for i, (left, top, right, bottom) in enumerate(boxes, 1):
    pixels[top:bottom, left:right] = 80 * i
    labels[top:bottom, left:right] = i
  return Image.fromarray(pixels), labels


def geometries():
  rng = np.random.default_rng(0)
  spec = crops.Crops(global_px=64, local_px=48, num_local=4, gram_px=96)
  drawn = [cut for _ in range(8)
           for group in crops.draw(SIZE, rng, spec).values() for cut in group]
  center = crops.center(SIZE, resize_px=90, crop_px=64)
  whole = geometry.Geometry((0, 0, *SIZE), (320, 240))
  flipped = [dataclasses.replace(cut, flip=True) for cut in (center, whole)]
  return [*drawn, center, whole, *flipped]


def extent(mask):
  rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
  return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


@pytest.mark.parametrize('cut', geometries())
def test_pixels_labels_and_boxes_agree(cut):
  boxes = [(10, 20, 70, 90), (80, 40, 150, 110)]
  picture, labels = scene(boxes)
  pixels, moved = cut.of_image(picture), cut.of_labels(labels)
  places, share = cut.of_boxes(np.array(boxes))
  width, height = cut.out_size
  assert pixels.shape == (height, width, 3) and moved.shape == (height, width)
  # Bicubic edges are soft for about a pixel of the larger of both grids.
  soft = 2 + max(np.array(cut.size) / (
      cut.box[2] - cut.box[0], cut.box[3] - cut.box[1]))
  for i, (place, left) in enumerate(zip(places, share, strict=True), 1):
    seen = (moved == i)
    assert seen.any() == (left > 0) or place[2] - place[0] < 1 or (
        place[3] - place[1] < 1)
    if not seen.any():
      continue
    assert np.abs(extent(seen) - place).max() <= 1
    y, x = np.mgrid[:height, :width]
    inner = ((x > place[0] + soft) & (x < place[2] - soft)
             & (y > place[1] + soft) & (y < place[3] - soft))
    assert (np.abs(pixels[inner].astype(int) - 80 * i) <= 8).all()
    assert (moved[inner] == i).all()
    np.testing.assert_allclose(
        np.prod(place[2:] - place[:2]) / left,
        np.prod(np.subtract(boxes[i - 1][2:], boxes[i - 1][:2]))
        * np.prod(np.array(cut.size) / (cut.box[2] - cut.box[0],
                                        cut.box[3] - cut.box[1])))


def test_boxes_that_leave_the_image_have_no_share():
  cut = geometry.Geometry((10, 10, 20, 20), (100, 100), flip=True)
  places, share = cut.of_boxes([
      (0, 0, 5, 5), (15, 15, 15, 18), (12, 12, 14, 14), (5, 10, 15, 20)])
  assert share.tolist() == [0, 0, 1, 0.5]
  np.testing.assert_allclose(places[2:], [[60, 20, 80, 40], [50, 0, 100, 100]])
  assert cut.of_boxes(np.zeros((0, 4)))[0].shape == (0, 4)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.int32, np.int64])
def test_labels_keep_their_numbers_and_type(dtype):
  labels = np.arange(48).reshape(6, 8).astype(dtype) * 5
  whole = geometry.Geometry((0, 0, 8, 6), (16, 12)).of_labels(labels)
  assert whole.dtype == dtype
  np.testing.assert_array_equal(whole[::2, ::2], labels)
  np.testing.assert_array_equal(whole[1::2, 1::2], labels)
