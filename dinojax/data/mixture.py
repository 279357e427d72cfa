"""Chooses the record of a row of training by the row's number alone.

Nothing depends on history, so a run continues at any step, in any number of
processes.
"""

from collections.abc import Sequence
import functools

import grain
import numpy as np

_BLOCK = 4096  # numbers that are dealt and shuffled at a time
_CYCLE = 256  # blocks over which the shares are exact
_SPREAD = 159  # odd, near the golden section of the cycle


def generator(*key: int) -> np.random.Generator:
  """A generator that is a function of integers below 2⁶³."""
  return np.random.Generator(np.random.Philox(
      np.random.SeedSequence(key)))


class Mixture:
  """Rows over weighted sources, with whole batches from some of them.

  Every source is read in its own order, each record once an epoch, whatever
  the other sources and the whole batches take.
  """

  def __init__(self, lengths: Sequence[int], weights: Sequence[float], *,
               homogeneous: Sequence[tuple[int, float]] = (), seed: int,
               batch_size: int):
    """Prepares the mixture.

    Args:
      lengths: records of every source; mixed sources first.
      weights: shares of the mixed sources, any scale.
      homogeneous: (source index, probability): steps whose whole batch comes
        from that source.
      seed: seed of the run.
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
    self._batch = batch_size
    # Streams of steps: the mixture first, then each homogeneous source.
    self._whole = [source for source, _ in homogeneous]
    self._steps = _Dealer([1 - sum(odds), *odds], (seed, 2))
    self._rows = _Dealer(share, (seed, 3))
    # Without replacement within an epoch, another order in each.
    self._orders = [
        grain.MapDataset.range(length).seed(seed + 7919 * i).shuffle()
        .repeat() for i, length in enumerate(lengths)]

  def locate(self, row: int) -> tuple[int, int]:
    """(source, record) of a global row number, step · batch + row."""
    step, member = divmod(row, self._batch)
    stream, step_rank = self._steps.deal(step)
    position = step_rank * self._batch + member  # within the stream
    if stream:
      source = self._whole[stream - 1]
    else:
      source, position = self._rows.deal(position)
    return source, int(self._orders[source][position])


class _Dealer:
  """Deals 0, 1, 2, … to components by share, in an order that looks random.

  A block of numbers has a count for every component, within one of its
  share, and is shuffled. The rounding moves from block to block so that the
  counts of a cycle are exact, which keeps rare components.
  """

  def __init__(self, shares: Sequence[float], key: tuple[int, ...]):
    """Prepares the counts of a cycle.

    Raises:
      ValueError: a share is positive and too small to ever be dealt.
    """
    shares = np.asarray(shares, float) / np.sum(shares)
    smallest = 1 / (_BLOCK * _CYCLE)
    never = shares[(shares > 0) & (shares < smallest)]
    if never.size:
      raise ValueError(
          f'data share {never[0]:.2g} of the sum of weights is too small to '
          f'be drawn: raise it to {smallest:.1g} or more, or set it to 0')
    edges = np.concatenate([[0], np.cumsum(shares)]) * _BLOCK
    edges[-1] = _BLOCK
    phases = np.arange(_CYCLE) * _SPREAD % _CYCLE / _CYCLE
    counts = np.diff(np.floor(edges + phases[:, None]).astype(int), axis=1)
    self._key = key
    self._counts = [tuple(map(int, row)) for row in counts]
    self._before = np.concatenate([counts[:1] * 0, np.cumsum(counts, 0)])

  def deal(self, number: int) -> tuple[int, int]:
    """(component, how many numbers it was dealt before this one)."""
    if len(self._counts[0]) == 1:
      return 0, number
    block, place = divmod(number, _BLOCK)
    cycle, phase = divmod(block, _CYCLE)
    order, rank = _block(self._key, block, self._counts[phase])
    mine = int(order[place])
    before = cycle * int(self._before[-1, mine]) + int(
        self._before[phase, mine])
    return mine, before + int(rank[place])


@functools.lru_cache(maxsize=16)
def _block(key: tuple[int, ...], block: int, counts: tuple[int, ...]):
  """Component of each number of a block, and its rank in that component."""
  order = generator(*key, block).permutation(
      np.repeat(np.arange(len(counts)), counts))
  rank = np.empty_like(order)
  first = np.concatenate([[0], np.cumsum(counts)[:-1]])
  grouped = np.argsort(order, kind='stable')
  rank[grouped] = np.arange(len(order)) - first[order[grouped]]
  return order, rank
