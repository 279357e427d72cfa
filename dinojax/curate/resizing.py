"""Sizes at which a descriptor sees images, and images of one size together."""

from collections.abc import Iterator, Sequence
import re

import numpy as np
from PIL import Image

from dinojax.core import errors


class Resize:
  """Size at which a descriptor sees an image: `short:288` or `square:320`."""

  def __init__(self, text: str):
    """Reads the words of a config.

    Raises:
      UserError: neither of the two forms.
    """
    match = re.fullmatch(r'(short|square):(\d{1,5})', text)
    if not match or not int(match[2]):
      raise errors.UserError(
          f'resize={text!r} is not understood: give short:288 (the shorter '
          'side, in pixels) or square:320 (both sides)')
    self.text, self._square = text, match[1] == 'square'
    self._px = int(match[2])

  def size(self, width: int, height: int) -> tuple[int, int]:
    """Width and height to which an image of a size is resized."""
    if self._square:
      return self._px, self._px
    short = min(width, height)
    return (max(width * self._px // short, 1),
            max(height * self._px // short, 1))

  def __call__(self, pixels: np.ndarray) -> np.ndarray:
    """[y, x, 3] uint8 of an image [y, x, 3] uint8, by area where it shrinks."""
    picture = Image.fromarray(pixels)
    return np.asarray(picture.resize(
        self.size(*picture.size), Image.Resampling.BILINEAR))


def batches(shapes: Sequence[tuple], size: int) -> Iterator[list[int]]:
  """Indices of images of one shape, at most so many at a time."""
  by_shape: dict[tuple, list[int]] = {}
  for i, shape in enumerate(shapes):
    by_shape.setdefault(shape, []).append(i)
  for index in by_shape.values():
    for start in range(0, len(index), size):
      yield index[start:start + size]
