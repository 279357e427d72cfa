"""Images of a pool, drawn by chance, as tiles of contact sheets."""

import numpy as np

from dinojax.curate import draws
from dinojax.curate import sheets
from dinojax.curate.engines import work
from dinojax.curate.stages import pool_rows

_DRAW = 61  # stream of random numbers


class PoolImages:
  """Tiles of rows of the pool."""

  def __init__(self, pool: work.Place, blurred: work.Place | None):
    """Keeps places; images are read when they are drawn."""
    self._pool, self._blurred = pool, blurred
    self.shards = pool_rows.shard_rows(pool)

  def tile(self, row: int, caption: str = '', colour=(40, 40, 40)
           ) -> sheets.Tile:
    """The image of a row."""
    index = next(i for i, rows in enumerate(self.shards) if row in rows)
    source = pool_rows.Images(
        self._pool, index, np.array([row - self.shards[index].start]),
        self._blurred)
    return sheets.Tile(lambda: source[0].image, caption, colour)

  def some(self, rows: np.ndarray, count: int) -> np.ndarray:
    """Rows drawn by chance, ascending."""
    order = np.argsort(draws.keys(rows, 0, _DRAW), kind='stable')
    return np.sort(rows[order[:count]])
