"""Encoded bytes to RGB pixels; whatever cannot be decoded is a BadImage."""

import io
import struct
import warnings
import zlib

import numpy as np
from PIL import Image as PilImage
from PIL import ImageOps

PilImage.init()  # registers all formats; FORMATS picks among them
# Raster formats only: no PostScript, no fonts, no video.
FORMATS = ('JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'PPM', 'JPEG2000',
           'TGA', 'ICO', 'AVIF')
DEFAULT_MAX_PIXELS = 178_956_970
_ORIENTATION = 0x0112
_SWAPS_AXES = (5, 6, 7, 8)
# What Pillow's decoders raise on damaged files.
_DECODER_ERRORS = (
    OSError, SyntaxError, ValueError, struct.error, zlib.error, EOFError,
    IndexError, KeyError, TypeError, AttributeError, OverflowError,
    MemoryError, NotImplementedError, PilImage.DecompressionBombError)

# `max_pixels` below replaces Pillow's own warning, which is not an error.
warnings.filterwarnings('ignore', category=PilImage.DecompressionBombWarning)
warnings.filterwarnings('ignore', module='PIL')


class BadImage(Exception):
  """An image that cannot be used, and why."""

  def __init__(self, reason: str):
    super().__init__(reason)
    self.reason = reason


class Image:
  """An image whose header is read and whose pixels are not yet decoded.

  Attributes:
    size: (width, height) after EXIF orientation.
  """

  def __init__(self, file: PilImage.Image):
    self._file = file
    # Pillow turns TIFF files by itself, size and pixels.
    self._turn = 1 if file.format == 'TIFF' else _orientation(file)
    width, height = file.size
    self.size = (
        (height, width) if self._turn in _SWAPS_AXES else (width, height))

  def decode(self, scale: int = 1) -> PilImage.Image:
    """RGB pixels, upright; the first frame of an animation.

    Args:
      scale: 1, 2, 4 or 8: how much smaller a JPEG may be decoded, which is
        cheaper; other formats ignore it.

    Raises:
      BadImage: truncated or damaged.
    """
    try:
      if scale > 1 and self._file.format in ('JPEG', 'MPO'):
        width, height = self._file.size
        self._file.draft(None, (width // scale, height // scale))
      self._file.load()
      image = ImageOps.exif_transpose(self._file) if (
          self._turn != 1) else self._file
      return _to_rgb(image)
    except _DECODER_ERRORS as error:
      raise BadImage(_reason(error)) from error


def open_image(data: bytes, *,
               max_pixels: int = DEFAULT_MAX_PIXELS) -> Image:
  """Reads the header of encoded image bytes.

  Args:
    data: a whole file, of one of FORMATS whatever its name says.
    max_pixels: larger images are refused before any decoding.

  Raises:
    BadImage: empty, not an image, or too large.
  """
  if not data:
    raise BadImage('empty file')
  try:
    file = PilImage.open(io.BytesIO(data), formats=FORMATS)
  except _DECODER_ERRORS as error:
    raise BadImage(_reason(error)) from error
  width, height = file.size
  if width * height > max_pixels:
    raise BadImage(
        f'{width} × {height} pixels are more than data.max_pixels='
        f'{max_pixels}')
  if min(width, height) < 1:
    raise BadImage(f'{width} × {height} pixels')
  # Only now: the orientation of a PNG may lie behind its pixels.
  return Image(file)


def _orientation(file: PilImage.Image) -> int:
  """The EXIF orientation, 1 when absent or nonsense."""
  try:
    turn = file.getexif().get(_ORIENTATION, 1)
  except _DECODER_ERRORS:
    return 1  # damaged metadata does not spoil the pixels
  return turn if turn in range(1, 9) else 1


def _reason(error: Exception) -> str:
  text = (str(error).splitlines() or [''])[0]
  if 'cannot identify image' in text:
    return 'not an image of a known format'
  if 'truncated' in text:
    return 'truncated'
  return f'{type(error).__name__}: {text}'


def _to_rgb(image: PilImage.Image) -> PilImage.Image:
  """Any mode as RGB: transparency on white, deep greys scaled to 8 bits."""
  if image.mode == 'RGB' and 'transparency' not in image.info:
    return image
  if image.mode in ('I', 'F') or image.mode.startswith('I;16'):
    return _deep_grey(image)
  if image.mode in ('RGBA', 'LA', 'PA', 'La', 'RGBa') or (
      'transparency' in image.info):
    image = image.convert('RGBA')
    white = PilImage.new('RGBA', image.size, 'white')
    return PilImage.alpha_composite(white, image).convert('RGB')
  return image.convert('RGB')


def _deep_grey(image: PilImage.Image) -> PilImage.Image:
  """16-bit, 32-bit and float greys; the range is that of the type."""
  values = np.asarray(image).astype(np.float64)
  values = np.nan_to_num(values)
  if image.mode == 'F':
    top = 1.0 if values.max(initial=0) <= 1 else 255.0
  else:
    top = 65535.0
  values = np.clip(values * (255.0 / top), 0, 255)
  grey = PilImage.fromarray(np.round(values).astype(np.uint8), 'L')
  return grey.convert('RGB')
