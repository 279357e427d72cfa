"""Images as a frozen backbone gets them: opened, resized, cut."""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
import functools
import os
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from dinojax.core import errors
from dinojax.core import paths
from dinojax.data import crops
from dinojax.data import images as images_lib

# One image: a path, an encoded file, pixels in Pillow or as [y, x, c] uint8.
ImageLike = str | os.PathLike | bytes | Image.Image | np.ndarray
_LARGER = 1.5  # times the size of learned positions, and it is said


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """Sizes of an image before it enters a backbone.

  Attributes:
    resize_px: length of the short side after resizing, bicubic.
    crop_px: side of the square cut from the centre; None: the whole image, in
      whole patches.
  """

  resize_px: int = 256
  crop_px: int | None = 224

  @property
  def shape(self) -> tuple[int, int] | None:
    """(y, x) of every image, in pixels; None: they differ in size."""
    return None if self.crop_px is None else (self.crop_px, self.crop_px)

  def check(self, config: Any):
    """Refuses sizes that a backbone cannot take.

    Raises:
      UserError: crops that are no whole patches, or larger than the image.
    """
    crop, unit = self.crop_px, config.side_px
    if crop is not None and (crop < unit or crop % unit):
      near = sorted({max(crop // unit, 1) * unit, (crop // unit + 1) * unit})
      raise errors.UserError(
          f'--crop_px={crop} is not whole patches of {unit} pixels: set it to '
          f'{" or ".join(map(str, near))}')
    if crop is not None and crop > self.resize_px:
      raise errors.UserError(
          f'--crop_px={crop} is larger than --resize_px={self.resize_px}: '
          f'set --resize_px={crop} or more')

  def prepare(self, config: Any) -> Callable[[images_lib.Image], np.ndarray]:
    """An opened image to [y, x, c] uint8, for worker processes too."""
    if self.crop_px is None:
      return functools.partial(
          crops.whole, short_px=self.resize_px, patch_px=config.side_px)
    return functools.partial(
        crops.center_crop, resize_px=self.resize_px, crop_px=self.crop_px)

  def max_patches(self, config: Any) -> int:
    """The most patches that an image has."""
    if self.crop_px is None:
      return crops.max_patches(self.resize_px, config.side_px)
    return (self.crop_px // config.side_px) ** 2

  def remarks(self, config: Any) -> Iterator[str]:
    """Sentences on sizes that are not what they seem."""
    unit = config.side_px
    if self.crop_px is None and self.resize_px % unit:
      short, _ = crops.whole_size((1, 1), short_px=self.resize_px,
                                  patch_px=unit)
      yield (f'--resize_px={self.resize_px} is rounded to {short}, whole '
             f'patches of {unit}')
    learned = config.learned_px  # other models do not tell the size of theirs
    if self.crop_px and learned and self.crop_px >= _LARGER * learned:
      near = max(learned // unit, 1) * unit
      resized = round(near * Preprocessing.resize_px / Preprocessing.crop_px)
      yield (f'crops of {self.crop_px} pixels, and the positions were learned '
             f'at {learned}: --crop_px={near} --resize_px={resized} is the '
             'size of training')


@dataclasses.dataclass(frozen=True)
class Exact:
  """Whole images resized to one size, whatever their aspect, bicubically.

  Attributes:
    shape: (y, x) in pixels.
  """

  shape: tuple[int, int]

  def prepare(self, config: Any) -> Callable[[images_lib.Image], np.ndarray]:
    """An opened image to [y, x, c] uint8, for worker processes too."""
    del config
    return functools.partial(_resized, size=self.shape[::-1])


def _resized(image: images_lib.Image, size: tuple[int, int]) -> np.ndarray:
  return crops.Geometry((0, 0, *image.size), size).of_image(image.decode())


def centers(images: ImageLike | Iterable[ImageLike], *, resize_px: int,
            crop_px: int, value_range: tuple[float, ...]) -> np.ndarray:
  """[b, crop_px, crop_px, c] uint8 centres of images of any kind.

  Args:
    images: one image, or several.
    resize_px: length of the short side before the crop.
    crop_px: side of the crop.
    value_range: black and white of deep greys, see data.images.

  Raises:
    UserError: an image that cannot be read, or is no image; none at all.
  """
  if not 1 <= crop_px <= resize_px:
    raise errors.UserError(
        f'crop_px={crop_px} is not within resize_px={resize_px}: images are '
        'first resized, then cut; set resize_px to crop_px or more')
  pixels = [_center(image, f'image {i}', resize_px, crop_px, value_range)
            for i, image in enumerate(_several(images))]
  if not pixels:
    raise errors.UserError('no images are given: preprocess takes one or '
                           'more')
  return np.stack(pixels)


def _several(images) -> Iterable:
  """The images, where there may be one alone."""
  if isinstance(images, str | os.PathLike | bytes | Image.Image):
    return [images]
  if hasattr(images, 'ndim'):
    images = np.asarray(images)
    return images if images.ndim == 4 else [images]
  if not isinstance(images, Iterable):
    raise errors.UserError(f'{type(images).__name__} is no image and no list '
                           'of images: give paths, Pillow images or arrays')
  return images


def _center(image, name: str, resize_px: int, crop_px: int,
            value_range: tuple[float, ...]) -> np.ndarray:
  """The centre of one image, [y, x, 3] uint8."""
  if isinstance(image, str | os.PathLike):
    name = os.fspath(image)
  try:
    return crops.center_crop(
        _opened(image, value_range), resize_px=resize_px, crop_px=crop_px)
  except (images_lib.BadImage, OSError, ValueError) as error:
    if isinstance(error, errors.UserError):
      raise errors.UserError(f'{name}: {error}') from error
    raise errors.UserError(f'{name} cannot be read: {error}') from error


def _opened(image, value_range: tuple[float, ...]) -> images_lib.Image:
  if isinstance(image, Image.Image):
    return images_lib.Image(image, value_range)
  if isinstance(image, bytes):
    return images_lib.open_image(image, value_range=value_range)
  if isinstance(image, str | os.PathLike):
    return images_lib.open_image(
        pathlib.Path(paths.expand(image)).read_bytes(),
        value_range=value_range)
  pixels = np.asarray(image)
  if pixels.dtype != np.uint8 or not pixels.size or not (
      pixels.ndim == 2 or pixels.ndim == 3 and pixels.shape[2] in (1, 3, 4)):
    raise errors.UserError(
        f'an array of {pixels.dtype} and shape {pixels.shape} is no image: '
        'give pixels as uint8 from 0 to 255, [y, x, 3]')
  return images_lib.Image(Image.fromarray(
      pixels[..., 0] if pixels.shape[2:] == (1,) else pixels))
