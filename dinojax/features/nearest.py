"""The nearest rows by cosine or inner product, on all devices of a mesh.

Rows are split over the devices in tiles, whose size hangs on their number
alone, so that every product is the same on any mesh. A device looks for the
best blocks of neighbouring rows by their maxima, and for the best rows in those
only: the k nearest are always in the k best blocks.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import sharding

_TEST_TILE, _TRAIN_TILE = 512, 2048
_CPU_TILE = 128  # test rows of a processor, whose caches are small
_BLOCK = 8  # values whose maximum stands for them
_AT_ONCE = 32  # tiles of a device whose products are a single one
_LARGE = 8  # times as large are tiles of more rows than that


def unit(features: jax.Array) -> jax.Array:
  """[r, d] rows of length one, float32."""
  features = features.astype(jnp.float32)
  norm = jnp.linalg.norm(features, axis=-1, keepdims=True)
  return features / jnp.maximum(norm, 1e-12)


def nearest(train: np.ndarray, test: np.ndarray, k: int,
            mesh: jax.sharding.Mesh | None = None, *, cosine: bool = True
            ) -> tuple[np.ndarray, np.ndarray]:
  """Similarities and rows of the k nearest train features.

  Args:
    train: [r, d] features, the same on all processes.
    test: [q, d] features, the same on all processes.
    k: neighbours, at most r.
    mesh: devices, all of whose processes take part; None: the first of this
      process. A device holds its rows and 512 · 4 bytes more for each of
      them: 1.28 M × 1024 take 5.3 + 2 × 2.6 GB of one chip.
    cosine: False: features are taken as they are, for their inner products.

  Returns:
    [q, k] float32 by falling similarity, the earlier of equal ones first, and
    [q, k] int32; the same on every mesh.
  """
  mesh = mesh or mesh_lib.make(devices=mesh_lib.one_device())
  tiles, first = _placed(np.asarray(train), mesh, cosine)
  count, parts, size = len(train), [], _TEST_TILE
  if mesh_lib.platform(mesh) == 'cpu':
    size = min(size, _CPU_TILE)
  with mesh_lib.activate(mesh):
    for start in range(0, len(test), size):
      some = np.asarray(test[start:start + size], np.float32)
      rows = np.zeros((size, some.shape[1]), np.float32)
      rows[:len(some)] = some
      parts.append(_search(rows, tiles, first, count, k, cosine))
      if len(parts) > 1:  # a device works meanwhile
        parts[-2] = [np.asarray(x) for x in parts[-2]]
  similarity, index = (np.concatenate(p) for p in zip(*parts, strict=True))
  return similarity[:len(test)], index[:len(test)]


def _placed(train: np.ndarray, mesh: jax.sharding.Mesh, cosine: bool
            ) -> tuple[jax.Array, jax.Array]:
  """[t, r, d] rows, and the number [t] of each tile's first row."""
  count, width = train.shape
  most = _TRAIN_TILE * (_LARGE if count > _AT_ONCE * _TRAIN_TILE else 1)
  size = -(-min(most, count) // _BLOCK ** 2) * _BLOCK ** 2
  number = -(-count // size)
  number = -(-number // mesh.size) * mesh.size
  split = jax.NamedSharding(mesh, mesh_lib.ROWS)

  def tile(index: tuple[slice, ...]) -> np.ndarray:
    start, stop, _ = index[0].indices(number)
    some = train[start * size:stop * size].astype(np.float32)
    out = np.zeros(((stop - start) * size, width), np.float32)
    out[:len(some)] = some if not cosine else some / np.maximum(
        np.linalg.norm(some, axis=1, keepdims=True), 1e-12)
    if len(some):  # so that no block has a maximum that none of its rows has
      out[len(some):] = out[len(some) - 1]
    return out.reshape(stop - start, size, width)

  return (jax.make_array_from_callback((number, size, width), split, tile),
          jax.make_array_from_callback(
              (number,), split,
              lambda index: np.arange(number, dtype=np.int32)[index] * size))


@functools.partial(jax.jit, static_argnums=(4, 5))
def _search(rows: jax.Array, tiles: jax.Array, first: jax.Array,
            count: jax.Array, k: int, cosine: bool
            ) -> tuple[jax.Array, jax.Array]:
  """Similarities and indices [q, k] of the nearest, on all devices."""
  local = functools.partial(_of_device, k=k)
  # [t, q, k] of every device, in the order of the rows that they hold.
  similarity, index = jax.shard_map(
      local, in_specs=(jax.P(), mesh_lib.ROWS, mesh_lib.ROWS, jax.P()),
      out_specs=mesh_lib.ROWS)(
          unit(rows) if cosine else rows, tiles, first, count)
  if similarity.shape[0] == 1:
    return similarity[0], index[0]
  flat = lambda x: jnp.moveaxis(sharding.constrain(x, jax.P()), 0, 1).reshape(
      x.shape[1], -1)
  similarity, index = flat(similarity), flat(index)
  best, place = jax.lax.top_k(similarity, k)
  return best, jnp.take_along_axis(index, place, axis=1)


def _of_device(rows: jax.Array, tiles: jax.Array, first: jax.Array,
               count: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  """[1, q, ≤ k] nearest of a device's own rows."""
  number, size, width = tiles.shape
  product = functools.partial(
      jnp.einsum, 'qd,rd->qr', rows, precision='highest')
  # The products of a tile are the same alone and among others, to the bit.
  similarity = (
      product(tiles.reshape(-1, width)) if number <= _AT_ONCE else
      jnp.moveaxis(jax.lax.map(product, tiles), 0, 1).reshape(len(rows), -1))
  place = (first[:, None] + jnp.arange(size)[None]).reshape(-1)
  best, chosen = _largest(similarity, place < count, min(k, number * size))
  return best[None], place[chosen][None]


def _largest(values: jax.Array, known: jax.Array, k: int,
             blocks: tuple[int, ...] = (_BLOCK, _BLOCK)
             ) -> tuple[jax.Array, jax.Array]:
  """The k largest of [q, n] and their places, the earlier of equal ones first.

  They lie in the k blocks of the largest maxima, which are found the same way.

  Args:
    values: [q, n]; those that are not known do not exceed a known one of their
      block, if it has any.
    known: [n], first those that count.
    k: how many.
    blocks: values whose maximum stands for them, and maxima for which one of
      them stands.
  """
  count, (size, *rest) = values.shape[1], blocks or (0,)
  if not size or count % size or count <= k * size:
    return jax.lax.top_k(jnp.where(known[None], values, -jnp.inf), k)
  grouped, inner = values.reshape(len(values), -1, size), known.reshape(
      -1, size)
  highest, chosen = _largest(grouped.max(-1), inner[:, 0], k, tuple(rest))
  chosen = jnp.sort(chosen, axis=1)  # so that the earlier of equal ones leads
  candidates = jnp.take_along_axis(grouped, chosen[..., None], axis=1)
  # k blocks reach this value, so that no lower one is among the k largest; the
  # selection passes over them quickly. A minimum, since the compiler would
  # sort all maxima if it saw the last of them sliced off.
  least = highest.min(1)[:, None, None]
  candidates = jnp.where(
      inner[chosen] & (candidates >= least), candidates, -jnp.inf)
  best, order = jax.lax.top_k(candidates.reshape(len(values), -1), k)
  block = jnp.take_along_axis(chosen, order // size, axis=1)
  return best, block * size + order % size
