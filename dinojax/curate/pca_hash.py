"""PCA hash: a few bits that stay when an image is stored again, or resized.

Crops, turns and mirrors change them; those are found by descriptors.
"""

import dataclasses
import functools

import numpy as np

from dinojax.core import errors

_LUMA = np.array([0.299, 0.587, 0.114])
BLOCK = 1024  # thumbnails in memory as float64
FLAT = 4.0  # grey levels: below this deviation a thumbnail says nothing


def thumbnail(pixels: np.ndarray, side: int = 32) -> np.ndarray:
  """Means over equal areas of the grey image.

  Args:
    pixels: [y, x, 3] uint8 RGB.
    side: areas along each edge.

  Returns:
    [side, side] float64 grey levels. A pixel on a border counts for both areas
    by its parts.
  """
  return areas(pixels, side) @ _LUMA


def areas(pixels: np.ndarray, side: int) -> np.ndarray:
  """[side, side, 3] float64 mean colours of equal areas, see `thumbnail`."""
  height, width, _ = pixels.shape
  rows, columns = _areas(height, side), _areas(width, side)
  planes = pixels.transpose(2, 0, 1).astype(np.float64)
  return (rows @ planes @ columns.T).transpose(1, 2, 0)


@functools.lru_cache(maxsize=64)
def _areas(size: int, side: int) -> np.ndarray:
  """Share of every pixel in every area [side, size]; rows add up to one."""
  edges = np.arange(side + 1) * (size / side)
  pixel = np.arange(size)
  low = np.maximum(edges[:-1, None], pixel)
  high = np.minimum(edges[1:, None], pixel + 1)
  return np.maximum(high - low, 0) * (side / size)


@dataclasses.dataclass(frozen=True)
class Hasher:
  """Projections of thumbnails, and what is one and what zero."""

  mean: np.ndarray  # [s²] of thumbnails without their own mean
  components: np.ndarray  # [bits, s²] unit rows
  thresholds: np.ndarray  # [bits]

  @property
  def side(self) -> int:
    """Areas along each edge of a thumbnail."""
    return round(self.mean.size ** 0.5)

  def projections(self, thumbnails: np.ndarray) -> np.ndarray:
    """[n, bits] of thumbnails [n, s, s], in grey levels."""
    return (_centered(thumbnails) - self.mean) @ self.components.T

  def bits(self, thumbnails: np.ndarray) -> np.ndarray:
    """[n, bits / 8] uint8, the first bit in the highest place."""
    return np.packbits(
        self.projections(thumbnails) > self.thresholds, axis=1)


def fit(thumbnails: np.ndarray, bits: int = 64) -> Hasher:
  """Main directions of many thumbnails; half of them has each bit.

  Args:
    thumbnails: [n, s, s], at least two for every bit, better ten.
    bits: 8, 16, 24, …, at most s².

  Raises:
    UserError: too few images.

  Differs: the papers name a PCA hash and define none; this one is ours.
  """
  if len(thumbnails) < 2 * bits or bits % 8 or (
      bits > thumbnails.shape[1] ** 2):
    raise errors.UserError(
        f'a PCA hash of {bits} bits cannot be learned from '
        f'{len(thumbnails)} images of {thumbnails.shape[1]} × '
        f'{thumbnails.shape[1]} areas: bits are a multiple of 8, at most half '
        'as many as images and no more than areas')
  blocks = [thumbnails[i:i + BLOCK] for i in range(
      0, len(thumbnails), BLOCK)]
  mean = sum(_centered(some).sum(0) for some in blocks) / len(thumbnails)
  square = np.zeros((len(mean), len(mean)))
  for some in blocks:
    rows = _centered(some) - mean
    square += rows.T @ rows
  components = np.linalg.eigh(square)[1].T[:-bits - 1:-1].copy()
  largest = np.abs(components).argmax(1)
  components *= np.sign(components[np.arange(bits), largest])[:, None]
  hasher = Hasher(mean, components, np.zeros(bits))
  return dataclasses.replace(hasher, thresholds=np.median(np.concatenate(
      [hasher.projections(some) for some in blocks]), axis=0))


def is_flat(thumbnails: np.ndarray) -> np.ndarray:
  """[n] bool: images with so little in them that their hash says nothing."""
  return thumbnails.std(axis=(1, 2)) < FLAT


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Bits that differ [n, m], of hashes [n, bytes] and [m, bytes]."""
  return np.bitwise_count(a[:, None] ^ b[None]).sum(-1)


def _centered(thumbnails: np.ndarray) -> np.ndarray:
  """Thumbnails without their brightness, [n, s²] float64."""
  rows = np.asarray(thumbnails, np.float64).reshape(
      len(thumbnails), thumbnails.shape[1] * thumbnails.shape[2])
  return rows - rows.mean(1, keepdims=True)
