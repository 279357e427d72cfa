"""Crops of an image: where to cut, one decode, one resize each, uint8.

What is drawn is a `Geometry`; pixels, label maps and boxes get the same one.
"""

import dataclasses
import math

import numpy as np

from dinojax.core import fields
from dinojax.data import geometry
from dinojax.data import images

Geometry = geometry.Geometry
_TRIES = 10
# A reduced JPEG keeps this many pixels for each one of a crop, as Pillow's
# own thumbnails do: the crops then differ by about a grey level.
_MARGIN = 2
# Whole images longer than this keep fewer rows instead of growing.
MAX_ASPECT = 4


@dataclasses.dataclass(frozen=True)
class Crops:
  """Global and local crops of an image; scales are fractions of its area."""

  global_px: fields.Positive = 224  # Side of a global crop, in pixels.
  # Least and greatest area of a global crop, as parts of the image.
  global_scale: tuple[fields.Part, fields.Part] = (0.32, 1.0)
  num_global: fields.Positive = 2  # Global crops of an image, 2 or more.
  local_px: fields.Positive = 96  # Side of a local crop, in pixels.
  # Least and greatest area of a local crop, as parts of the image.
  local_scale: tuple[fields.Part, fields.Part] = (0.05, 0.32)
  num_local: fields.Natural = 8  # Local crops of an image.
  # Least and greatest width over height of what is cut out.
  ratio: tuple[fields.Above0, fields.Above0] = (3 / 4, 4 / 3)
  flip_probability: fields.Unit = 0.5  # Probability of a horizontal flip.
  # Side of the Gram teacher's view of a global crop; None: global_px.
  gram_px: fields.Positive | None = None
  # Sizes of which every step draws one instead of the three above:
  # (global_px, local_px, gram_px or None, probability) each.
  sizes: tuple[tuple[fields.Positive, fields.Positive,
                     fields.Positive | None, fields.Unit], ...] = ()

  def of_size(self, index: int) -> 'Crops':
    """The crops of the steps that draw a size."""
    if not self.sizes:
      return self
    global_px, local_px, gram_px, _ = self.sizes[index]
    return dataclasses.replace(
        self, global_px=global_px, local_px=local_px, gram_px=gram_px,
        sizes=())


def random_box(size: tuple[int, int], scale: tuple[float, float],
               ratio: tuple[float, float], rng: np.random.Generator
               ) -> tuple[int, int, int, int]:
  """A random rectangle of an image, as RandomResizedCrop draws it.

  Args:
    size: (width, height) of the image.
    scale: range of the area, as a fraction.
    ratio: range of width over height, drawn log-uniformly.
    rng: randomness.

  Returns (left, top, right, bottom); after ten misses the largest centred
  rectangle within the ratio.

  Source: torchvision's RandomResizedCrop.
  """
  width, height = size
  for _ in range(_TRIES):
    area = width * height * rng.uniform(*scale)
    aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
    w = round(math.sqrt(area * aspect))
    h = round(math.sqrt(area / aspect))
    if 0 < w <= width and 0 < h <= height:
      top = int(rng.integers(0, height - h + 1))
      left = int(rng.integers(0, width - w + 1))
      return left, top, left + w, top + h
  aspect = min(max(width / height, ratio[0]), ratio[1])
  w = width if width / height <= aspect else max(round(height * aspect), 1)
  h = height if width / height >= aspect else max(round(width / aspect), 1)
  left, top = (width - w) // 2, (height - h) // 2
  return left, top, left + w, top + h


def draw(size: tuple[int, int], rng: np.random.Generator,
         spec: Crops) -> dict[str, list[Geometry]]:
  """Random crops of an image of a size, by kind: global, local and gram.

  Args:
    size: (width, height) of the image.
    rng: randomness.
    spec: how many, how large. There are local ones if it has any, and gram,
      the global ones at gram_px, when that is set.
  """
  groups = [('global', spec.num_global, spec.global_scale, spec.global_px),
            ('local', spec.num_local, spec.local_scale, spec.local_px)]
  cuts = {
      kind: [_random(size, scale, side, rng, spec) for _ in range(count)]
      for kind, count, scale, side in groups if count}
  if spec.gram_px is not None:
    cuts['gram'] = [dataclasses.replace(cut, size=(spec.gram_px,) * 2)
                    for cut in cuts['global']]
  return cuts


def _random(size: tuple[int, int], scale: tuple[float, float], side: int,
            rng: np.random.Generator, spec: Crops) -> Geometry:
  box = random_box(size, scale, spec.ratio, rng)
  return Geometry(box, (side, side),
                  flip=bool(rng.random() < spec.flip_probability))


def multi_crop(image: images.Image, rng: np.random.Generator,
               spec: Crops) -> dict[str, np.ndarray]:
  """Random crops of one image: [v, y, x, c] uint8 by kind, see `draw`.

  All rectangles are drawn from the header and with `rng` alone, so that a
  JPEG is decoded once, no larger than the crops need.

  Raises:
    images.BadImage: the pixels cannot be decoded.

  Differs: the reference cuts, then resizes; in one call the filter also sees
  the pixels around a crop, which changes its outermost two pixels.
  """
  cuts = draw(image.size, rng, spec)
  pixels = image.decode(reduction(
      [cut for group in cuts.values() for cut in group]))
  return {kind: np.stack([cut.of_image(pixels, image.size) for cut in group])
          for kind, group in cuts.items()}


def reduction(cuts: list[Geometry]) -> int:
  """The largest JPEG reduction that leaves every crop enough pixels.

  Every crop keeps `_MARGIN` source pixels for each of its own.
  """
  room = min(min((cut.box[2] - cut.box[0]) / cut.size[0],
                 (cut.box[3] - cut.box[1]) / cut.size[1])
             for cut in cuts) / _MARGIN
  return max(s for s in (1, 2, 4, 8) if s <= max(room, 1))


def center(size: tuple[int, int], *, resize_px: int,
           crop_px: int) -> Geometry:
  """The short side to `resize_px`, then the centre.

  Args:
    size: (width, height) of the image.
    resize_px: length of the short side after resizing.
    crop_px: side of the square that is kept.

  Raises:
    ValueError: the crop is larger than the resized image.
    images.BadImage: the image is so long and thin that resizing would not fit
      in memory.

  Source: torchvision's Resize (bicubic, antialias) and CenterCrop.
  """
  if crop_px > resize_px:
    raise ValueError(
        f'crop_px={crop_px} is larger than resize_px={resize_px}: set '
        f'resize_px to {crop_px} or more')
  width, height = size
  if width <= height:
    new = (resize_px, int(resize_px * height / width))
  else:
    new = (int(resize_px * width / height), resize_px)
  if new[0] * new[1] > images.DEFAULT_MAX_PIXELS:
    raise images.BadImage(
        f'{width} × {height} pixels would become {new[0]} × {new[1]}')
  left, top = (round((n - crop_px) / 2) for n in new)
  return Geometry((0, 0, *size), new,
                  window=(left, top, left + crop_px, top + crop_px))


def center_crop(image: images.Image, *, resize_px: int = 256,
                crop_px: int = 224) -> np.ndarray:
  """The pixels of `center`; [y, x, c] uint8.

  Decoded in full: evaluation reads the pixels that published numbers read.

  Raises:
    ValueError: see `center`.
    images.BadImage: see `center`; or the pixels cannot be decoded.
  """
  cut = center(image.size, resize_px=resize_px, crop_px=crop_px)
  pixels = image.decode()
  with images.Decoding(8 * cut.size[0] * cut.size[1]):  # a sentence, no crash
    return cut.of_image(pixels)


def whole_size(size: tuple[int, int], *, short_px: int,
               patch_px: int) -> tuple[int, int]:
  """Size of a whole image that is resized to whole patches.

  Args:
    size: (width, height) of the image.
    short_px: length of the short side in pixels, rounded to patches.
    patch_px: side of a patch, in pixels.

  Returns:
    (width, height) in pixels. The long side is at most MAX_ASPECT times
    the rounded `short_px`: longer images get a shorter short side, so that
    the number of sizes is bounded.
  """
  short, long = sorted(size)
  rows = max(round(short_px / patch_px), 1)
  columns = round(rows * long / short)
  if columns > MAX_ASPECT * rows:
    columns = MAX_ASPECT * rows
    rows = max(round(columns * short / long), 1)
  width, height = ((rows, columns) if size[0] <= size[1]
                   else (columns, rows))
  return width * patch_px, height * patch_px


def max_patches(short_px: int, patch_px: int) -> int:
  """The most patches that an image of `whole_size` has."""
  return MAX_ASPECT * max(round(short_px / patch_px), 1) ** 2


def whole(image: images.Image, *, short_px: int, patch_px: int) -> np.ndarray:
  """The whole image at `whole_size`; [y, x, c] uint8.

  Raises:
    images.BadImage: the pixels cannot be decoded.
  """
  size = whole_size(image.size, short_px=short_px, patch_px=patch_px)
  return Geometry((0, 0, *image.size), size).of_image(image.decode())
