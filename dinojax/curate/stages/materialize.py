"""Materialize: the chosen images as shuffled records that training reads.

Every record has a line that says why it is there. mixture.json names the
records, and other sources that go beside them, with their weights.
"""

from collections.abc import Sequence
import dataclasses
import functools
import json
from typing import Any

from array_record.python import array_record_module
import numpy as np

from dinojax.core import atomic
from dinojax.core import errors
from dinojax.core import fields
from dinojax.curate import draws
from dinojax.curate import selections
from dinojax.curate import tables
from dinojax.curate import verdicts
from dinojax.curate.engines import work
from dinojax.curate.stages import base
from dinojax.data import record
from dinojax.data import records

ORDER, RECORDS, MIX = 'order', 'records', 'mixture'
_ALL = 'all'
_SHUFFLE = 51  # stream of random numbers
_SHARDS = 64  # whose rows are shuffled together
_TEXTS = ('name', 'url', 'licence', 'caption')


@dataclasses.dataclass(frozen=True)
class Settings:
  """Records, and what is mixed with them in training."""

  images_per_shard: fields.Positive = 10_000  # Images of a file of records.
  seed: fields.Natural = 0  # Number of the shuffle.
  # Shares of the stages that chose, in training: (("sample", 2.0), …); of those
  # that are left out, the number of their images.
  weights: tuple[tuple[str, fields.Above0], ...] = ()
  # Other sources that training mixes in as they are, with their weights.
  others: tuple[tuple[str, fields.Above0], ...] = ()
  # Sources that whole batches are taken from, with their probabilities.
  homogeneous: tuple[tuple[str, fields.Unit], ...] = ()


class Materialize(base.Stage):
  """Records of what was chosen, or of all that is alive."""

  def settings(self) -> dict[str, Any]:
    """All values.

    Raises:
      UserError: the weight of a stage that chooses nothing.
    """
    for name, _ in self.config.weights:
      if name not in self._choosers:
        raise errors.UserError(
            f'materialize.weights has {name!r}: stages that choose are '
            f'{", ".join(self._choosers)}')
    return super().settings()

  @property
  def _choosers(self) -> list[str]:
    """Names of the stages that chose; 'all' without any."""
    return [name for role, name in self.reads.items()
            if role.startswith('selection ')] or [_ALL]

  def phases(self) -> Sequence[work.Phase]:
    """Shuffles, writes records, writes the mixture."""
    out = []
    for name in self._choosers:
      out += [
          work.Phase(f'{ORDER}-{name}', base.once, functools.partial(
              self._order, name)),
          work.Phase(f'{RECORDS}-{name}', functools.partial(
              self._num_files, name), functools.partial(self._records, name))]
    return (*out, work.Phase(MIX, base.once, self._mix))

  def _chosen(self, name: str, place: work.Place) -> dict[str, np.ndarray]:
    """row, count and why of all that a stage chose."""
    if name != _ALL:
      return selections.read(place.inputs[name])
    rows = np.concatenate([
        rows.start + np.flatnonzero(self.alive(place, index))
        for index, rows in enumerate(self.shard_rows(place))])
    return {'row': rows, 'count': np.ones(len(rows), np.int32)}

  def _order(self, name: str, place: work.Place, index: int) -> work.Counts:
    """Writes places in the list of the chosen, in the order of the records.

    They are shuffled among those of neighbouring shards, so that a file of
    records reads from a few; training shuffles all.
    """
    chosen = self._chosen(name, place)
    count = chosen['count']
    starts = [rows.start for rows in self.shard_rows(place)][::_SHARDS]
    places = np.repeat(np.arange(len(count)), count)
    copy = np.arange(len(places)) - np.repeat(np.cumsum(count) - count, count)
    keys = draws.keys(places, self.config.seed, _SHUFFLE) ^ draws.keys(
        copy, self.config.seed, _SHUFFLE, 1)
    group = np.searchsorted(starts, chosen['row'][places], 'right')
    np.save(place.file(f'{ORDER}-{name}', index, 'npy'),
            places[np.lexsort((keys, group))])
    return {}

  def _places(self, name: str, place: work.Place) -> np.ndarray:
    return np.load(place.checked(f'{ORDER}-{name}', 0, 'npy'), mmap_mode='r')

  def _num_files(self, name: str, place: work.Place) -> int:
    return -(-len(self._places(name, place))
             // self.config.images_per_shard)

  def _records(self, name: str, place: work.Place, index: int
               ) -> work.Counts:
    """Writes a file of records, and a table of why each is there."""
    each, chosen = self.config.images_per_shard, self._chosen(name, place)
    places = np.array(
        self._places(name, place)[index * each:(index + 1) * each])
    rows = chosen['row'][places]
    texts, images = self._read(place, rows)
    phase = f'{RECORDS}-{name}'
    path = place.file(phase, index, 'arrayrecord')
    with atomic.replacing(path) as temporary:
      writer = array_record_module.ArrayRecordWriter(
          str(temporary), 'group_size:1')
      for row in rows.tolist():
        writer.write(records.pack(record.Record(
            images[row], -1, texts[row][0])))
      writer.close()
    tables.write(place.file(phase, index), {
        'row': rows, **{key: [texts[row][i] for row in rows.tolist()]
                        for i, key in enumerate(_TEXTS)},
        **{key: values[places] for key, values in chosen.items()
           if key not in ('row', 'count')}})
    return {'records': len(rows),
            'bytes': sum(len(images[row]) for row in rows.tolist())}

  def _read(self, place: work.Place, rows: np.ndarray
            ) -> tuple[dict[int, tuple], dict[int, bytes]]:
    """Texts and bytes of rows, read in the order in which they lie."""
    texts, images, pool = {}, {}, self.input(place, 'pool')
    for index, part in enumerate(self.shard_rows(place)):
      mine = np.unique(rows[(rows >= part.start) & (rows < part.stop)])
      if not len(mine):
        continue
      take = mine - part.start
      source = self.images(place, index, take)
      table = tables.read(pool.checked(verdicts.ROWS, index), _TEXTS)
      for i, row in enumerate(mine.tolist()):
        images[row] = source[i].image
        texts[row] = tuple(table[name][take[i]] for name in _TEXTS)
    return texts, images

  def _mix(self, place: work.Place, index: int) -> work.Counts:
    """Writes what training reads, from the folder of the stage."""
    del index
    c, weights = self.config, dict(self.config.weights)
    train = [[f'arrayrecord:{RECORDS}-{name}/*.arrayrecord', weights.get(
        name, len(self._places(name, place)))] for name in self._choosers]
    atomic.write_text(place.file(MIX, 0, 'json'), json.dumps({
        'train': [*train, *map(list, c.others)],
        'homogeneous': list(map(list, c.homogeneous))}, indent=1))
    return {}


def mixture(place: work.Place) -> dict[str, Any]:
  """Sources and shares for training; paths begin at the stage's folder."""
  return atomic.read_json(place.checked(MIX, 0, 'json'), 'curate again')
