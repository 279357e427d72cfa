"""Pictures of what protocols without training give: for people to look at."""

from collections.abc import Sequence

import numpy as np
from PIL import Image
from PIL import ImageDraw

_RIGHT, _WRONG, _OURS, _TRUE = (
    (60, 200, 90), (225, 60, 60), (255, 170, 40), (60, 200, 90))
_GAP = 8
# Objects of a video, in turn.
_COLOURS = np.array([
    (230, 60, 60), (60, 150, 240), (60, 200, 90), (250, 190, 40),
    (170, 90, 220), (60, 210, 210), (250, 130, 60), (240, 110, 180)], float)
_PAPER = (250, 250, 248)


def matches(source: Image.Image, target: Image.Image, places: np.ndarray,
            matched: np.ndarray, is_right: np.ndarray,
            height: int = 320) -> np.ndarray:
  """Lines from places to those that were matched: right green, wrong red.

  Args:
    source: an image.
    target: the other.
    places: [r, 2] (x, y) in the source.
    matched: [r, 2] places in the target.
    is_right: [r] bool.
    height: height of the picture.

  Returns:
    [y, x, 3] uint8.
  """
  factors = [height / picture.height for picture in (source, target)]
  small = [picture.resize((max(round(picture.width * f), 1), height))
           for picture, f in zip((source, target), factors, strict=True)]
  offset = small[0].width + _GAP
  sheet = Image.new('RGB', (offset + small[1].width, height), _PAPER)
  sheet.paste(small[0], (0, 0))
  sheet.paste(small[1], (offset, 0))
  draw = ImageDraw.Draw(sheet)
  # Wrong ones first, so that right ones are seen.
  for i in np.argsort(is_right, kind='stable'):
    ink = _RIGHT if is_right[i] else _WRONG
    ends = (places[i] * factors[0],
            matched[i] * factors[1] + np.array([offset, 0]))
    draw.line([tuple(end) for end in ends], fill=ink, width=1)
    for x, y in ends:
      draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=ink,
                   outline=(255, 255, 255))
  return np.asarray(sheet)


def boxes(picture: Image.Image, ours: np.ndarray, truth: np.ndarray,
          mask: np.ndarray | None = None, height: int = 320) -> np.ndarray:
  """An image with true boxes in green and ours in orange.

  Args:
    picture: the image.
    ours: [4] corners of a box in its pixels.
    truth: [n, 4] true boxes.
    mask: [y, x] bool, what is not in it is dimmed; None: nothing is.
    height: height of the picture.
  """
  factor = height / picture.height
  size = (max(round(picture.width * factor), 1), height)
  small = np.asarray(picture.resize(size), np.float64)
  if mask is not None:
    large = np.asarray(Image.fromarray(mask).resize(
        size, Image.Resampling.NEAREST))
    small = np.where(large[..., None], small, 0.45 * small)
  sheet = Image.fromarray(small.astype(np.uint8))
  draw = ImageDraw.Draw(sheet)
  for box, ink in ((*((each, _TRUE) for each in truth), (ours, _OURS))):
    left, top, right, bottom = np.asarray(box) * factor
    draw.rectangle((left, top, max(right - 1, left), max(bottom - 1, top)),
                   outline=ink, width=3)
  return np.asarray(sheet)


def overlay(picture: Image.Image, labels: np.ndarray,
            height: int = 180) -> np.ndarray:
  """An image with its objects in colours and an edge around each.

  Args:
    picture: the image.
    labels: [y, x] numbers of objects, 0: none.
    height: height of the picture.
  """
  size = (max(round(picture.width * height / picture.height), 1), height)
  small = np.asarray(picture.resize(size), np.float64)
  ids = np.asarray(Image.fromarray(labels.astype(np.int32)).resize(
      size, Image.Resampling.NEAREST))
  colours = _COLOURS[(ids - 1) % len(_COLOURS)]
  edge = np.zeros(ids.shape, bool)
  edge[:, 1:] |= ids[:, 1:] != ids[:, :-1]
  edge[1:] |= ids[1:] != ids[:-1]
  out = np.where((ids > 0)[..., None], 0.5 * small + 0.5 * colours, small)
  out[edge] = 255
  return out.astype(np.uint8)


def grid(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
  """Pictures in rows and columns, with gaps; those of a row are as high."""
  heights = [max(p.shape[0] for p in row) for row in rows]
  widths = [sum(p.shape[1] + _GAP for p in row) - _GAP for row in rows]
  sheet = np.empty((sum(heights) + _GAP * (len(rows) - 1), max(widths), 3),
                   np.uint8)
  sheet[:] = _PAPER
  y = 0
  for row, height in zip(rows, heights, strict=True):
    x = 0
    for picture in row:
      sheet[y:y + picture.shape[0], x:x + picture.shape[1]] = picture
      x += picture.shape[1] + _GAP
    y += height + _GAP
  return sheet
