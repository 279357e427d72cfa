"""k-means of rows that may be larger than memory, on all devices of a mesh.

Rows are read in tiles. Every device keeps sums of its own and they meet once
a pass, so that a pass costs the products and one sum over the mesh. Rows are
centred before anything else: then x · c − |c|²/2 in float32 ranks centroids as
float64 does, however far from the origin the rows lie.
"""

from collections.abc import Callable, Iterator
import dataclasses
import functools
import math
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.core import errors
from dinojax.curate import kmeans_host
from dinojax.parallel import mesh as mesh_lib

# Similarities of a tile: of a processor as fit its cache, of a chip as fill it.
_CPU_SCORES, _SCORES = 2**22, 2**27
_FARTHEST = 1024  # rows that may become centroids of empty clusters
EMPTY = ('reseed', 'keep')


class Rows(Protocol):
  """Vectors that are read in slices: an array, or a file mapped to memory."""

  shape: tuple[int, int]

  def __getitem__(self, part: slice) -> np.ndarray:
    """[r, d] of any float dtype."""


@dataclasses.dataclass(frozen=True)
class Clusters:
  """Centroids, and how well they fit their rows."""

  centroids: np.ndarray  # [k, d] float32
  counts: np.ndarray  # [k] int64 rows nearest to each
  inertia: float  # squared distances of rows to the means of their clusters
  iterations: int


@dataclasses.dataclass(frozen=True)
class Begun:
  """A k-means between two passes.

  Attributes:
    number: passes made.
    centroids: [k, d] float64, less the mean of the rows.
    cost: squared distances of the last pass.
  """

  number: int
  centroids: np.ndarray
  cost: float


@dataclasses.dataclass(frozen=True)
class _Pass:
  """Sums of a pass over all rows."""

  sums: np.ndarray  # [k, d] float64, of centred rows
  counts: np.ndarray  # [k] int64
  cost: float  # squared distances to the centroids
  farthest: np.ndarray  # [r, d] rows, farthest first

  def means(self, centroids: np.ndarray) -> np.ndarray:
    """[k, d] means of the rows; of a cluster without any its centroid."""
    counts = self.counts[:, None]
    return np.where(counts > 0, self.sums / np.maximum(counts, 1), centroids)


def fit(rows: Rows, initial: np.ndarray | Begun, *, iterations: int,
        mesh: jax.sharding.Mesh | None = None, empty: str = 'reseed',
        tolerance: float = 0.0, settle: bool = True,
        passed: Callable[[int, float], None] = lambda number, cost: None,
        keep: Callable[[Begun], None] = lambda begun: None) -> Clusters:
  """Moves centroids to the means of their rows, again and again.

  Args:
    rows: [n, d].
    initial: [k, d] centroids to begin with; or what `keep` got, from where it
      goes on to the same end.
    iterations: moves, at most.
    mesh: devices of this process; None: its accelerators, and faiss on its
      cores where it has none.
    empty: a cluster without rows is put at a row that is far from its
      centroid ('reseed'), or stays where it was ('keep').
    settle: makes one pass more, to tell counts and inertia of the last
      centroids; else they are of the rows as they were last assigned.
    tolerance: ends when the cost falls by less than this part of it; 0: never.
    passed: gets the number of the pass and its cost, squared distances.
    keep: gets the state before every pass.

  Raises:
    UserError: rows and centroids of different widths, or too few rows.

  Source: Lloyd's iteration. Vo et al. 2024 always make 50.
  Differs: float32 of centred rows instead of float64; sums are compensated.
  """
  begun = initial if isinstance(initial, Begun) else None
  centroids = begun.centroids if begun else initial
  _check(rows, centroids, empty)
  tiles = _passes(rows, len(centroids), mesh)
  if not begun:
    begun = Begun(0, np.asarray(initial, np.float64) - tiles.shift, math.inf)
  last, centroids, number = begun.cost, begun.centroids, begun.number
  end = iterations + (settle or not iterations)
  for number in range(begun.number, end):
    keep(Begun(number, centroids, last))
    passage = _Pass(*tiles.sums(centroids, exact=settle and number == end - 1))
    passed(number, passage.cost)
    before = centroids
    if number == iterations or (
        tolerance and last - passage.cost < tolerance * passage.cost):
      break
    last = passage.cost
    centroids = _moved(centroids, passage, empty)
  else:
    number += 1
  # Distances to the means: those to the centroids, less how far these are.
  moves = passage.means(before) - before
  off = (passage.counts * np.square(moves).sum(1)).sum()
  return Clusters((centroids + tiles.shift).astype(np.float32), passage.counts,
                  max(passage.cost - off, 0.0), number)


def assign(rows: Rows, centroids: np.ndarray, *,
           mesh: jax.sharding.Mesh | None = None
           ) -> tuple[np.ndarray, np.ndarray]:
  """Nearest centroid of every row, the lowest of equally near ones.

  Returns:
    [n] int32 centroids, and [n] float32 squared distances to them.
  """
  _check(rows, centroids, 'keep', fewer_rows=True)
  tiles = _passes(rows, len(centroids), mesh)
  labels = np.empty(rows.shape[0], np.int32)
  distances = np.empty(rows.shape[0], np.float32)
  for start, stop, label, distance in tiles.nearest(
      np.asarray(centroids, np.float64) - tiles.shift):
    labels[start:stop], distances[start:stop] = label, distance
  return labels, distances


def _check(rows: Rows, centroids: np.ndarray, empty: str, *,
           fewer_rows: bool = False):
  """Raises a UserError for what does not fit together."""
  (n, width), (k, other) = rows.shape, centroids.shape
  if width != other:
    raise errors.UserError(
        f'rows have {width} dimensions and centroids {other}: describe both '
        'with the same model')
  if k < 1 or n < 1 or (n < k and not fewer_rows):
    raise errors.UserError(
        f'{n} rows cannot be divided into {k} clusters: ask for at most {n}')
  if empty not in EMPTY:
    raise errors.UserError(
        f'empty={empty!r} is not known: give {" or ".join(EMPTY)}')


def _moved(centroids: np.ndarray, passage: _Pass, empty: str) -> np.ndarray:
  """Centroids at the means of their rows."""
  out = passage.means(centroids)
  if empty == 'reseed':
    free = np.flatnonzero(passage.counts == 0)[:len(passage.farthest)]
    out[free] = passage.farthest[:len(free)]
  return out


def _passes(rows: Rows, k: int, mesh: jax.sharding.Mesh | None):
  """Passes over the rows, by devices of a mesh or by this process's cores."""
  count, width = rows.shape
  total = np.zeros(width)
  for start in range(0, count, 65_536):
    total += np.asarray(rows[start:start + 65_536], np.float32).sum(
        0, dtype=np.float64)
  # What float32 cannot hold of a mean moves all rows alike.
  shift = (total / count).astype(np.float32).astype(np.float64)
  mesh = mesh or mesh_lib.accelerators()
  if mesh is None:
    return kmeans_host.Passes(rows, shift, _FARTHEST)
  return _Tiles(rows, k, mesh, shift)


class _Tiles:
  """Rows, tile by tile, on the devices of a mesh."""

  def __init__(self, rows: Rows, k: int, mesh: jax.sharding.Mesh,
               shift: np.ndarray):
    """Chooses the size of a tile."""
    self._mesh, self.shift = mesh, shift
    self._rows, (self._count, self._width) = rows, rows.shape
    scores = (_CPU_SCORES if mesh_lib.platform(mesh) == 'cpu' else _SCORES)
    most = max(scores // max(k, self._width), 128)
    each = min(most, -(-self._count // self._mesh.size))
    self._size = each * self._mesh.size

  def _each(self) -> Iterator[tuple[int, int, jax.Array]]:
    """First row, last row and tile [size, d]."""
    split = jax.NamedSharding(self._mesh, mesh_lib.ROWS)
    for start in range(0, self._count, self._size):
      some = np.asarray(self._rows[start:start + self._size])
      stop = start + len(some)
      if len(some) < self._size:
        some = np.concatenate([some, np.zeros(
            (self._size - len(some), self._width), some.dtype)])
      yield start, stop, jax.device_put(some, split)

  def _whole(self, x: np.ndarray) -> jax.Array:
    return jax.device_put(np.asarray(x, np.float32),
                          jax.NamedSharding(self._mesh, jax.P()))

  def sums(self, centroids: np.ndarray, *, exact: bool) -> tuple:
    """One pass over all rows, the values of a _Pass, whose cost is exact."""
    del exact
    k, mesh = len(centroids), self._mesh
    with mesh_lib.activate(mesh):
      fixed = self._whole(centroids), self._whole(self.shift)
      far = min(_FARTHEST, k, self._size // mesh.size)
      state = _zeros(mesh, k, self._width, far)
      for start, stop, tile in self._each():
        state = _add(state, tile, stop - start, *fixed)
      sums, lost, counts, cost, distance, farthest = map(
          np.asarray, jax.device_get(state))
    order = np.argsort(-distance.ravel(), kind='stable')
    order = order[distance.ravel()[order] > 0][:_FARTHEST]
    whole = lambda total, lost: (total.astype(np.float64) - lost).sum(0)
    return (whole(sums, lost), counts.sum(0, dtype=np.int64),
            float(whole(cost[:, 0], cost[:, 1])),
            farthest.reshape(-1, self._width)[order])

  def nearest(self, centroids: np.ndarray) -> Iterator[tuple]:
    """First row, last row, centroids and squared distances of a tile."""
    with mesh_lib.activate(self._mesh):
      fixed = self._whole(centroids), self._whole(self.shift)
      waiting = None
      for start, stop, tile in self._each():
        passage = start, stop, _nearest(tile, *fixed)
        if waiting:
          yield self._of_host(*waiting)
        waiting = passage
      if waiting:
        yield self._of_host(*waiting)

  def _of_host(self, start, stop, passage):
    label, distance = jax.device_get(passage)
    return start, stop, label[:stop - start], distance[:stop - start]


def _closest(x: jax.Array, centroids: jax.Array
             ) -> tuple[jax.Array, jax.Array]:
  """Nearest of [k, d] centroids for rows [r, d], and squared distances [r]."""
  score = jnp.einsum('rd,kd->rk', x, centroids, precision='highest')
  label = jnp.argmax(score - 0.5 * jnp.square(centroids).sum(1)[None], axis=1)
  return label, jnp.square(x - centroids[label]).sum(1)


@jax.jit
def _nearest(tile: jax.Array, centroids: jax.Array, shift: jax.Array):
  """[r] centroids and squared distances of the rows of a tile."""
  def local(tile, centroids, shift):
    label, distance = _closest(
        tile.astype(jnp.float32) - shift[None], centroids)
    return label.astype(jnp.int32), distance
  return jax.shard_map(
      local, in_specs=(mesh_lib.ROWS, jax.P(), jax.P()),
      out_specs=mesh_lib.ROWS)(tile, centroids, shift)


def _zeros(mesh: jax.sharding.Mesh, k: int, width: int, far: int) -> tuple:
  """Sums of every device, before the first tile."""
  shapes = ((k, width), (k, width), (k,), (2,), (far,), (far, width))
  dtypes = (*[np.float32] * 2, np.int32, *[np.float32] * 3)
  return tuple(
      jax.device_put(np.zeros((mesh.size, *shape), dtype),
                     jax.NamedSharding(mesh, mesh_lib.ROWS))
      for shape, dtype in zip(shapes, dtypes, strict=True))


@functools.partial(jax.jit, donate_argnums=0)
def _add(state: tuple, tile: jax.Array, count: jax.Array,
         centroids: jax.Array, shift: jax.Array) -> tuple:
  """Adds the rows of a tile to the sums of the devices that hold them."""
  index = jnp.arange(len(tile))

  def local(state, tile, index, count, centroids, shift):
    sums, lost, counts, cost, distances, farthest = (x[0] for x in state)
    x = tile.astype(jnp.float32) - shift[None]
    real = index < count
    label, distance = _closest(x, centroids)
    distance = jnp.where(real, distance, 0.0)
    x = jnp.where(real[:, None], x, 0.0)
    k = len(centroids)
    added = jax.ops.segment_sum(x, label, k)
    sums, lost = _compensated(sums, lost, added)
    counts = counts + jax.ops.segment_sum(real.astype(jnp.int32), label, k)
    cost = jnp.stack(_compensated(cost[0], cost[1], distance.sum()))
    # Rows of earlier tiles come first, so that of equal ones they stay.
    best, place = jax.lax.top_k(
        jnp.concatenate([distances, distance]), len(distances))
    farthest = jnp.concatenate([farthest, x])[place]
    return tuple(y[None] for y in (
        sums, lost, counts, cost, best, farthest))

  return jax.shard_map(
      local, in_specs=(mesh_lib.ROWS, mesh_lib.ROWS, mesh_lib.ROWS, jax.P(),
                       jax.P(), jax.P()),
      out_specs=mesh_lib.ROWS)(
          state, tile, jax.sharding.reshard(index, mesh_lib.ROWS), count,
          centroids, shift)


def _compensated(total: jax.Array, lost: jax.Array,
                 added: jax.Array) -> tuple[jax.Array, jax.Array]:
  """A sum, and what its rounding lost so far (Kahan)."""
  added = added - lost
  new = total + added
  return new, (new - total) - added
