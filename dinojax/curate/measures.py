"""Measures of an image, taken when it is decoded, once for all stages."""

import hashlib
from typing import NamedTuple

import numpy as np

from dinojax.curate import pca_hash
from dinojax.data import images

SIDE = 32  # areas along each edge of a thumbnail
_NONE = bytes(32)


class Seen(NamedTuple):
  """An image, or why it cannot be read.

  Attributes:
    sha256: sum of the encoded bytes.
    pixels_sha256: sum of the size and the decoded pixels: the same picture in
      another file, where nothing was lost.
    width, height: pixels, upright.
    mime: kind of the file, by its content.
    deviation: standard deviation of the thumbnail, in grey levels.
    entropy: entropy of the grey levels, in bits: 0 of one colour, 8 at most.
    alive: True where it can be read.
    reason: why it cannot; ''.
  """

  sha256: bytes = _NONE
  pixels_sha256: bytes = _NONE
  width: int = 0
  height: int = 0
  mime: str = ''
  deviation: float = 0.0
  entropy: float = 0.0
  alive: bool = True
  reason: str = ''


def look(data: bytes, max_pixels: int) -> tuple[Seen, np.ndarray]:
  """Decodes an image and measures it.

  Args:
    data: encoded bytes.
    max_pixels: larger ones are not decoded.

  Returns:
    The measures, and a thumbnail [SIDE, SIDE] in grey levels.

  Raises:
    BadImage: it cannot be read.
  """
  image = images.open_image(data, max_pixels=max_pixels)
  picture = image.decode()
  pixels = np.asarray(picture)
  thumbnail = pca_hash.thumbnail(pixels, SIDE)
  height, width, _ = pixels.shape
  whole = hashlib.sha256(f'{width} {height} '.encode())
  whole.update(pixels.data if pixels.flags.c_contiguous else pixels.tobytes())
  share = np.array(picture.convert('L').histogram()) / (width * height)
  share = share[share > 0]
  return Seen(
      hashlib.sha256(data).digest(), whole.digest(), width, height,
      image.mime, float(thumbnail.std()),
      float(-(share * np.log2(share)).sum()) + 0.0), thumbnail


def unreadable(reason: str) -> tuple[Seen, np.ndarray]:
  """Measures of an image that is none."""
  return Seen(alive=False, reason=reason), np.zeros((SIDE, SIDE))
