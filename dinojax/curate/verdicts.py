"""Verdicts on rows: nothing is deleted, every stage says what it would drop.

A stage that judges has a phase `rows` with a table a shard: whether a row is
still alive after it, and why it is not when the stage itself dropped it.
"""

from collections.abc import Sequence

import numpy as np

from dinojax.curate import tables
from dinojax.curate.engines import work

ROWS = 'rows'


def alive(place: work.Place, index: int) -> np.ndarray:
  """[r] bool: rows of a shard that no stage so far has dropped."""
  return tables.read(place.checked(ROWS, index), ['alive'])['alive']


def write(place: work.Place, index: int, rows: range, before: np.ndarray,
          reasons: Sequence[str], **columns) -> work.Counts:
  """Writes what a stage says of a shard.

  Args:
    place: place of the stage.
    index: shard.
    rows: its rows.
    before: [r] bool, alive before the stage.
    reasons: why each row is dropped; '' where it is not.
    columns: more columns of the table.

  Returns:
    Counts of what is left and of what was dropped, by the first word of the
    reason.
  """
  reasons = [reason if ok else '' for reason, ok in zip(
      reasons, before.tolist(), strict=True)]
  dropped = np.array([bool(reason) for reason in reasons], bool)
  tables.write(place.file(ROWS, index), {
      'row': np.arange(rows.start, rows.stop), 'alive': before & ~dropped,
      'reason': reasons, **columns})
  counts = {'kept': int((before & ~dropped).sum())}
  for reason in reasons:
    if reason:
      word = reason.partition(':')[0]
      counts[word] = counts.get(word, 0) + 1
  return counts


