"""Images that a pool is compared with: benchmarks, and queries.

They are described by what described the pool, so that both can be compared.
"""

from collections.abc import Sequence

import numpy as np

from dinojax.core import errors
from dinojax.core import text
from dinojax.curate import describers
from dinojax.curate import tables
from dinojax.curate.engines import work
from dinojax.data import sources

_VECTORS = 'vectors.npy'


def describe(place: work.Place, phase: str, index: int, spec: str,
             describer: describers.Describer) -> work.Counts:
  """Writes the vectors and names of a source.

  Args:
    place: place of the stage.
    phase: name of the phase.
    index: number of the source.
    spec: source, as training reads it.
    describer: describer of the pool.

  Raises:
    UserError: no image of it can be read.
  """
  source = sources.open_source(spec)
  taken, rows = [], []
  for some, described in describer.describe(source):
    taken.append(some)
    rows.append(described)
  if not taken:
    raise errors.UserError(f'no image of {spec} can be read: check it')
  taken = np.concatenate(taken)
  np.save(place.file(phase, index, _VECTORS),
          np.concatenate(rows).astype(np.float16))
  tables.write(place.file(phase, index), {
      'index': taken, 'name': [text.printable(source[int(i)].name)
                               for i in taken]})
  return {'described': len(taken), 'left_out': len(source) - len(taken)}


class References:
  """All sources of a phase, one after the other.

  Attributes:
    vectors: [n, d] float32.
    source: [n] number of the source of each.
    names: names of the images.
    index: [n] number of each in its source.
  """

  def __init__(self, place: work.Place, phase: str):
    """Reads what `describe` wrote."""
    count = place.count(phase)
    parts = [tables.read(place.checked(phase, i)) for i in range(count)]
    self.vectors = np.concatenate([
        np.load(place.checked(phase, i, _VECTORS)) for i in range(count)
    ]).astype(np.float32)
    self.source = np.repeat(np.arange(count), [len(p['name']) for p in parts])
    self.names: Sequence[str] = sum((part['name'] for part in parts), [])
    self.index = np.concatenate([part['index'] for part in parts])

  def __len__(self) -> int:
    return len(self.names)

  def of(self, number: int) -> np.ndarray:
    """[r, d] vectors of a source."""
    return self.vectors[self.source == number]


def check_width(vectors: np.ndarray, width: int, what: str):
  """Refuses vectors of another length than the pool's.

  Raises:
    UserError: with both lengths.
  """
  if vectors.shape[1] != width:
    raise errors.UserError(
        f'{what} have {vectors.shape[1]} dimensions and the pool has {width}: '
        'describe both with the same model')
