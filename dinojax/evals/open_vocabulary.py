"""Segmentation by classes that are texts: cosines of patches, and windows.

Source: DINOv3's notebook of dino.txt. It takes the backbone's patches where its
  text speaks of the head's (dinov3 issue 355); here either may be given.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.evals import windows
from dinojax.kernels import resample
from dinojax.losses import unit

Array = jax.Array
SHORT_PX, WINDOW_PX, STRIDE_PX = 512, 384, 192
_EPSILON = 1e-12


@dataclasses.dataclass(frozen=True)
class Views:
  """An image as a backbone sees it.

  Attributes:
    images: [r, y, x, c], sides are multiples of a patch.
    places: [r, 2] first row and column of each in the image; None: there is
      one, of the whole image.
    shape: rows and columns of the image that each is of.
    size: rows and columns of the image.
  """

  images: np.ndarray
  places: np.ndarray | None
  shape: tuple[int, int]
  size: tuple[int, int]


def view_size(size: tuple[int, int], short_px: int = SHORT_PX
              ) -> tuple[int, int]:
  """Rows and columns of an image of (rows, columns), reduced or enlarged."""
  return tuple(short_px if n == min(size) else int(short_px * n / min(size))
               for n in size)


def whole(image: np.ndarray, patch_px: int) -> Views:
  """The one view of an image [y, x, c].

  It may be normalised before or after: to stretch it is the same.
  """
  size = image.shape[:2]
  return Views(_stretched(image[None], patch_px), None, size, size)


def slid(image: np.ndarray, patch_px: int, *, window_px: int = WINDOW_PX,
         stride_px: int = STRIDE_PX) -> Views:
  """Windows of an image, row by row; the last ones are moved inside.

  Args:
    image: [y, x, c], see `whole`; a side may be shorter than a window.
    patch_px: side of a patch.
    window_px: side of a window.
    stride_px: from window to window.
  """
  size = image.shape[:2]
  shape = tuple(min(n, window_px) for n in size)
  tops, lefts = (windows.starts(n, m, stride_px)
                 for n, m in zip(size, shape, strict=True))
  places = np.array([(top, left) for top in tops for left in lefts], np.int32)
  cut = np.stack([image[top:top + shape[0], left:left + shape[1]]
                  for top, left in places])
  return Views(_stretched(cut, patch_px), places, shape, size)


def scores(views: Views, patches: Array, classes: Array) -> Array:
  """[y, x, k] scores of classes.

  Of a whole image they are cosines of its patches; of windows, shares of
  classes at every pixel of the image.

  Args:
    views: the image.
    patches: [r, y, x, d] patches of each view on their grid.
    classes: [k, d] unit vectors, see zero_shot.patch_class_vectors.
  """
  maps = _cosines(jnp.asarray(patches), jnp.asarray(classes))
  if views.places is None:
    return maps[0]
  return _joined(maps, jnp.asarray(views.places), views.shape, views.size)


def resized(scores: Array, size: tuple[int, int]) -> Array:
  """Scores [y, x, k] at the pixels of a label map of (rows, columns)."""
  return resample.resize_linear(scores, size)


def labels(scores: Array, size: tuple[int, int]) -> np.ndarray:
  """[rows, columns] int32 classes of the largest of `resized` scores."""
  rows, columns = (resample.linear_matrix(n, m) for n, m in zip(
      scores.shape[:2], size, strict=True))
  return np.asarray(windows.assembled(
      ((scores, rows, columns),), is_class=True,
      num_rows=windows.rows_at_once(*size, scores.shape[-1])))


@jax.jit
def _cosines(patches: Array, classes: Array) -> Array:
  """[…, k] of patches [..., d] and unit vectors [k, d] of classes."""
  return jnp.einsum('...d,kd->...k', unit.normalize(patches, _EPSILON),
                    classes, precision=jax.lax.Precision.HIGHEST)


def _stretched(images: np.ndarray, patch_px: int) -> np.ndarray:
  """Images [r, y, x, c], whose sides are raised to multiples of a patch."""
  size = tuple(-(-n // patch_px) * patch_px for n in images.shape[1:3])
  if size == images.shape[1:3]:
    return images
  return np.asarray(resample.resize(jnp.asarray(images), size))


@functools.partial(jax.jit, static_argnames=('shape', 'size'))
def _joined(maps: Array, places: Array, shape: tuple[int, int],
            size: tuple[int, int]) -> Array:
  """[y, x, k] mean over windows of the softmax of their cosines.

  Args:
    maps: [r, y, x, k] cosines of the patches of each window.
    places: [r, 2] first row and column of each.
    shape: rows and columns of a window.
    size: rows and columns of the image.

  The temperature of the softmax is 1, on cosines as they are.
  """
  def add(sums, window):
    grid, (top, left) = window
    shares = jax.nn.softmax(resample.resize_linear(grid, shape), axis=-1)
    start = (top, left, 0)
    # Their number is a class of its own.
    new = jnp.concatenate([shares, jnp.ones((*shape, 1))], axis=-1)
    old = jax.lax.dynamic_slice(sums, start, new.shape)
    return jax.lax.dynamic_update_slice(sums, old + new, start), None

  sums, _ = jax.lax.scan(
      add, jnp.zeros((*size, maps.shape[-1] + 1)), (maps, places))
  return sums[..., :-1] / sums[..., -1:]
