"""Random crops of an image with its map, for training on every pixel.

What is drawn is a Geometry, which image and map share. Crops have one size:
beyond an image that is smaller lies nothing, and `extent` says where it ends.
"""

import dataclasses
from typing import Any

import numpy as np
from PIL import Image

from dinojax.data import geometry

Arrays = dict[str, np.ndarray]
_TRIES = 10
_BILINEAR = Image.Resampling.BILINEAR


@dataclasses.dataclass(frozen=True)
class Scaled:
  """A random scale, a crop that is no single class, a flip.

  Attributes:
    short_px: length of the short side at a scale of 1.
    scales: least and greatest scale.
    crop_px: side of the crop.
    most: largest share of a class among labelled pixels of a crop; crops that
      have more are drawn again, ten times.
    ignored: label of pixels that do not count, and of those beyond the image.

  Source: training of the segmentation heads of DINOv3 and DINOv2.
  """

  short_px: int
  scales: tuple[float, float]
  crop_px: int
  most: float
  ignored: int

  def __call__(self, picture: Image.Image, labels: np.ndarray,
               rng: np.random.Generator) -> Arrays:
    """image [y, x, c] uint8, classes [y, x] and extent [2]."""
    low, high = self.scales
    short = max(int(self.short_px * (low + (high - low) * rng.random())), 1)
    least = min(picture.size)
    size = tuple(short if n == least else int(short * n / least + 0.5)
                 for n in picture.size)
    whole = geometry.Geometry((0, 0, *picture.size), size)
    resized = whole.of_labels(labels)
    for _ in range(_TRIES + 1):
      window = corner(size, (self.crop_px,) * 2, rng)
      if self._is_mixed(cut(resized, window)):
        break
    kept = dataclasses.replace(
        whole, window=window, flip=bool(rng.random() < 0.5))
    return placed(kept.of_image(picture, resample=_BILINEAR),
                  kept.of_labels(labels), (self.crop_px,) * 2, 'classes',
                  self.ignored)

  def _is_mixed(self, labels: np.ndarray) -> bool:
    """Tells whether labels are of several classes, none of which is most."""
    counts = np.bincount(labels[labels != self.ignored])
    return np.count_nonzero(counts) > 1 and (
        counts.max() < self.most * counts.sum())


@dataclasses.dataclass(frozen=True)
class Turned:
  """A small turn, a flip, a crop.

  Attributes:
    crop_px: rows and columns of the crop.
    degrees: greatest turn, at even odds.
    flips: probability of a flip.
    short_px: length of the short side before; None: as it is.

  Source: training of the depth heads of DINOv2 and DINOv3.
  """

  crop_px: tuple[int, int]
  degrees: float = 2.5
  flips: float = 0.5
  short_px: int | None = None

  def __call__(self, picture: Image.Image, depth: np.ndarray,
               rng: np.random.Generator) -> Arrays:
    """image [y, x, c] uint8, depth [y, x], 0 where unknown, extent [2]."""
    turn = self.degrees * (2 * rng.random() - 1)
    turn = turn if rng.random() < 0.5 else 0.0
    size, least = picture.size, min(picture.size)
    if self.short_px is not None:
      size = tuple(self.short_px if n == least else
                   int(self.short_px * n / least + 0.5) for n in size)
    flip = bool(rng.random() < self.flips)
    rows, columns = self.crop_px
    kept = geometry.Geometry(
        (0, 0, *picture.size), size, flip=flip, turn=turn,
        window=corner(size, (columns, rows), rng))
    return placed(kept.of_image(picture, resample=_BILINEAR),
                  kept.of_labels(depth), self.crop_px, 'depth', 0)


@dataclasses.dataclass(frozen=True)
class Jittered:
  """A flip, a random scale, a crop of segments, of which some are there.

  Attributes:
    crop_px: side of the crop.
    scales: least and greatest scale; at 1 an image just fits into the crop.
    most: segments of a crop that are learned from, those of the largest areas.

  Source: training of EoMT.
  """

  crop_px: int
  scales: tuple[float, float]
  most: int

  def __call__(self, picture: Image.Image, segments: Any,
               rng: np.random.Generator) -> Arrays:
    """image [y, x, c] uint8, kinds [t], −1 of none, and masks [t, y, x / 8].

    Masks are packed, eight columns a byte, the first in the highest bit.
    Crops without a segment are drawn again, ten times.
    """
    for _ in range(_TRIES + 1):
      kept = self._drawn(picture.size, rng)
      layers = np.stack([kept.of_labels(x) for x in segments.layers])
      area = np.bincount(layers.ravel(), minlength=len(segments.kinds) + 1)[1:]
      area = np.where(segments.crowd, 0, area)
      if area.any():
        break
    chosen = np.argsort(-area, kind='stable')[:self.most]
    chosen = np.sort(chosen[area[chosen] > 0])
    masks = np.zeros((self.most, self.crop_px, -(-self.crop_px // 8)), np.uint8)
    kinds = np.full(self.most, -1, np.int32)
    kinds[:len(chosen)] = segments.kinds[chosen]
    rows, columns = layers.shape[1:]
    for i, number in enumerate(chosen):
      inside = np.zeros((rows, self.crop_px), bool)
      inside[:, :columns] = (layers == number + 1).any(0)
      masks[i, :rows] = np.packbits(inside, axis=1)
    image = np.zeros((self.crop_px, self.crop_px, 3), np.uint8)
    image[:rows, :columns] = kept.of_image(picture, resample=_BILINEAR)
    return {'image': image, 'kinds': kinds, 'masks': masks}

  def _drawn(self, size: tuple[int, int],
             rng: np.random.Generator) -> geometry.Geometry:
    """A geometry for an image of (width, height)."""
    low, high = self.scales
    flip = bool(rng.random() < 0.5)
    factor = (low + (high - low) * rng.random()) * self.crop_px / max(size)
    resized = tuple(max(int(n * factor), 1) for n in size)
    return geometry.Geometry(
        (0, 0, *size), resized, flip=flip,
        window=corner(resized, (self.crop_px,) * 2, rng))


@dataclasses.dataclass(frozen=True)
class Boxed:
  """A part of an image, a random scale, a flip, and the boxes that are left.

  Attributes:
    crop_px: side of the square that holds what is kept, at its top left.
    scales: least and greatest scale; at 1 what is kept just fits.
    part: least part of a side that is kept, in half of all images; in others
      all is.
    most: objects that are learned from, those of the largest areas.
    share: least part of its area that a box keeps, else it is left out.

  Source: training of Plain-DETR, whose images are 480 to 800 pixels high, and
    half of them were cut to 384 to 600 of 400 to 600 before.
  """

  crop_px: int
  scales: tuple[float, float]
  part: float
  most: int
  share: float = 0.1

  def __call__(self, picture: Image.Image, objects: Any,
               rng: np.random.Generator) -> Arrays:
    """image [y, x, c] uint8, extent [2], kinds [t], −1 of none, boxes [t, 4].

    Parts without an object are drawn again, ten times, if there is any.
    """
    counts = ~np.asarray(objects.crowd)
    for _ in range(_TRIES + 1):
      kept = self._drawn(picture.size, rng)
      boxes, share = kept.of_boxes(objects.boxes)
      stays = counts & (share >= self.share)
      if stays.any() or not counts.any():
        break
    area = np.where(stays, np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), 0)
    chosen = np.sort(np.argsort(-area, kind='stable')[:self.most])
    chosen = chosen[area[chosen] > 0]
    kinds = np.full(self.most, -1, np.int32)
    kinds[:len(chosen)] = objects.kinds[chosen]
    # Those of none are a whole pixel, which no logarithm minds.
    places = np.tile(np.float32([0, 0, 1, 1]), (self.most, 1))
    places[:len(chosen)] = boxes[chosen]
    image = np.zeros((self.crop_px, self.crop_px, 3), np.uint8)
    columns, rows = kept.out_size
    image[:rows, :columns] = kept.of_image(picture, resample=_BILINEAR)
    return {'image': image, 'extent': np.array((rows, columns), np.int32),
            'kinds': kinds, 'boxes': places}

  def _drawn(self, size: tuple[int, int],
             rng: np.random.Generator) -> geometry.Geometry:
    """A geometry for an image of (width, height)."""
    parts = rng.uniform(self.part, 1, 2) if rng.random() < 0.5 else (1, 1)
    lengths = [max(int(n * part), 1) for n, part in zip(
        size, parts, strict=True)]
    left, top = (int(rng.integers(n - length + 1))
                 for n, length in zip(size, lengths, strict=True))
    low, high = self.scales
    factor = rng.uniform(low, high) * self.crop_px / max(lengths)
    resized = tuple(min(max(round(n * factor), 1), self.crop_px)
                    for n in lengths)
    return geometry.Geometry(
        (left, top, left + lengths[0], top + lengths[1]), resized,
        flip=bool(rng.random() < 0.5))


def corner(size: tuple[int, int], crop: tuple[int, int],
           rng: np.random.Generator) -> tuple[int, int, int, int]:
  """A random window of (width, height), no larger than there is."""
  width, height = (min(n, m) for n, m in zip(size, crop, strict=True))
  left = int(rng.integers(size[0] - width + 1))
  top = int(rng.integers(size[1] - height + 1))
  return left, top, left + width, top + height


def cut(labels: np.ndarray, window: tuple[int, int, int, int]) -> np.ndarray:
  """The part of a map in a window."""
  left, top, right, bottom = window
  return labels[top:bottom, left:right]


def placed(image: np.ndarray, values: np.ndarray, size: tuple[int, int],
           name: str, empty: int) -> Arrays:
  """Image and map at the top left of arrays of a size.

  Args:
    image: [y, x, c] uint8.
    values: [y, x] map.
    size: rows and columns.
    name: entry of the map.
    empty: value of the map beyond the image.
  """
  rows, columns = image.shape[:2]
  pixels = np.zeros((*size, image.shape[2]), np.uint8)
  pixels[:rows, :columns] = image
  whole = np.full(size, empty, values.dtype)
  whole[:rows, :columns] = values
  return {'image': pixels, name: whole,
          'extent': np.array((rows, columns), np.int32)}
