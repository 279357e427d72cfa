"""Multi-crop geometry on the host: where to cut, one resize each, uint8."""

import dataclasses
import math

import numpy as np
from PIL import Image as PilImage

from dinojax.core import fields
from dinojax.data import images

Box = tuple[float, float, float, float]  # left, top, right, bottom; pixels
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


@dataclasses.dataclass(frozen=True)
class _Cut:
  box: tuple[int, int, int, int]
  size_px: int
  flip: bool


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


def multi_crop(image: images.Image, rng: np.random.Generator,
               spec: Crops) -> dict[str, np.ndarray]:
  """Random crops of one image.

  All rectangles are drawn from the header and with `rng` alone, so that a
  JPEG is decoded once, no larger than the crops need. Returns global
  [v, y, x, c] uint8, and likewise local, when there are any, and gram, the
  global crops at gram_px, when that is set.

  Raises:
    images.BadImage: the pixels cannot be decoded.

  Differs: the reference cuts, then resizes; in one call the filter also sees
  the pixels around a crop, which changes its outermost two pixels.
  """
  groups = [('global', spec.num_global, spec.global_scale, spec.global_px),
            ('local', spec.num_local, spec.local_scale, spec.local_px)]
  cuts = {
      kind: [_Cut(random_box(image.size, scale, spec.ratio, rng), size_px,
                  bool(rng.random() < spec.flip_probability))
             for _ in range(count)]
      for kind, count, scale, size_px in groups if count}
  if spec.gram_px is not None:
    cuts['gram'] = [
        dataclasses.replace(cut, size_px=spec.gram_px)
        for cut in cuts['global']]
  every = [cut for group in cuts.values() for cut in group]
  pixels = image.decode(reduction(every))
  return {kind: np.stack([_cut(pixels, image.size, cut) for cut in group])
          for kind, group in cuts.items()}


def reduction(cuts: list[_Cut]) -> int:
  """The largest JPEG reduction that leaves every crop enough pixels.

  Every crop keeps `_MARGIN` source pixels for each of its own.
  """
  room = min(min(cut.box[2] - cut.box[0], cut.box[3] - cut.box[1])
             / cut.size_px for cut in cuts) / _MARGIN
  return max(s for s in (1, 2, 4, 8) if s <= max(room, 1))


def _cut(pixels: PilImage.Image, size: tuple[int, int],
         cut: _Cut) -> np.ndarray:
  """Crop and resize in one call; [y, x, c] uint8."""
  # Whole numbers: a reduced JPEG rounds its size up, so the ratio of the
  # sizes is a little off, and would move the box.
  shrink = round(size[0] / pixels.size[0])
  out = pixels.resize(
      (cut.size_px, cut.size_px), PilImage.Resampling.BICUBIC,
      box=tuple(edge / shrink for edge in cut.box))
  if cut.flip:  # ten times as fast here as on the array
    out = out.transpose(PilImage.Transpose.FLIP_LEFT_RIGHT)
  return np.asarray(out)


def center_crop(image: images.Image, *, resize_px: int = 256,
                crop_px: int = 224) -> np.ndarray:
  """The short side to `resize_px`, then the centre; [y, x, c] uint8.

  Decoded in full: evaluation reads the pixels that published numbers read.

  Raises:
    ValueError: the crop is larger than the resized image.
    images.BadImage: the pixels cannot be decoded, or so long and thin that
      resizing would not fit in memory.

  Source: torchvision's Resize (bicubic, antialias) and CenterCrop.
  """
  if crop_px > resize_px:
    raise ValueError(
        f'crop_px={crop_px} is larger than resize_px={resize_px}: set '
        f'resize_px to {crop_px} or more')
  width, height = image.size
  if width <= height:
    new = (resize_px, int(resize_px * height / width))
  else:
    new = (int(resize_px * width / height), resize_px)
  if new[0] * new[1] > images.DEFAULT_MAX_PIXELS:
    raise images.BadImage(
        f'{width} × {height} pixels would become {new[0]} × {new[1]}')
  pixels = image.decode()
  with images.Decoding(8 * new[0] * new[1]):  # no memory: a sentence
    pixels = pixels.resize(new, PilImage.Resampling.BICUBIC)
  left, top = (round((n - crop_px) / 2) for n in new)
  return np.asarray(pixels.crop(
      (left, top, left + crop_px, top + crop_px)))


def whole_size(size: tuple[int, int], *, short_px: int,
               patch_px: int) -> tuple[int, int]:
  """Pixels of an image resized as a whole, in whole patches.

  Args:
    size: (width, height) of the image.
    short_px: of the short side, rounded to patches.
    patch_px: of a patch.

  Returns:
    (width, height). Of images longer than MAX_ASPECT the long side is
    MAX_ASPECT times the short side of the others, so that the number of
    sizes is bounded.
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
  new = whole_size(image.size, short_px=short_px, patch_px=patch_px)
  return np.asarray(image.decode().resize(
      new, PilImage.Resampling.BICUBIC))
