"""Encoded bytes to RGB pixels; whatever cannot be decoded is a BadImage.

Greys of more than 8 bits have a range that becomes black to white: 0 to 65535
for integers, 0 to 1 for floats, or what `data.value_range` says. It is never
taken from an image itself, so that all images of a data set are alike; values
outside it are clipped, and NaN is black.
"""

from collections.abc import Sequence
import ctypes
import io
import logging
import threading
import warnings

import numpy as np
from PIL import Image as PilImage

from dinojax.core import errors
from dinojax.core import text

PilImage.init()  # registers all formats; FORMATS picks among them
# Raster formats only: no PostScript, no fonts, no video.
FORMATS = ('JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'PPM', 'JPEG2000',
           'TGA', 'ICO', 'AVIF', 'DIB')
DEFAULT_MAX_PIXELS = 178_956_970
_ORIENTATION = 0x0112
_TURNS = {  # EXIF orientation: what makes it upright
    2: PilImage.Transpose.FLIP_LEFT_RIGHT, 3: PilImage.Transpose.ROTATE_180,
    4: PilImage.Transpose.FLIP_TOP_BOTTOM, 5: PilImage.Transpose.TRANSPOSE,
    6: PilImage.Transpose.ROTATE_270, 7: PilImage.Transpose.TRANSVERSE,
    8: PilImage.Transpose.ROTATE_90}
_SWAPS_AXES = (5, 6, 7, 8)
_TILE_SIDES = (322, 323)  # TIFF tags
_STRIP_PIXELS = 2**18
# Bytes a pixel in memory, as measured: what `max_pixels` pays for, and what
# Pillow keeps of a mode (4 for the others).
_PAID = 8
_MODE_BYTES = {'1': 1, 'L': 1, 'P': 1, 'I;16': 2, 'I;16B': 2, 'I;16L': 2}
_limit_lock = threading.Lock()

# `max_pixels` below replaces Pillow's own warning, which is not an error.
warnings.filterwarnings('ignore', category=PilImage.DecompressionBombWarning)
warnings.filterwarnings('ignore', module='PIL')
# What Pillow also logs it raises, and that is told with the image's name.
logging.getLogger('PIL').setLevel(logging.CRITICAL)


def _silence_libtiff():
  """Keeps libtiff from writing a line on stderr for every damaged row.

  The reason that Pillow raises is kept. Builds of Pillow that hide the
  library's symbols, and those without it, go on as they are.
  """
  try:
    library = ctypes.CDLL(PilImage.core.__file__)
    handlers = library.TIFFSetErrorHandler, library.TIFFSetWarningHandler
  except (OSError, AttributeError):
    return
  for handler in handlers:
    handler.restype, handler.argtypes = ctypes.c_void_p, (ctypes.c_void_p,)
    handler(None)


_silence_libtiff()


class BadImage(Exception):
  """An image that cannot be used, and why."""

  def __init__(self, reason: str):
    super().__init__(reason)
    self.reason = reason


class Image:
  """An image whose header is read and whose pixels are not yet decoded.

  Attributes:
    size: (width, height) after EXIF orientation.
    mime: kind of the file by its content, 'image/jpeg'.
  """

  def __init__(self, file: PilImage.Image,
               value_range: Sequence[float] = ()):
    self._file, self._range = file, value_range
    self.mime = PilImage.MIME.get(file.format, '')
    # Pillow turns TIFF files by itself, size and pixels.
    self._turn = 1 if file.format == 'TIFF' else _orientation(file)
    width, height = _size(file)
    self.size = (
        (height, width) if self._turn in _SWAPS_AXES else (width, height))

  def decode(self, scale: int = 1) -> PilImage.Image:
    """RGB pixels, upright; the first frame of an animation.

    Args:
      scale: 1, 2, 4 or 8: how much smaller a JPEG may be decoded, which is
        cheaper; other formats ignore it.

    Raises:
      BadImage: truncated or damaged.
      UserError: there is no memory for an image of this size.
    """
    with Decoding(self.bytes_needed):
      if scale > 1 and self._file.format in ('JPEG', 'MPO'):
        width, height = self._file.size
        self._file.draft(None, (width // scale, height // scale))
      self._file.load()
      image = self._file
      if self._turn != 1:
        image = image.transpose(_TURNS[self._turn])
      if scale == 1 and image.size != self.size:
        raise BadImage('its header says {} × {} pixels, and it has {} × {}'
                       .format(*self.size, *image.size))
      return _to_rgb(image, self._range)

  @property
  def bytes_needed(self) -> int:
    """Memory that decoding takes at its peak, about."""
    return _num_pixels(self._file) * _bytes_per_pixel(
        self._file, turned=self._turn != 1)


def open_image(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS,
               value_range: Sequence[float] = ()) -> Image:
  """Reads the header of encoded image bytes.

  Args:
    data: a whole file, of one of FORMATS whatever its name says.
    max_pixels: larger images are refused before any decoding, by this limit
      alone. It pays for 8 bytes a pixel; where decoding takes more, fewer
      pixels are allowed.
    value_range: (black, white) of greys of more than 8 bits, in the units of
      the file; (): see the top of this file.

  Raises:
    BadImage: empty, not an image, or too large.
  """
  if not data:
    raise BadImage('empty file')
  _raise_limit_of_pillow(max_pixels)
  with Decoding(len(data)):
    file = PilImage.open(io.BytesIO(data), formats=FORMATS)
    _check_size(file, max_pixels)
    # Only now: the orientation of a PNG may lie behind its pixels.
    image = Image(file, value_range)
    _check_cost(image.size, image.bytes_needed, max_pixels)
    return image


class Decoding:
  """Whatever a decoder raises is the fault of the file: a BadImage.

  A list of errors is never complete. A stop by the user is no Exception and
  passes. MemoryError has two causes: a damaged file that claims a huge part,
  which is a bad image, and a process that has no memory left. Then images
  would be replaced at random, so it ends with a sentence.
  """

  def __init__(self, bytes_needed: int):
    self._bytes_needed = bytes_needed

  def __enter__(self):
    return self

  def __exit__(self, kind, error, _):
    if isinstance(error, MemoryError) and not _can_have(self._bytes_needed):
      raise errors.UserError(
          f'there is no memory for an image that takes '
          f'{self._bytes_needed / 2**20:.0f} MiB to decode: lower '
          'data.num_threads, data.num_workers or data.max_pixels') from error
    if isinstance(error, Exception) and not isinstance(error, BadImage):
      raise BadImage(_reason(error)) from error


def _can_have(num_bytes: int) -> bool:
  try:
    bytearray(num_bytes)
  except MemoryError:
    return False
  return True


def _raise_limit_of_pillow(max_pixels: int):
  """Lets our limit alone decide: Pillow's is one for the whole process.

  It is only ever raised, so that threads with different limits of ours do not
  meet; those are checked here.
  """
  with _limit_lock:
    limit = PilImage.MAX_IMAGE_PIXELS
    if limit is not None and limit < max_pixels:
      PilImage.MAX_IMAGE_PIXELS = max_pixels


def _check_size(file: PilImage.Image, max_pixels: int):
  size = _size(file)
  if min(size) < 1:
    raise BadImage(f'{size[0]} × {size[1]} pixels')
  needed = _num_pixels(file) * _bytes_per_pixel(file, turned=False)
  _check_cost(size, needed, max_pixels)


def _check_cost(size: tuple[int, int], needed: int, max_pixels: int):
  pixels = max(size[0] * size[1], -(-needed // _PAID))
  if pixels <= max_pixels:
    return
  much = ('' if pixels == size[0] * size[1] else
          f', {needed / 2**20:.0f} MiB while they are decoded,')
  raise BadImage(
      f'{size[0]} × {size[1]} pixels{much} are more than data.max_pixels='
      f'{max_pixels}: raise it to {pixels} to use them')


def _size(file: PilImage.Image) -> tuple[int, int]:
  """(width, height) as stored; the picture in an icon has its own header."""
  if file.format == 'ICO':
    return file.ico.frame(file.ico.getentryindex(file.size)).size
  return file.size


def _num_pixels(file: PilImage.Image) -> int:
  """Pixels that the decoder meets: a tile may be larger than its image."""
  width, height = _size(file)
  if file.format == 'TIFF':
    sides = [file.tag_v2.get(tag, 1) for tag in _TILE_SIDES]
    return max(width * height, sides[0] * sides[1])
  return width * height


def _bytes_per_pixel(file: PilImage.Image, *, turned: bool) -> int:
  """Memory of the decoder, the file's pixels, a turned copy, and RGB."""
  if file.format == 'TIFF':
    turned = file.tag_v2.get(_ORIENTATION, 1) != 1
  pixel_bytes = _MODE_BYTES.get(file.mode, 4)
  needed = pixel_bytes * (2 if turned else 1)
  if file.mode != 'RGB' or 'transparency' in file.info:
    needed += 4
  if file.format == 'WEBP':  # keeps its canvases, and hands over a copy
    return max(needed + 8, pixel_bytes + 12)
  if file.format == 'AVIF':  # keeps a frame
    return needed + 5
  if file.format == 'JPEG2000':  # 32 bits for each component
    return max(needed, pixel_bytes + 4 * (len(file.getbands()) + 1))
  return needed


def _orientation(file: PilImage.Image) -> int:
  """The EXIF orientation, 1 when absent or nonsense."""
  try:
    turn = file.getexif().get(_ORIENTATION, 1)
  except Exception:  # whatever it is: damaged metadata spoils no pixels
    return 1
  return turn if turn in _TURNS else 1


def _reason(error: Exception) -> str:
  line = text.printable((str(error).splitlines() or [''])[0])
  if 'cannot identify image' in line:
    return 'not an image of a known format'
  if 'truncated' in line:
    return 'truncated'
  return f'{type(error).__name__}: {line}'


def _to_rgb(image: PilImage.Image,
            value_range: Sequence[float]) -> PilImage.Image:
  """Any mode as RGB: transparency on white, deep greys scaled to 8 bits."""
  if image.mode in ('I', 'F') or image.mode.startswith('I;16'):
    black, white = value_range or (
        (0.0, 1.0) if image.mode == 'F' else (0.0, 65535.0))
    return _in_strips(image, lambda strip: _deep_grey(strip, black, white))
  if 'transparency' in image.info or image.mode in (
      'RGBA', 'LA', 'PA', 'La', 'RGBa'):
    return _in_strips(image, _on_white)
  return image if image.mode == 'RGB' else image.convert('RGB')


def _in_strips(image: PilImage.Image, convert) -> PilImage.Image:
  """Converts a few rows at a time: copies stay small."""
  out = PilImage.new('RGB', image.size)
  rows = max(_STRIP_PIXELS // image.width, 1)
  for top in range(0, image.height, rows):
    strip = image.crop(
        (0, top, image.width, min(top + rows, image.height)))
    out.paste(convert(strip), (0, top))
  return out


def _on_white(strip: PilImage.Image) -> PilImage.Image:
  strip = strip.convert('RGBA')
  white = PilImage.new('RGBA', strip.size, 'white')
  return PilImage.alpha_composite(white, strip).convert('RGB')


def _deep_grey(strip: PilImage.Image, black: float,
               white: float) -> PilImage.Image:
  """16-bit, 32-bit and float greys."""
  # float32 holds every 16-bit number; differences may overflow to infinity.
  with np.errstate(all='ignore'):
    values = np.asarray(strip).astype(np.float32) - np.float32(black)
    values = values * np.float32(255 / (white - black))
  values = np.nan_to_num(np.clip(values, 0, 255), nan=0.0)
  return PilImage.fromarray(np.rint(values).astype(np.uint8)).convert('RGB')
