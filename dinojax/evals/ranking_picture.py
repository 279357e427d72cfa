"""Rows of a ranking: a query, then what was ranked first, right or wrong."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image
from PIL import ImageDraw
from PIL import ImageFont

from dinojax.core import errors
from dinojax.data import crops
from dinojax.data import images as images_lib
from dinojax.data import record as record_lib

QUERIES, FIRST = 8, 8  # rows of a picture, and answers of each
_TILE_PX, _FRAME_PX, _CAPTION_PX, _GAP_PX = 104, 4, 18, 10
_RIGHT, _WRONG, _LEFT_OUT = (30, 140, 60), (200, 50, 40), (150, 150, 150)
_INK, _PAPER = (40, 40, 40), (250, 250, 248)


class Answer(NamedTuple):
  """An image of a ranking: its place in the source, and how it was ranked."""

  place: int
  is_right: bool
  cosine: float


def chosen(count: int) -> list[int]:
  """Numbers of the queries that are shown, evenly over `count` of them."""
  return sorted(set(np.linspace(0, count - 1, min(QUERIES, count)).astype(
      int).tolist()))


def draw(source: record_lib.Source, rows: Sequence[tuple[int, Sequence[
    Answer]]]) -> np.ndarray:
  """[y, x, 3] uint8: queries on the left, answers in the order of cosine.

  Args:
    source: images of queries and answers.
    rows: place of a query in the source, and its answers; a green frame and
      '+' are right, a red frame and '-' are wrong.
  """
  step = _TILE_PX + _GAP_PX
  columns = 1 + max((len(answers) for _, answers in rows), default=0)
  page = Image.new('RGB', (
      columns * step + 2 * _GAP_PX,
      len(rows) * (step + _CAPTION_PX) + _CAPTION_PX + _GAP_PX), _PAPER)
  pen, font = ImageDraw.Draw(page), ImageFont.load_default(12)
  pen.text((_GAP_PX, 4), 'query', _INK, font)
  pen.text((step + 2 * _GAP_PX, 4), 'ranked first; + right, - wrong, with the '
           'cosine', _INK, font)
  for y, (query, answers) in enumerate(rows):
    top = _CAPTION_PX + _GAP_PX // 2 + y * (step + _CAPTION_PX)
    page.paste(_tile(source, query, _LEFT_OUT), (_GAP_PX, top))
    for x, answer in enumerate(answers):
      left = (x + 1) * step + 2 * _GAP_PX
      colour = _RIGHT if answer.is_right else _WRONG
      page.paste(_tile(source, answer.place, colour), (left, top))
      pen.text((left, top + _TILE_PX + 2),
               f'{"+" if answer.is_right else "-"} {answer.cosine:.3f}',
               colour, font)
  return np.asarray(page)


def _tile(source: record_lib.Source, place: int,
          colour: tuple[int, int, int]) -> Image.Image:
  """An image in a frame; the frame alone where it cannot be read."""
  tile = Image.new('RGB', (_TILE_PX, _TILE_PX), colour)
  side = _TILE_PX - 2 * _FRAME_PX
  inner = Image.new('RGB', (side, side), _PAPER)
  try:
    image = images_lib.open_image(source[place].image)
    scale = side / max(image.size)
    size = tuple(max(round(n * scale), 1) for n in image.size)
    small = Image.fromarray(crops.Geometry(
        (0, 0, *image.size), size).of_image(image.decode()))
    inner.paste(small, ((side - size[0]) // 2, (side - size[1]) // 2))
  except (images_lib.BadImage, OSError, errors.UserError):
    pass
  tile.paste(inner, (_FRAME_PX, _FRAME_PX))
  return tile
