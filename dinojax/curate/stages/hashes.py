"""Hash: the same picture again, as it is, stored anew, or resized.

Two hashes of a few bits: one learned from the pool by its principal
components, and PDQ, which others share lists of.

Every row goes under one key for its pixels and one for each band of its hash;
rows with an equal key meet in a partition. So no list of all pairs is made, and
a partition fits a small memory.
"""

from collections.abc import Iterator, Sequence
import dataclasses
from typing import Any, Literal

import numpy as np

from dinojax.core import errors
from dinojax.core import fields
from dinojax.core import output
from dinojax.curate import components
from dinojax.curate import decoded
from dinojax.curate import draws
from dinojax.curate import pca_hash
from dinojax.curate import pdq
from dinojax.curate import shuffle
from dinojax.curate import tables
from dinojax.curate import verdicts
from dinojax.curate.engines import work
from dinojax.curate.stages import base
from dinojax.curate.stages import joined
from dinojax.curate.stages import pool_rows

FIT, BITS, MEET = 'fit', 'bits', 'meet'
_FIT, _BAND = 11, 12  # streams of random numbers
# Keys that meet in memory: few while partitions are few, then more, as every
# shard keeps a place of each partition.
_KEYS, _FEW, _MOST_KEYS = 200_000, 64, 4_000_000
_BAND_BITS = 16
_ENOUGH = 10  # images for each bit
_LENGTHS = (0, 64, 128, 256)
_EXACT = 255  # band of a sum of pixels
_NEAR = {'pca': 4, 'pdq': 31}  # bits in which copies differ


@dataclasses.dataclass(frozen=True)
class Settings:
  """Copies that are told by their pixels, or by a few bits of them."""

  # pca: learned from the pool; pdq: 256 bits, of the package pdqhash.
  kind: Literal['pca', 'pdq'] = 'pca'
  # Bits of the PCA hash: 64, 128 or 256; 0: equal pixels only.
  bits: fields.Natural = 64
  # Bits in which copies differ, at most; None: 4, and 31 of PDQ.
  max_distance: fields.Natural | None = None
  fit_images: fields.Positive = 20_000  # Images that the hash is learned from.
  # Rows with one key that are each compared with all others; in a longer list
  # each with so many that follow.
  max_bucket: fields.Positive = 1_000
  seed: fields.Natural = 0  # Number of the draws.


class Hash(base.Stage):
  """Copies by the sums of their pixels, and by a hash."""

  def settings(self) -> dict[str, Any]:
    """All values.

    Raises:
      UserError: a hash of another length, or pdqhash is not installed.
    """
    if self._is_pdq:
      pdq.library()
    elif self.config.bits not in _LENGTHS:
      raise errors.UserError(
          f'hash.bits={self.config.bits} is not a length of the hash: give one '
          f'of {", ".join(map(str, _LENGTHS))}')
    return super().settings()

  def phases(self) -> Sequence[work.Phase]:
    """Learns the hash, hashes, compares, joins, judges."""
    learn = [work.Phase(FIT, base.once, self._fit)] if (
        self.config.bits and not self._is_pdq) else []
    return (*learn, work.Phase(BITS, self.num_shards, self._hash),
            work.Phase(MEET, self._num_partitions, self._meet),
            work.Phase(joined.JOIN, base.once, self._join),
            work.Phase(verdicts.ROWS, self.num_shards, self._judge))

  @property
  def _is_pdq(self) -> bool:
    return self.config.kind == 'pdq'

  @property
  def _bits(self) -> int:
    return pdq.BITS if self._is_pdq else self.config.bits

  @property
  def _bands(self) -> int:
    return self._bits // _BAND_BITS

  @property
  def _max_distance(self) -> int:
    if self.config.max_distance is None:
      return _NEAR[self.config.kind]
    return self.config.max_distance

  def _num_partitions(self, place: work.Place) -> int:
    keys = self.num_rows(place) * (1 + self._bands)
    return max(min(-(-keys // _KEYS), _FEW), -(-keys // _MOST_KEYS))

  def _fit(self, place: work.Place, index: int) -> work.Counts:
    """Learns from images that are drawn from all that are alive."""
    c = self.config
    rows, keys = np.zeros(0, np.int64), np.zeros(0, np.uint64)
    for number, shard in enumerate(self.shard_rows(place)):
      more = np.flatnonzero(self.alive(place, number)) + shard.start
      rows = np.concatenate([rows, more])
      keys = np.concatenate([keys, draws.keys(more, c.seed, _FIT)])
      order = np.argsort(keys, kind='stable')[:c.fit_images]
      rows, keys = rows[order], keys[order]
    thumbnails = self._some_thumbnails(place, np.sort(rows))
    if len(rows) < 2 * c.bits:
      raise errors.UserError(
          f'hash.bits={c.bits} cannot be learned from {len(rows)} images: '
          'set hash.bits=0 for a pool as small as that')
    if len(rows) < _ENOUGH * c.bits:
      output.warn(
          f'hash.bits={c.bits} are learned from {len(rows)} images and want '
          f'{_ENOUGH * c.bits}: copies that were stored anew may be missed')
    hasher = pca_hash.fit(thumbnails, c.bits)
    np.savez(place.file(FIT, index, 'npz'), **dataclasses.asdict(hasher))
    return {}

  def _hasher(self, place: work.Place) -> pca_hash.Hasher:
    with np.load(place.checked(FIT, 0, 'npz')) as file:
      return pca_hash.Hasher(**file)

  def _hash(self, place: work.Place, index: int) -> work.Counts:
    """Keys of the rows of a shard, by partition."""
    source = self.input(place, 'pool')
    rows = self.shard_rows(place)[index]
    table = tables.read(source.checked(verdicts.ROWS, index), ['pixels_sha256'])
    alive = np.flatnonzero(self.alive(place, index))
    sums = np.frombuffer(b''.join(
        table['pixels_sha256'][i] for i in alive), np.uint8).reshape(-1, 32)
    width = max(self._bits // 8, 16)
    parts = [_Keys(sums[:, :8].copy().view('<u8')[:, 0],
                   np.full(len(alive), _EXACT, np.uint8), alive + rows.start,
                   _padded(sums[:, :16], width))]
    if self._bits:
      shown, bits = (self._pdq if self._is_pdq else self._pca)(
          place, index, alive)
      for band in range(self._bands):
        value = bits[:, 2 * band:2 * band + 2].copy().view('>u2')[:, 0]
        parts.append(_Keys(
            draws.keys(value, _BAND, band), np.full(len(bits), band, np.uint8),
            shown + rows.start, _padded(bits, width)))
    shuffle.write(place.file(BITS, index), dict(zip(
        _Keys.__annotations__, map(np.concatenate, zip(*map(
            dataclasses.astuple, parts), strict=True)), strict=True)),
                  key='key', num_partitions=self._num_partitions(place))
    return {}

  def _thumbnails(self, place: work.Place, index: int) -> np.ndarray:
    """[r, s, s] uint8 of a shard, mapped to memory."""
    return np.load(self.input(place, 'pool').checked(
        verdicts.ROWS, index, pool_rows.THUMBNAILS), mmap_mode='r')

  def _some_thumbnails(self, place: work.Place, rows: np.ndarray
                       ) -> np.ndarray:
    """[r, s, s] uint8 of rows, ascending."""
    out = None
    for number, shard in enumerate(self.shard_rows(place)):
      first, last = np.searchsorted(rows, (shard.start, shard.stop))
      some = self._thumbnails(place, number)
      if out is None:
        out = np.empty((len(rows), *some.shape[1:]), some.dtype)
      out[first:last] = some[rows[first:last] - shard.start]
    return out

  def _pca(self, place: work.Place, index: int, alive: np.ndarray
           ) -> tuple[np.ndarray, np.ndarray]:
    """Places in a shard of what is not blank, and its bits, packed."""
    thumbnails, hasher = self._thumbnails(place, index), self._hasher(place)
    shown, bits = [alive[:0]], [np.zeros((0, self._bits // 8), np.uint8)]
    for start in range(0, len(alive), pca_hash.BLOCK):
      some = alive[start:start + pca_hash.BLOCK]
      block = thumbnails[some].astype(np.float64)
      good = ~pca_hash.is_flat(block)
      shown.append(some[good])
      bits.append(hasher.bits(block[good]))
    return np.concatenate(shown), np.concatenate(bits)

  def _pdq(self, place: work.Place, index: int, alive: np.ndarray
           ) -> tuple[np.ndarray, np.ndarray]:
    """As `_pca`, of PDQ; images are decoded again."""
    shown, bits = [], [np.zeros((0, pdq.BITS // 8), np.uint8)]
    for some, pixels in decoded.read(self.images(place, index, alive)):
      rows, good = pdq.hashes(pixels)
      shown += alive[some[good]].tolist()
      bits.append(rows)
    return np.array(shown, np.int64), np.concatenate(bits)

  def _meet(self, place: work.Place, index: int) -> work.Counts:
    """Pairs of rows with a key in common that are near enough."""
    table = shuffle.read([place.checked(BITS, i) for i in range(
        place.count(BITS))], index)
    order = np.lexsort((table['row'], table['band'], table['key']))
    table = {name: values[order] for name, values in table.items()}
    pairs = list(self._pairs(table)) or [np.zeros((3, 0), np.int64)]
    a, b, distance = np.concatenate(pairs, axis=1)
    a, b, distance = _unique(a, b, distance)
    tables.write(place.file(MEET, index), {
        'a': a, 'b': b, 'distance': distance.astype(np.uint8)})
    return {'pairs': len(a)}

  def _pairs(self, table: dict[str, np.ndarray]) -> Iterator[np.ndarray]:
    """[3, pairs] rows a < b and the bits in which they differ."""
    key, band = table['key'], table['band']
    for step in range(1, min(self.config.max_bucket, len(key) - 1) + 1):
      same = np.flatnonzero((key[step:] == key[:-step])
                            & (band[step:] == band[:-step]))
      if not len(same):
        return
      distance = np.bitwise_count(
          table['value'][same] ^ table['value'][same + step]).sum(1)
      near = distance <= np.where(
          band[same] == _EXACT, 0, self._max_distance)
      yield np.stack([table['row'][same], table['row'][same + step],
                      distance])[:, near].astype(np.int64)

  def _join(self, place: work.Place, index: int) -> work.Counts:
    """Components of all pairs; of each the largest image stays."""
    del index
    union = components.Union(self.num_rows(place))
    for part in range(place.count(MEET)):
      pairs = tables.read(place.checked(MEET, part), ['a', 'b'])
      union.add(pairs['a'], pairs['b'])
    return joined.keep(self, place, union.labels(), largest=True)

  def _judge(self, place: work.Place, index: int) -> work.Counts:
    return joined.judge(self, place, index)


@dataclasses.dataclass
class _Keys:
  """Rows under keys."""

  key: np.ndarray  # [r] uint64
  band: np.ndarray  # [r] uint8
  row: np.ndarray  # [r] int64
  value: np.ndarray  # [r, bytes] uint8, compared


def _padded(values: np.ndarray, width: int) -> np.ndarray:
  return np.pad(values, ((0, 0), (0, width - values.shape[1])))


def _unique(a: np.ndarray, b: np.ndarray, distance: np.ndarray):
  """Each pair once, with its smallest distance."""
  order = np.lexsort((distance, b, a))
  a, b, distance = a[order], b[order], distance[order]
  first = np.ones(len(a), bool)
  first[1:] = (a[1:] != a[:-1]) | (b[1:] != b[:-1])
  return a[first], b[first], distance[first]

