"""Masks of the patches that the student does not see, made of blocks.

The references spread mask sizes over the images of a rank, 16 to 128: the
range of ratios is cut into bins, one a masked row. A group may be smaller, and
few bins, each with its upper edge, would hide more. So the bins are cut for
several groups together, and dealt out so that all hide nearly as much. The
lists of masked patches have one length: groups that hide a little less are
padded, and so are DINOv2's undershooting masks.
"""

import dataclasses
import functools
import itertools
import math
from typing import Literal, Protocol

import numpy as np

from dinojax.core import fields


class Rng(Protocol):
  """Source of the block generator's draws: numpy, or Python's random."""

  def uniform(self, low: float, high: float) -> float:
    """A float in [low, high)."""

  def randint(self, low: int, high: int) -> int:
    """An integer in [low, high], both included."""


class NumpyRng:
  """`Rng` over a numpy Generator."""

  def __init__(self, generator: np.random.Generator):
    self._generator = generator

  def uniform(self, low: float, high: float) -> float:
    """A float between the two, in either order, as Python's random draws."""
    return low + (high - low) * self._generator.random()

  def randint(self, low: int, high: int) -> int:
    """An integer in [low, high], both included."""
    return int(self._generator.integers(low, high + 1))


@dataclasses.dataclass(frozen=True)
class Masks:
  """How much is masked."""

  probability: fields.Unit = 0.5  # Share of global crops that are masked.
  # Least and greatest share of patches hidden in such a crop.
  ratio: tuple[fields.Unit, fields.Unit] = (0.1, 0.5)
  # Number of hidden patches: as drawn (DINOv3), or at most that (DINOv2).
  counts: Literal['exact', 'undershooting'] = 'exact'
  circular_shift: bool = False  # Shifts a mask around the edges of the crop.
  # Images over which the shares are spread, rounded up to whole groups: the
  # references' images of a rank.
  spread_images: fields.Positive = 64


_MIN_BLOCK = 4
_LOG_ASPECT = (math.log(0.3), math.log(1 / 0.3))
_TRIES = 10


def edges(rows: int, spec: Masks) -> np.ndarray:
  """Mask ratios between which the masked rows of a group are spread."""
  masked = int(rows * spec.probability)
  return np.linspace(*spec.ratio, masked + 1, dtype=np.float32)


def upper_bounds(rows: int, patches: int, spec: Masks) -> list[int]:
  """Largest mask size of every masked row of `rows`, ascending."""
  return [int(patches * float(edge)) for edge in edges(rows, spec)[1:]]


def num_groups(group_images: int, spec: Masks) -> int:
  """Groups of images over which mask ratios are spread."""
  return max(math.ceil(spec.spread_images / group_images), 1)


@functools.cache
def hands(num_bins: int, groups: int) -> tuple[tuple[int, ...], ...]:
  """Bins 0 … num_bins − 1 dealt to groups, with nearly the same sums.

  Each group gets one of every `groups` neighbouring bins; then bins change
  places as long as that brings the sums of two groups closer together. Always
  the same: sizes of arrays follow from it.
  """
  rng = np.random.default_rng(0)
  out = [[] for _ in range(groups)]
  for end in range(num_bins, 0, -groups):
    some = range(max(end - groups, 0), end)
    fewest = sorted(out, key=len)[:len(some)]
    for hand, i in zip(fewest, rng.permutation(some), strict=True):
      hand.append(int(i))
  pairs = list(itertools.combinations(out, 2))
  while any([_level(*pair) for pair in pairs]):
    pass
  return tuple(map(tuple, out))


def _level(a: list[int], b: list[int]) -> bool:
  """Exchanges a number of each, if their sums then differ by less."""
  gap = sum(a) - sum(b)
  rest, i, j = min(
      ((abs(gap - 2 * (x - y)), i, j) for i, x in enumerate(a)
       for j, y in enumerate(b)), default=(abs(gap), 0, 0))
  if rest >= abs(gap):
    return False
  a[i], b[j] = b[j], a[i]
  return True


def num_masked(rows: int, patches: int, spec: Masks, groups: int) -> int:
  """Length of every group's list of masked patches.

  Args:
    rows: rows of a group: its images times their global crops.
    patches: number of patches of a row.
    spec: how much is masked.
    groups: see `num_groups`.
  """
  bounds = upper_bounds(rows * groups, patches, spec)
  return max(sum(bounds[i] for i in hand)
             for hand in hands(len(bounds), groups))


def row_counts(rows: int, patches: int, spec: Masks,
               rng: np.random.Generator, *, groups: int = 1,
               hand: int = 0) -> np.ndarray:
  """Requested mask size of every row of a group, shuffled; [r] int.

  Args:
    rows: number of rows of the group.
    patches: number of patches of a row.
    spec: how much is masked.
    rng: randomness.
    groups: number of groups over which the ratios are spread.
    hand: index of the group's bins in `hands`.
  """
  bounds = edges(rows * groups, spec)
  dealt = hands(len(bounds) - 1, groups)[hand]
  if spec.counts == 'exact':
    counts = [int(patches * float(bounds[i + 1])) for i in dealt]
  else:
    counts = [int(patches * rng.uniform(bounds[i], bounds[i + 1]))
              for i in dealt]
  counts = np.array(counts + [0] * (rows - len(counts)), int)
  return rng.permutation(counts)


def max_block(image_px: int, patch_px: int) -> int:
  """Largest block: half the patches, in the references' float division."""
  return int(0.5 * image_px // patch_px * image_px // patch_px)


def blocks(rng: Rng, grid: tuple[int, int], count: int,
           largest: float) -> np.ndarray:
  """A mask of rectangles, at most `count` cells; may fall short.

  Args:
    rng: randomness.
    grid: (rows, columns) of patches.
    count: cells wanted.
    largest: cells of the largest block.

  Returns:
    [y, x] bool.

  Source: MaskingGenerator of DINOv2.
  """
  mask = np.zeros(grid, bool)
  done = 0
  while done < count:
    added = _add_block(rng, mask, min(count - done, largest))
    if not added:
      break
    done += added
  return mask


def _add_block(rng: Rng, mask: np.ndarray, limit: float) -> int:
  """Masks one random rectangle with 1..limit new cells; 0: none found."""
  height, width = mask.shape
  for _ in range(_TRIES):
    area = rng.uniform(_MIN_BLOCK, limit)
    aspect = math.exp(rng.uniform(*_LOG_ASPECT))
    h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if not (w < width and h < height):
      continue
    top, left = rng.randint(0, height - h), rng.randint(0, width - w)
    block = mask[top:top + h, left:left + w]
    new = h * w - int(block.sum())
    if 0 < new <= limit:
      block[:] = True
      return new
  return 0


def fill(mask: np.ndarray, count: int,
         rng: np.random.Generator) -> np.ndarray:
  """Adds random cells until exactly `count` are masked."""
  flat = mask.reshape(-1)
  missing = count - int(flat.sum())
  if missing > 0:
    free = np.flatnonzero(~flat)
    flat[rng.choice(free, missing, replace=False)] = True
  return flat.reshape(mask.shape)


def row_mask(rng: np.random.Generator, grid: tuple[int, int], count: int,
             largest: float, spec: Masks) -> np.ndarray:
  """One row's mask, [y, x] bool."""
  mask = np.zeros(grid, bool)
  if count:
    mask = blocks(NumpyRng(rng), grid, count, largest)
    if spec.counts == 'exact':
      mask = fill(mask, count, rng)
  if spec.circular_shift:
    shift = tuple(int(rng.integers(0, n)) for n in grid)
    mask = np.roll(mask, shift, (0, 1))
  return mask


def collate(masks: np.ndarray,
            size: int) -> tuple[np.ndarray, np.ndarray]:
  """Positions and weights of the masked patches of one group.

  Args:
    masks: [r, p] bool.
    size: entries of the result, at least the masked patches.

  Returns:
    index [m] int32 into the flattened rows, ascending, 0 where padding;
    weight [m] float32, 1 / masked patches of the row, 0 where padding.
  """
  index = np.flatnonzero(masks.reshape(-1))
  per_row = masks.sum(1)
  weight = 1 / per_row[index // masks.shape[1]]
  pad = size - len(index)
  return (np.pad(index, (0, pad)).astype(np.int32),
          np.pad(weight, (0, pad)).astype(np.float32))
