"""Boxes that a map proposes, one for every cell of four maps made of it.

The maps have cells of half, once, twice and four times the side of a patch. A
cell proposes a square around its centre, the larger the coarser its map, which
a network moves; the best by its score are where queries begin.

Source: DINOv3's detector, which is Plain-DETR's two-stage form.
Differs: cells of the map beyond the image are 0 before coarser maps are made,
  so that no cell of the image takes in what happens to be there.
"""

from collections.abc import Sequence
import dataclasses

from einops import rearrange
import jax
import jax.numpy as jnp
import numpy as np

from dinojax.core import tree
from dinojax.models import layers
from dinojax.models.dense import parts
from dinojax.models.dense import queries as queries_lib

Array = jax.Array
NUM_LEVELS = 4
EPSILON, NORM_EPSILON = 1e-5, 1e-6
_LEAST, _MOST = 0.01, 0.99  # of the image, that a proposal's numbers lie in
_FAR = 1e9  # logit of the whole image


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes of proposals.

  Attributes:
    hidden: width of the map.
    patch_px: side of a cell of the map, in pixels.
    box_px: side of a proposal of the finest map, in pixels; of the next ones
      twice as much each.
    box_part: the same in parts of the image, where boxes are such.
    in_pixels: True: boxes are pixels.
  """

  hidden: int
  patch_px: int = 16
  box_px: float = 50.0
  box_part: float = 0.05
  in_pixels: bool = True


@dataclasses.dataclass(frozen=True)
class Rows:
  """Cells of all maps in one list, the finest map first.

  Attributes:
    states: [b, r, d], 0 where no box is proposed.
    boxes: [b, r, 4].
  """

  states: Array
  boxes: Array


jax.tree_util.register_dataclass(
    Rows, data_fields=('states', 'boxes'), meta_fields=())


def init(key: Array, config: Config) -> tree.Tree:
  """Random parameters, by Xavier's rule."""
  width, keys = config.hidden, iter(jax.random.split(key, 6))
  norm = lambda: queries_lib.norm_init(width)
  halved = lambda: parts.xavier(next(keys), (2, 2, width, width))
  grow = parts.xavier(next(keys), (2, 2, width, width))
  return {'grow': grow | {'kernel': grow['kernel'].transpose(2, 0, 1, 3)},
          'half': halved(), 'quarter': {
              '0': halved(), 'norm': norm(), '1': halved()},
          'output': parts.xavier(next(keys), (width, width)), 'norm': norm()}


def apply(params: tree.Tree, config: Config, memory: Array,
          cells: Array) -> Rows:
  """Proposals of a map.

  Args:
    params: see `init`.
    config: sizes.
    memory: [b, y, x, d].
    cells: [b, 2] rows and columns that are image.
  """
  grid = memory.shape[1:3]
  inside = _inside([cells[:, 0], cells[:, 1]], grid)
  maps = _maps(params, jnp.where(inside[..., None], memory, 0.0))
  states, boxes = [], []
  for level, x in enumerate(maps):
    valid = [_valid(cells[:, axis], grid[axis], x.shape[1 + axis])
             for axis in (0, 1)]
    box, proposed = _boxes(config, level, x.shape[1:3], valid, cells)
    proposed &= _inside(valid, x.shape[1:3])
    far = _FAR if not config.in_pixels else float(
        max(maps[0].shape[1:3]) * config.patch_px / 2)
    boxes.append(_flat(jnp.where(proposed[..., None], box, far)))
    states.append(_flat(jnp.where(proposed[..., None], x, 0.0)))
  joined = parts.linear(params['output'], jnp.concatenate(states, axis=1))
  return Rows(queries_lib.normed(params['norm'], joined, EPSILON),
              jnp.concatenate(boxes, axis=1))


def count(grid: tuple[int, int]) -> int:
  """Proposals of a map of some rows and columns."""
  rows, columns = grid
  return sum(y * x for y, x in (
      (2 * rows, 2 * columns), grid, (rows // 2, columns // 2),
      (rows // 2 // 2, columns // 2 // 2)))


def waves(boxes: Array, width: int) -> Array:
  """[b, n, 4·width] sines and cosines of the four numbers of boxes.

  Args:
    boxes: [b, n, 4].
    width: values of a number, sines and cosines in turn.

  Source: Plain-DETR, which takes pixels for parts of the image here.
  """
  period = 10_000 ** (2 * (np.arange(width) // 2) / width)
  angle = (boxes * (2 * np.pi))[..., None] / jnp.asarray(
      period, jnp.float32)[None, None, None]
  even = jnp.asarray(np.arange(width) % 2 == 0)[None, None, None]
  out = jnp.where(even, jnp.sin(angle), jnp.cos(angle))
  return rearrange(out, 'b n k d -> b n (k d)')


def _maps(params: tree.Tree, x: Array) -> list[Array]:
  """Maps with cells of half, once, twice and four times the side."""
  coarse = _halved(params['quarter']['0'], x)
  coarse = layers.gelu(queries_lib.normed(
      params['quarter']['norm'], coarse, NORM_EPSILON))
  return [parts.grown(params['grow'], x), x, _halved(params['half'], x),
          _halved(params['quarter']['1'], coarse)]


def _halved(params: tree.Tree, x: Array) -> Array:
  """[b, y / 2, x / 2, d]: squares of four cells become one each."""
  rows, columns = (n // 2 * 2 for n in x.shape[1:3])
  squares = rearrange(x[:, :rows, :columns], 'b (y k) x c -> b y k x c', k=2)
  squares = rearrange(squares, 'b y k (x l) c -> b y k x l c', l=2)
  return jnp.einsum('bykxlc,klco->byxo', squares, params['kernel'],
                    precision='highest') + params['bias'][None, None, None]


def _boxes(config: Config, level: int, grid: tuple[int, int],
           valid: Sequence[Array], cells: Array) -> tuple[Array, Array]:
  """[b, y, x, 4] boxes of the cells of a map, and [b, y, x] which count.

  Args:
    config: sizes.
    level: number of the map, from the finest.
    grid: its rows and columns.
    valid: [b] rows and columns of it that are image.
    cells: [b, 2] those of the map that it is made of.
  """
  side = config.patch_px / 2 * 2**level
  centers = []
  for axis, size in enumerate(grid):
    place = (jnp.arange(size, dtype=jnp.float32) + 0.5)[None]
    centers.append(place * side if config.in_pixels else place / jnp.maximum(
        valid[axis], 1)[:, None].astype(jnp.float32))
  shape = (len(cells), *grid)
  y, x = (jnp.broadcast_to(each, shape) for each in (
      centers[0][:, :, None], centers[1][:, None]))
  length = (config.box_px if config.in_pixels else config.box_part) * 2**level
  box = jnp.stack([x, y, jnp.full_like(x, length), jnp.full_like(x, length)],
                  axis=-1)
  extent = cells[:, ::-1].astype(jnp.float32) * config.patch_px if (
      config.in_pixels) else jnp.ones((len(cells), 2))
  share = box / jnp.concatenate([extent, extent], axis=-1)[:, None, None]
  counts = jnp.all((share > _LEAST) & (share < _MOST), axis=-1)
  if config.in_pixels:
    return box, counts
  return jnp.log(box / (1 - box)), counts


def _valid(cells: Array, size: int, out: int) -> Array:
  """[b] cells of a resized side that are image, each by its first pixel's."""
  scale = np.float32(size) / np.float32(max(out, 1))
  first = np.floor(np.arange(out, dtype=np.float32) * scale)
  return jnp.sum(jnp.asarray(first)[None] < cells[:, None], axis=1)


def _inside(cells: Sequence[Array], grid: tuple[int, int]) -> Array:
  """[b, y, x] bool: cells that are image."""
  rows, columns = (jnp.arange(n)[None] < each[:, None]
                   for n, each in zip(grid, cells, strict=True))
  return rows[:, :, None] & columns[:, None]


def _flat(x: Array) -> Array:
  return rearrange(x, 'b y x d -> b (y x) d')
