"""Depths that a head predicted, as a set: `predicted:DIR` of `dinojax predict`.

A student learns from them what its teacher saw in photographs without depths.
"""

import dataclasses
import hashlib
import json
import os

from etils import epath
import numpy as np
from PIL import Image

from dinojax.core import atomic
from dinojax.core import errors
from dinojax.core import log
from dinojax.data import sources
from dinojax.evals.sets import dense

LINES, ABOUT = 'predictions.jsonl', 'head.json'  # of runs.predictions
METRES, INVERSE = 'metres_per_unit', 'inverse_of_unit'


@dataclasses.dataclass(frozen=True)
class InverseDepth:
  """Reads inverse depths; depths are 0 where they are 0, infinitely far.

  Attributes:
    scale: inverse depth of one unit.
  """

  scale: float

  def __call__(self, picture: Image.Image) -> np.ndarray:
    """[y, x] float32 depths, of no unit."""
    values = np.asarray(picture, np.float32) * self.scale
    return np.where(values > 0, 1 / np.where(values > 0, values, 1), 0).astype(
        np.float32)


class Predicted:
  """Images of a source with the depths of a head; travels to workers."""

  def __init__(self, spec: str):
    """Reads the list of the maps.

    Raises:
      UserError: no predictions of depths, or their source is gone.
    """
    self.spec, self.classes, self.left_out = spec, (), 0
    self._folder = spec.removeprefix('predicted:')
    about = os.path.join(self._folder, ABOUT)
    if not os.path.exists(about):
      raise errors.UserError(
          f'{spec} has no {ABOUT}: give the --out of `dinojax predict`')
    fix = 'make the predictions again'
    source = atomic.read_json(about, fix).get('source')
    self._rows = [row for path in sorted(epath.Path(self._folder).glob(
        f'*{LINES}')) for row in log.rows(path)]
    self._rows.sort(key=lambda row: row['index'])
    if not all(METRES in row or INVERSE in row for row in self._rows):
      raise errors.UserError(f'{spec} holds classes, not depths: give '
                             'predictions of a head of depth')
    if not self._rows:
      raise errors.UserError(f'{spec} holds no predictions: {fix}')
    self._source = sources.open_source(source)

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> dense.Pair:
    row = self._rows[int(index)]
    record = self._source[row['index']]
    path = os.path.join(self._folder, row['map'])
    read = (InverseDepth(row[INVERSE]) if INVERSE in row
            else dense.Metres(row[METRES]))
    return dense.Pair(record.image, epath.Path(path).read_bytes(), record.name,
                      path, read)

  def order(self, sizes: bool = False) -> list[str]:
    """Names in order."""
    del sizes
    return [row['name'] for row in self._rows]

  @property
  def digest(self) -> str:
    """Text that differs with the images and with what predicted them."""
    with open(os.path.join(self._folder, ABOUT), 'rb') as file:
      key = json.load(file).get('key')
    return hashlib.sha256('\n'.join([str(key), *self.order()]).encode()
                          ).hexdigest()[:8]
