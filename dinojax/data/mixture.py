"""Which record a row of training reads: a function of the row's number.

Nothing depends on history, so a run continues at any step, in any number of
processes.
"""

from collections.abc import Sequence
import functools

import grain
import numpy as np

_BLOCK = 4096  # rows in which the mixture's shares are exact


def generator(*key: int) -> np.random.Generator:
  """A generator that is a function of integers below 2⁶³."""
  return np.random.Generator(np.random.Philox(
      np.random.SeedSequence(key)))


class Mixture:
  """Rows over weighted sources, with whole batches from some of them."""

  def __init__(self, lengths: Sequence[int], weights: Sequence[float], *,
               homogeneous: Sequence[tuple[int, float]] = (), seed: int,
               batch_size: int):
    """Prepares the mixture.

    Args:
      lengths: records of every source; mixed sources first.
      weights: shares of the mixed sources, any scale.
      homogeneous: (source index, probability): steps whose whole batch comes
        from that source.
      seed: of the run.
      batch_size: rows of a step.

    Raises:
      ValueError: weights or probabilities that make no mixture.
    """
    share = np.asarray(weights, float)
    if share.size == 0 or (share < 0).any() or share.sum() <= 0:
      raise ValueError(
          f'data.train weights {list(weights)} must be positive')
    odds = [p for _, p in homogeneous]
    if any(p < 0 for p in odds) or sum(odds) > 1:
      raise ValueError(
          f'data.homogeneous probabilities {odds} must be positive and sum '
          'to at most 1')
    self._seed, self._batch = seed, batch_size
    self._homogeneous = tuple(homogeneous)
    self._counts = _largest_remainders(share / share.sum() * _BLOCK)
    # Without replacement within an epoch, another order in each.
    self._orders = [
        grain.MapDataset.range(length).seed(seed + 7919 * i).shuffle()
        .repeat() for i, length in enumerate(lengths)]

  def locate(self, row: int) -> tuple[int, int]:
    """(source, record) of a global row number, step · batch + row."""
    step = row // self._batch
    source = self._whole_batch(step)
    if source is not None:
      return source, int(self._orders[source][row])
    block, place = divmod(row, _BLOCK)
    order, rank = _block(self._seed, block, tuple(self._counts))
    source = int(order[place])
    position = block * int(self._counts[source]) + int(rank[place])
    return source, int(self._orders[source][position])

  def _whole_batch(self, step: int) -> int | None:
    """The source that fills the whole batch of a step, if one does."""
    if not self._homogeneous:
      return None
    draw = generator(self._seed, 2, step).random()
    for source, probability in self._homogeneous:
      if draw < probability:
        return source
      draw -= probability
    return None


def _largest_remainders(shares: np.ndarray) -> np.ndarray:
  """Whole numbers with the same sum, each within one of its share."""
  counts = np.floor(shares).astype(int)
  missing = round(shares.sum()) - counts.sum()
  counts[np.argsort(counts - shares, kind='stable')[:missing]] += 1
  return counts


@functools.lru_cache(maxsize=8)
def _block(seed: int, block: int, counts: tuple[int, ...]):
  """Source of each row of a block, and its rank among that source's rows."""
  order = np.repeat(np.arange(len(counts)), counts)
  if len(counts) > 1:
    order = generator(seed, 3, block).permutation(order)
  rank = np.empty_like(order)
  for source in range(len(counts)):
    mine = order == source
    rank[mine] = np.arange(mine.sum())
  return order, rank
