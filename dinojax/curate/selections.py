"""Selections: rows that were chosen, how often, and why."""

from collections.abc import Mapping

import numpy as np

from dinojax.curate import tables
from dinojax.curate.engines import work

SELECTED = 'selected'


def write(place: work.Place, index: int, rows: np.ndarray, counts: np.ndarray,
          why: Mapping[str, np.ndarray]) -> work.Counts:
  """Writes what was chosen.

  Args:
    place: place of the stage.
    index: task.
    rows: [r] rows of the pool, ascending.
    counts: [r] how often each is taken.
    why: more columns [r].
  """
  tables.write(place.file(SELECTED, index), {
      'row': np.asarray(rows, np.int64), 'count': np.asarray(counts, np.int32),
      **why})
  return {'rows': len(rows), 'images': int(np.sum(counts))}


def read(place: work.Place) -> dict[str, np.ndarray]:
  """row, count and why, in order of rows."""
  parts = [tables.read(place.checked(SELECTED, i))
           for i in range(place.count(SELECTED))]
  return {name: np.concatenate([part[name] for part in parts])
          for name in parts[0]}
