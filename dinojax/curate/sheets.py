"""Contact sheets: rows of images with a line under each."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from PIL import Image
from PIL import ImageDraw
from PIL import ImageFont
from PIL import ImageOps

from dinojax.core import errors
from dinojax.core import text
from dinojax.data import images as images_lib

_TILE_PX, _CAPTION_PX, _GAP_PX = 104, 18, 10
_INK, _PAPER, _EMPTY = (40, 40, 40), (250, 250, 248), (225, 222, 216)
_LETTERS = 17  # under a tile


class Tile(NamedTuple):
  """An image of a sheet.

  Attributes:
    read: gives its encoded bytes.
    caption: line under it, which is cut where it is too long.
    colour: colour of the line.
  """

  read: Callable[[], bytes]
  caption: str = ''
  colour: tuple[int, int, int] = _INK


def draw(rows: Sequence[tuple[str, Sequence[Tile]]]) -> Image.Image:
  """A sheet of rows, each with a title over it ('' for none)."""
  step, line = _TILE_PX + _GAP_PX, _TILE_PX + 2 * _CAPTION_PX + _GAP_PX // 2
  columns = max((len(tiles) for _, tiles in rows), default=1)
  page = Image.new('RGB', (columns * step + _GAP_PX,
                           max(len(rows), 1) * line + _GAP_PX), _PAPER)
  pen, font = ImageDraw.Draw(page), ImageFont.load_default(12)
  for y, (title, tiles) in enumerate(rows):
    top = y * line + 4
    pen.text((_GAP_PX, top), _ascii(title, 16 * columns), _INK, font)
    for x, tile in enumerate(tiles):
      left = x * step + _GAP_PX
      page.paste(_small(tile), (left, top + _CAPTION_PX))
      pen.text((left, top + _CAPTION_PX + _TILE_PX + 2),
               _ascii(tile.caption, _LETTERS), tile.colour, font)
  return page


def _small(tile: Tile) -> Image.Image:
  """An image on a square; an empty one where it cannot be read."""
  out = Image.new('RGB', (_TILE_PX, _TILE_PX), _EMPTY)
  try:
    picture = images_lib.open_image(tile.read()).decode()
  except (images_lib.BadImage, OSError, errors.UserError):
    return out
  picture = ImageOps.contain(picture, (_TILE_PX, _TILE_PX))
  out.paste(picture, ((_TILE_PX - picture.width) // 2,
                      (_TILE_PX - picture.height) // 2))
  return out


def _ascii(line: str, letters: int) -> str:
  """A line that the built-in font can draw, cut to a length."""
  line = text.printable(line).encode('ascii', 'replace').decode()
  return line if len(line) <= letters else f'{line[:letters - 2]}..'
