"""Images brought to a square, their sides in proportion."""

import dataclasses

import numpy as np
from PIL import Image


@dataclasses.dataclass(frozen=True)
class Letterbox:
  """A square whose top left part holds an image.

  Attributes:
    size: (width, height) of the image.
    side: side of the square, in pixels.
  """

  size: tuple[int, int]
  side: int

  @property
  def inner(self) -> tuple[int, int]:
    """(width, height) of the part that holds the image."""
    factor = self.side / max(self.size)
    return tuple(min(max(round(n * factor), 1), self.side)
                 for n in self.size)

  @property
  def scale(self) -> np.ndarray:
    """[2] pixels of the square for one of the image, along x and y."""
    return np.array(self.inner) / np.array(self.size)

  def pixels(self, picture: Image.Image, mean: tuple[float, ...],
             resample: Image.Resampling = Image.Resampling.BICUBIC
             ) -> np.ndarray:
    """[side, side, 3] uint8; around the image is the mean of training."""
    out = np.empty((self.side, self.side, 3), np.uint8)
    out[:] = np.round(255 * np.array(mean)).astype(np.uint8)
    width, height = self.inner
    out[:height, :width] = np.asarray(
        picture.resize((width, height), resample))
    return out

  def holds(self, places: np.ndarray) -> np.ndarray:
    """[…] bool: places […, 2] of the square that are in the image."""
    return np.all((places >= 0) & (places < np.array(self.inner)), axis=-1)
