"""Filter: images that are too small, too long, empty, or from refused hosts."""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import hashlib
import pathlib
from typing import Any

import numpy as np

from dinojax.core import errors
from dinojax.core import fields
from dinojax.core import paths
from dinojax.curate import addresses
from dinojax.curate import plugins
from dinojax.curate import tables
from dinojax.curate import verdicts
from dinojax.curate.engines import work
from dinojax.curate.stages import base
from dinojax.curate.stages import judged
from dinojax.curate.stages import pool_rows

_COLUMNS = ('url', 'width', 'height', 'deviation', 'entropy')


@dataclasses.dataclass(frozen=True)
class Settings:
  """Images that are dropped by their sizes, contents and addresses."""

  min_side_px: fields.Natural = 0  # Pixels of the shorter side.
  # Longer side over the shorter one, at most; 0: any.
  max_aspect: fields.NonNegative = 0.0
  # Standard deviation of a thumbnail in grey levels; below it an image shows
  # nothing, and would be near all others that do.
  min_deviation: fields.NonNegative = 4.0
  min_entropy: fields.NonNegative = 1.0  # Of the grey levels, in bits.
  # Files that list hosts and addresses: of hosts files, ad blockers, or plain.
  refused: tuple[str, ...] = ()
  # Judge of unfit images, onnx:FILE or module:NAME:FUNCTION; '': none.
  nsfw: str = ''
  max_nsfw: fields.Unit = 0.5  # Its score above which an image is dropped.
  # Judge of faces, likewise (YuNet's file), which are blurred; '': none.
  faces: str = ''


class Filter(base.Stage):
  """Verdicts by what was measured."""

  def settings(self) -> dict[str, Any]:
    """All values; lists of hosts by their contents."""
    c = self.config
    return super().settings() | {
        'refused': [hashlib.sha256(read_list(path)).hexdigest()
                    for path in c.refused],
        **{name: plugins.facts(getattr(c, name)) for name in ('nsfw', 'faces')
           if getattr(c, name)}}

  def phases(self) -> Sequence[work.Phase]:
    """Asks the judges, then a verdict on every row."""
    ask = [work.Phase(judged.JUDGED, self.num_shards, self._ask)] if (
        self.config.nsfw or self.config.faces) else []
    return (*ask, work.Phase(verdicts.ROWS, self.num_shards, self._judge))

  def _ask(self, place: work.Place, index: int) -> work.Counts:
    """Scores and faces of the rows that are alive, and blurred pixels."""
    rows = np.flatnonzero(self.alive(place, index))
    return judged.write(
        place, index, pool_rows.Images(self.input(place, 'pool'), index, rows),
        nsfw=self.config.nsfw, faces=self.config.faces)

  def _judge(self, place: work.Place, index: int) -> work.Counts:
    table = tables.read(self.input(place, 'pool').checked(
        verdicts.ROWS, index), _COLUMNS)
    rows, more = self.shard_rows(place)[index], {}
    reasons = list(self._reasons(table))
    if self.config.nsfw or self.config.faces:
      more = judged.columns(place, index, rows)
      reasons = [
          reason or (f'unfit: score {score:.2f}'
                     if score > self.config.max_nsfw else '')
          for reason, score in zip(reasons, more['nsfw'].tolist(),
                                   strict=True)]
    return verdicts.write(place, index, rows, self.alive(place, index),
                          reasons, **more)

  def _reasons(self, table: dict[str, Any]) -> Iterator[str]:
    """Why each row goes; ''."""
    c, lists = self.config, refused(self.config.refused)
    for url, width, height, deviation, entropy in zip(
        *(table[name] for name in _COLUMNS), strict=True):
      short, long = sorted((int(width), int(height)))
      why = lists.why(addresses.normalized(url) or url) if url else None
      if why:
        yield f'refused: {why}'
      elif short < c.min_side_px:
        yield f'small: {width} × {height} pixels'
      elif c.max_aspect and long > c.max_aspect * short:
        yield f'long: {width} × {height} pixels'
      elif deviation < c.min_deviation or entropy < c.min_entropy:
        yield f'blank: deviation {deviation:.1f}, entropy {entropy:.1f} bits'
      else:
        yield ''


@functools.cache
def refused(files: tuple[str, ...]) -> addresses.Refused:
  """Entries of all lists together."""
  lists = (addresses.read(read_list(path).decode(
      errors='replace').splitlines())[0] for path in files)
  return functools.reduce(lambda a, b: a | b, lists, addresses.Refused())


def read_list(path: str) -> bytes:
  """Bytes of a list.

  Raises:
    UserError: it cannot be read.
  """
  try:
    return pathlib.Path(paths.expand(path)).read_bytes()
  except OSError as error:
    raise errors.UserError(
        f'{path}, a list of refused hosts, cannot be read: '
        f'{error.strerror or error}; check the key `refused`') from error
