"""Views of an image as windows, and their predictions as one map.

Everything from the patches of a window to the pixels of the result is linear
along each axis: patches to the window's pixels, windows summed and divided by
their number, the view resized. It is one matrix an axis, so that a map is two
products with the predictions of all windows side by side, in the order of the
windows: [rows of windows × patches, columns of windows × patches, k].
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.kernels import resample

_UNIT_PX = 32  # of sides of views that are smaller than the image
_BLOCK = 2**23  # values of a map that are made at a time


@dataclasses.dataclass(frozen=True)
class Windows:
  """Sliding windows.

  Attributes:
    crop_px: side of a window; None: the whole view is one.
    stride_px: from window to window; None: as few as cover the view, evenly.
  """

  crop_px: int | None = None
  stride_px: int | None = 1

  def shape(self, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of a window of a view of (rows, columns).

    Source: DINOv3: a view that is smaller along both axes has square windows
      of its short side.
    """
    if self.crop_px is None:
      return tuple(size)
    if max(size) < self.crop_px:
      return (min(size),) * 2
    return tuple(min(n, self.crop_px) for n in size)

  def starts(self, size: tuple[int, int]) -> tuple[list[int], list[int]]:
    """First rows and first columns of the windows of a view."""
    shape = self.shape(size)
    if self.stride_px is None:
      return tuple(even_starts(n, m) for n, m in zip(size, shape, strict=True))
    return tuple(starts(n, m, min(self.stride_px, m))
                 for n, m in zip(size, shape, strict=True))

  def cut(self, image: np.ndarray) -> np.ndarray:
    """[r, y, x, c] windows of [y, x, c], row by row."""
    rows, columns = self.shape(image.shape[:2])
    tops, lefts = self.starts(image.shape[:2])
    return np.stack([image[top:top + rows, left:left + columns]
                     for top in tops for left in lefts])


def starts(size: int, crop: int, stride: int) -> list[int]:
  """Starts of the windows along an axis; the last is moved inside."""
  count = max(size - crop + stride - 1, 0) // stride + 1
  return [max(min(i * stride, size - crop), 0) for i in range(count)]


def even_starts(size: int, crop: int) -> list[int]:
  """Starts of as few windows as cover an axis, evenly spread.

  Source: EoMT.
  """
  count = -(-size // crop)
  return [i * (size - crop) // max(count - 1, 1) for i in range(count)]


def view_size(size: tuple[int, int], short_px: int | None,
              ratio: float = 1.0) -> tuple[int, int]:
  """Rows and columns of a view of an image of (rows, columns).

  Args:
    size: the image's.
    short_px: length of the short side at a ratio of 1; None: as it is.
    ratio: factor of the sides.

  Source: DINOv3: at ratios below 1 the short side is raised to a multiple of
    32, and the long one follows from it.
  """
  least = min(size)
  short = int((short_px or least) * ratio)
  if ratio < 1:
    short = math.ceil(short / _UNIT_PX) * _UNIT_PX
  short = max(short, 1)
  return tuple(short if n == least else int(short * n / least + 0.5)
               for n in size)


def matrix(num_px: int, window_px: int, first: Sequence[int],
           to_window: np.ndarray, out_px: int,
           mirrored: bool = False) -> np.ndarray:
  """[out_px, windows × patches] of an axis, see the module.

  Args:
    num_px: pixels of the view.
    window_px: pixels of a window.
    first: starts of the windows.
    to_window: [window_px, patches] from patches to pixels of a window.
    out_px: pixels of the result.
    mirrored: True mirrors the result along this axis.
  """
  patches = to_window.shape[1]
  summed = np.zeros((num_px, len(first) * patches))
  count = np.zeros((num_px, 1))
  for i, start in enumerate(first):
    rows = slice(start, start + window_px)
    summed[rows, i * patches:(i + 1) * patches] += to_window
    count[rows] += 1
  out = summed / count
  if out_px != num_px:
    out = resample.linear_matrix(num_px, out_px) @ out
  return (out[::-1] if mirrored else out).astype(np.float32)


def side_by_side(values: np.ndarray, num_rows: int) -> np.ndarray:
  """[…, rows, columns, k] grid of the predictions of windows [r, …, y, x, k].

  Args:
    values: predictions of the windows, row by row.
    num_rows: rows of windows.
  """
  lines = values.reshape(num_rows, -1, *values.shape[1:])
  return np.concatenate([np.concatenate(list(line), axis=-2)
                         for line in lines], axis=-3)


@functools.partial(
    jax.jit, static_argnames=('num_rows', 'is_class', 'softmax'))
def assembled(views: Sequence[tuple], *, num_rows: int, is_class: bool,
              softmax: bool = False) -> jax.Array:
  """The map of several views: [y, x, k] means, or [y, x] classes.

  Args:
    views: (grid [i, j, k], rows [y, i], columns [x, j]) of each.
    num_rows: rows that are made at a time, a divisor of y.
    is_class: True gives the largest of the means.
    softmax: True averages the softmax of the views.
  """
  grids, rows, columns = zip(*views, strict=True)
  lines = tuple(x.reshape(-1, num_rows, x.shape[1]) for x in rows)

  def block(some):
    total = 0.0
    for grid, above, beside in zip(grids, some, columns, strict=True):
      values = resample.by_matrices(grid, above, beside)
      total += jax.nn.softmax(values) if softmax else values
    if is_class:
      return jnp.argmax(total, axis=-1).astype(jnp.int32)
    return total / len(grids)

  out = jax.lax.map(block, lines)
  return out.reshape(-1, *out.shape[2:])


def rows_at_once(num_rows: int, num_columns: int, depth: int) -> int:
  """Rows of a map that are made at a time, a divisor of all rows."""
  most = max(_BLOCK // max(num_columns * depth, 1), 1)
  return max(n for n in range(1, num_rows + 1)
             if num_rows % n == 0 and n <= most)


def slid(predict: Callable[[np.ndarray], jax.Array], image: np.ndarray,
         views: Windows, size: tuple[int, int], *,
         flip: bool = False) -> np.ndarray:
  """[rows, columns, k] prediction of one image by sliding windows.

  Args:
    predict: maps windows [r, y, x, c] to predictions of their pixels.
    image: [y, x, c].
    views: the windows.
    size: rows and columns of the result.
    flip: True: the image is mirrored, and the result is mirrored back.
  """
  values = np.asarray(predict(views.cut(image)))
  tops, lefts = views.starts(image.shape[:2])
  grid = side_by_side(values, len(tops))
  axes = [matrix(image.shape[i], m, first, np.eye(m), size[i],
                 flip and i == 1)
          for i, (m, first) in enumerate(zip(
              views.shape(image.shape[:2]), (tops, lefts), strict=True))]
  return np.asarray(assembled(
      ((grid, *axes),), num_rows=size[0], is_class=False))


def averaged(grids: Sequence[np.ndarray], flips: Sequence[bool],
             size: tuple[int, int]) -> np.ndarray:
  """[rows, columns, k] mean of whole views, resized from their grids.

  Args:
    grids: predictions [y, x, k] of the patches of each view.
    flips: True for each that is of the mirrored image.
    size: rows and columns of the result.
  """
  views = []
  for grid, flip in zip(grids, flips, strict=True):
    rows, columns = (resample.linear_matrix(n, m) for n, m in zip(
        grid.shape[:2], size, strict=True))
    views.append((grid, rows, columns[::-1] if flip else columns))
  return np.asarray(assembled(
      tuple(views), num_rows=size[0], is_class=False))
