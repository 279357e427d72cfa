"""AmsterTime: `amstertime:DIR`, old and new photographs of a place.

DIR holds `old/NUMBER.jpg` and `new/NUMBER.png`; the same number is a pair.

Source: seyrankhademi/AmsterTime.
"""

import os
from typing import Any

import numpy as np

from dinojax.core import errors
from dinojax.core import text
from dinojax.data import listing
from dinojax.evals.sets import image_files
from dinojax.evals.sets import ranking
from dinojax.metrics import retrieval

_HAD = ('AmsterTime is at data.4tu.nl (10.4121/19580806); its folders old/ and '
        'new/ are what is read')
_PARTS = ('old', 'new')
_SEEN = 1231  # pairs of the published set


class AmsterTime:
  """Pairs: old ones ask for their new one, and the other way round."""

  def __init__(self, folder: str):
    """Lists the pairs.

    Raises:
      UserError: a folder that is missing, or an image without the other.
    """
    self.spec = f'amstertime:{folder}'
    root = image_files.need(folder, _PARTS, _HAD)
    names = {part: {os.path.splitext(name)[0]: name for name in sorted(
        listing.look(str(root / part)).paths)} for part in _PARTS}
    alone = sorted(names['old'].keys() ^ names['new'].keys())
    if alone:
      raise errors.UserError(
          f'{root} has no pair for {text.listed(alone)}: every old/ image has '
          f'a new/ one of its number; {_HAD}')
    self._pairs = sorted(names['old'])
    if not self._pairs:
      raise errors.UserError(f'{root} has no images in old/ and new/: {_HAD}')
    self.digest = image_files.digest(self._pairs)
    self.images = image_files.Joined(self.spec, [
        image_files.Files(self.spec, str(root / part),
                     [names[part][pair] for pair in self._pairs])
        for part in _PARTS])

  def __len__(self) -> int:
    return len(self.images)

  def tasks(self, labels: np.ndarray) -> list[ranking.Task]:
    """Both directions."""
    del labels
    old, new = self.images.parts()
    numbers = np.arange(len(self._pairs))
    kinds = lambda i: np.where(
        numbers == i, retrieval.EASY, retrieval.NEGATIVE)
    return [ranking.Task('old asks new', old, new, kinds),
            ranking.Task('new asks old', new, old, kinds)]

  def facts(self) -> dict[str, Any]:
    """A number of pairs that is not the published one."""
    return {} if len(self._pairs) == _SEEN else {
        'counts': f'{len(self._pairs)} pairs, where the published set has '
                  f'{_SEEN}'}
