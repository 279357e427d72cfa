"""Baseline scores of k-NN, kept over restarts of a run.

A cache: scores that cannot be read, or are of other images, are measured
again.
"""

from collections.abc import Mapping, Sequence
import json
import logging
import math

from etils import epath

from dinojax.core import atomic
from dinojax.core import errors
from dinojax.core import text
from dinojax.data import identity
from dinojax.data import record as record_lib
from dinojax.parallel import processes
from dinojax.train import sections

FILE = 'baselines.json'  # in the workdir
_DATA = '(data)'  # beside names of students, which are words

Scores = dict[str, float]


class Baselines:
  """Scores by student, of the images that they are measured on."""

  def __init__(self, folder: epath.Path | None,
               opened: Sequence[record_lib.Source]):
    """Reads what earlier starts measured; all processes get the same.

    Args:
      folder: workdir; None: nothing is kept.
      opened: sources whose images are measured.
    """
    self._path = folder / FILE if folder else None
    self._data = identity.digest(
        line for source in opened for line in identity.lines(source))
    # A process without them would measure, and wait for the others.
    self.known: dict[str, Scores] = json.loads(
        processes.of_first(json.dumps(self._read())))

  def keep(self, fresh: Mapping[str, Scores]):
    """Writes scores that are not kept yet.

    Raises:
      OSError: the file cannot be written; the old one is as it was.
    """
    if self._path is None or not processes.is_first() or (
        fresh.items() <= self.known.items()):
      return
    self.known |= fresh
    atomic.write_text(
        self._path, json.dumps(self.known | {_DATA: self._data}, indent=1))

  def _read(self) -> dict[str, Scores]:
    if self._path is None or not self._path.exists():
      return {}
    again = 'the baselines of k-NN are measured again'
    try:
      kept = atomic.read_json(self._path, again)
    except errors.UserError as error:
      logging.warning('%s', error)
      return {}
    data = kept.pop(_DATA, self._data) if isinstance(kept, dict) else None
    if not isinstance(kept, dict) or not all(map(_is_scores, kept.values())):
      logging.warning('%s is not of k-NN: %s', text.printable(self._path),
                      again)
      return {}
    if data != self._data:
      logging.warning('%s is of other images: %s',
                      text.printable(self._path), again)
      return {}
    if '' in kept:  # until 0.1, of a student that is alone
      kept[sections.ALONE] = kept.pop('')
    return kept


def _is_scores(value) -> bool:
  return isinstance(value, dict) and all(
      isinstance(score, int | float) and math.isfinite(score)
      for score in value.values())
