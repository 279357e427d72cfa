"""Arrays of a compiled program as they lie in memory."""

import dataclasses
import math
import re

HBM, HOST = 0, 5  # memory spaces, as layouts number them
_ARRAY = re.compile(r'\b(pred|token|[a-z]+\d+[a-z\d]*)\[([\d,]*)\]'
                    r'(?:\{([^{}]*)\})?')
_TILES = re.compile(r'T((?:\([\d,*]+\))+)')
_SPACE = re.compile(r'S\((\d+)\)')


@dataclasses.dataclass(frozen=True)
class Array:
  """An array and where it lies.

  Attributes:
    dtype: 'bf16', ….
    sizes: sizes of the dimensions.
    order: dimensions, the fastest varying first.
    tiles: sizes of the tiles, outermost first; () is untiled.
    space: HBM, HOST (which a program for CPUs calls 0, too), or on the chip.
  """

  dtype: str
  sizes: tuple[int, ...]
  order: tuple[int, ...] = ()
  tiles: tuple[tuple[int, ...], ...] = ()
  space: int = 0

  @property
  def elements(self) -> int:
    """Number of elements, without padding."""
    return math.prod(self.sizes)

  @property
  def num_bytes(self) -> float:
    """Bytes of the elements, without padding."""
    return self.elements * _element_bytes(self.dtype)

  @property
  def padded_bytes(self) -> float:
    """Bytes with the tiles filled up."""
    sizes = [self.sizes[i] for i in reversed(self.order)] or list(self.sizes)
    for tile in self.tiles:
      sizes = [1] * (len(tile) - len(sizes)) + sizes
      inner = sizes[len(sizes) - len(tile):]
      sizes[len(sizes) - len(tile):] = [
          -(-size // part) for size, part in zip(inner, tile, strict=True)]
      sizes += tile
    return math.prod(sizes) * _element_bytes(self.dtype)

  def bytes_in(self, space: int) -> float:
    """Bytes with the tiles filled up; 0 if it lies in another memory."""
    return self.padded_bytes if self.space == space else 0.0


def arrays(shape: str) -> list[Array]:
  """Parses a shape's text: one array, or all those of a tuple in order."""
  out = []
  for dtype, sizes, layout in _ARRAY.findall(shape):
    order, _, rest = layout.partition(':')
    tiles = _TILES.search(rest)
    space = _SPACE.search(rest)
    out.append(Array(
        dtype, _numbers(sizes), _numbers(order),
        tuple(_numbers(tile) for tile in re.findall(
            r'\(([\d,]+)\)', tiles.group(1))) if tiles else (),
        int(space.group(1)) if space else 0))
  return out


def _numbers(text: str) -> tuple[int, ...]:
  return tuple(int(n) for n in text.split(',') if n.isdigit())


def _element_bytes(dtype: str) -> float:
  if dtype in ('pred', 'token'):
    return 1.0 if dtype == 'pred' else 0.0
  return int(re.search(r'\d+', dtype).group()) / 8
