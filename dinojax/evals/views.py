"""Views of an image that are averaged: sizes, ratios, mirror images."""

import dataclasses
import math

import numpy as np
from PIL import Image

from dinojax.data import geometry
from dinojax.evals import windows as windows_lib
from dinojax.evals.sets import dense as sets

Size = tuple[int, int]  # rows and columns


@dataclasses.dataclass(frozen=True)
class Views:
  """Views of an image that are averaged.

  Attributes:
    windows: windows of each.
    short_px: length of the short side at a ratio of 1; None: as it is.
    size: rows and columns of every image instead; None: its own.
    shapes: rows and columns, of which every image gets those that are nearest
      to its form; (): its own.
    ratios: factors of the sides.
    flips: True adds the mirrored views.
    softmax: True averages the softmax of the scores of classes.
    direct: True: a map is resized from patches at once, else by the pixels of
      the view.
  """

  windows: windows_lib.Windows
  short_px: int | None = None
  size: Size | None = None
  shapes: tuple[Size, ...] = ()
  ratios: tuple[float, ...] = (1.0,)
  flips: bool = False
  softmax: bool = True
  direct: bool = False

  @property
  def kinds(self) -> list[tuple[float, bool]]:
    """Ratio, and whether it is mirrored, of each view."""
    return [(ratio, flip) for ratio in self.ratios
            for flip in ((False, True) if self.flips else (False,))]

  def sizes(self, image: Size) -> list[Size]:
    """Rows and columns of each view of an image."""
    if self.shapes:
      form = lambda size: math.log(size[0] / size[1])
      image = min(self.shapes, key=lambda size: abs(form(size) - form(image)))
    return [windows_lib.view_size(self.size or image, self.short_px, ratio)
            for ratio, _ in self.kinds]

  def counts(self, image: Size) -> dict[Size, int]:
    """Number of windows of an image, by shape."""
    out: dict[Size, int] = {}
    for size in self.sizes(image):
      shape = self.windows.shape(size)
      tops, lefts = self.windows.starts(size)
      out[shape] = out.get(shape, 0) + len(tops) * len(lefts)
    return out

  def cut(self, picture: Image.Image) -> list[np.ndarray]:
    """[r, y, x, c] uint8 windows of each view."""
    out = []
    for (_, flip), (rows, columns) in zip(
        self.kinds, self.sizes(picture.size[::-1]), strict=True):
      view = geometry.Geometry(
          (0, 0, *picture.size), (columns, rows), flip=flip)
      out.append(self.windows.cut(view.of_image(
          picture, resample=Image.Resampling.BILINEAR)))
    return out


@dataclasses.dataclass(frozen=True)
class Prepare:
  """Makes an item ready: its windows, its map and its size."""

  views: Views

  def __call__(self, pair: sets.Pair) -> dict:
    picture, truth = pair.decoded()
    return {'size': picture.size[::-1], 'truth': truth,
            'windows': self.views.cut(picture)}
