"""Where an image is cut and how it is resized: a value, drawn once.

The same geometry is applied to an image, its label map and its boxes, so that
they agree whatever was drawn. Lengths are pixels, x to the right and y down.
"""

import dataclasses

import numpy as np
from PIL import Image

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclasses.dataclass(frozen=True)
class Geometry:
  """A rectangle of an image, resized, of which a part may be kept.

  Attributes:
    box: the rectangle, in pixels of the image.
    size: (width, height) that it is resized to.
    window: the part of the resized rectangle that is kept; None: all of it.
    flip: mirrors what is kept, left and right.
    turn: degrees by which the image is turned before, against the clock;
      corners that come from outside are 0.
  """

  box: Box
  size: tuple[int, int]
  window: tuple[int, int, int, int] | None = None
  flip: bool = False
  turn: float = 0.0

  @property
  def out_size(self) -> tuple[int, int]:
    """(width, height) of what is kept."""
    if self.window is None:
      return self.size
    left, top, right, bottom = self.window
    return right - left, bottom - top

  def of_image(self, pixels: Image.Image,
               size: tuple[int, int] | None = None,
               resample: Image.Resampling = Image.Resampling.BICUBIC
               ) -> np.ndarray:
    """The image as [y, x, c] uint8.

    Args:
      pixels: decoded, perhaps at a whole fraction of its size.
      size: (width, height) of the image that `box` is a part of; None: that
        of `pixels`.
      resample: how it is resized, with antialias.
    """
    return np.asarray(self._apply(pixels, size or pixels.size, resample))

  def of_labels(self, labels: np.ndarray) -> np.ndarray:
    """A map [y, x] of labels or depths, each pixel the nearest one's."""
    kind = np.float32 if labels.dtype.kind == 'f' else np.int32
    picture = Image.fromarray(labels.astype(kind))
    out = self._apply(picture, picture.size, Image.Resampling.NEAREST)
    return np.asarray(out).astype(labels.dtype)

  def of_boxes(self, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [n, 4] (left, top, right, bottom) after the same changes.

    Returns:
      [n, 4] float64, cut off at the borders, and [n] the share of each box's
      area that is still there; 0 for boxes outside and for those without
      area, which lie at the border.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    scale = np.array(self.size) / (
        self.box[2] - self.box[0], self.box[3] - self.box[1])
    corner = np.array(self.window[:2] if self.window else (0, 0))
    moved = (boxes.reshape(-1, 2, 2) - self.box[:2]) * scale - corner
    inside = np.clip(moved, 0, self.out_size)
    area = lambda corners: np.prod(
        np.maximum(corners[:, 1] - corners[:, 0], 0), axis=1)
    whole, left = area(moved), area(inside)
    share = np.divide(left, whole, out=np.zeros(len(whole)), where=whole > 0)
    if self.flip:
      x = self.out_size[0] - inside[:, ::-1, 0]
      inside = np.stack([x, inside[:, :, 1]], axis=-1)
    return inside.reshape(-1, 4), share

  def _apply(self, pixels: Image.Image, size: tuple[int, int],
             resample: Image.Resampling) -> Image.Image:
    # Whole numbers: a reduced JPEG rounds its size up, so the ratio of the
    # sizes is a little off, and would move the box.
    shrink = round(size[0] / pixels.size[0])
    if self.turn:
      pixels = pixels.rotate(self.turn, resample)
    out = pixels.resize(
        self.size, resample, box=tuple(edge / shrink for edge in self.box))
    if self.window is not None:
      out = out.crop(self.window)
    if self.flip:  # ten times as fast here as on the array
      out = out.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return out
