"""Nearest rows by cosine: exact, or by an inverted file of faiss.

Whole files of vectors are gone through block by block, so that memory is that
of a block whatever their number.
"""

from collections.abc import Callable
import math

import jax
import numpy as np

from dinojax.curate import draws
from dinojax.curate import libraries
from dinojax.curate import vectors as vectors_lib
from dinojax.features import nearest
from dinojax.parallel import mesh as mesh_lib

_BLOCK = 65_536  # vectors in memory as float32
_TRAINED = 39  # vectors for each list that an inverted file learns from
_DRAW = 21  # stream of random numbers
EXACT_BELOW = 1_000_000  # rows: beyond, an inverted file costs less

Hits = tuple[np.ndarray, np.ndarray]
Search = Callable[[np.ndarray, int], Hits]


def exact(vectors: vectors_lib.Vectors,
          mesh: jax.sharding.Mesh | None = None) -> Search:
  """Search through all vectors, block by block.

  Args:
    vectors: vectors that are searched.
    mesh: devices of this process; None: its accelerators, and faiss where it
      has none, which is the quicker on processors.

  Returns:
    A function of queries [q, d] and k: scores [q, k], falling, and places
    [q, k] among the vectors; −1 where there are fewer. Of equal scores the
    smaller place comes first.
  """
  def search(queries: np.ndarray, k: int) -> Hits:
    devices = mesh or mesh_lib.accelerators()
    queries = np.ascontiguousarray(queries, np.float32)
    best = (np.zeros((len(queries), 0), np.float32),
            np.zeros((len(queries), 0), np.int64))
    for start, block in vectors.blocks(_BLOCK):
      score, place = _block(queries, block, min(k, len(block)), devices)
      best = _better(best, (score, place + start), k)
    return _filled(best, k)

  return search


def _block(queries: np.ndarray, block: np.ndarray, k: int,
           mesh: jax.sharding.Mesh | None) -> Hits:
  """The best k of a block, as `exact`."""
  if mesh is not None:
    return nearest.nearest(block, queries, k, mesh, cosine=False)
  faiss = libraries.faiss()
  return faiss.knn(queries, np.ascontiguousarray(block, np.float32), k,
                   faiss.METRIC_INNER_PRODUCT)


def among(few: np.ndarray, queries: np.ndarray, k: int) -> Hits:
  """The best k of vectors [n, d] in memory for queries [q, d], as `exact`."""
  faiss = libraries.faiss()
  score, place = faiss.knn(
      np.ascontiguousarray(queries, np.float32),
      np.ascontiguousarray(few, np.float32), min(k, len(few)),
      faiss.METRIC_INNER_PRODUCT)
  return _filled((score, place), k)


def lists_of(count: int) -> int:
  """Number of lists of an inverted file of so many vectors."""
  return max(min(int(8 * math.sqrt(count)), count // _TRAINED), 1)


def trained_on(count: int) -> int:
  """Number of vectors that those lists are learned from."""
  return min(lists_of(count) * _TRAINED, count)


def build(vectors: vectors_lib.Vectors, path: str, *, seed: int = 0):
  """Writes an inverted file of all vectors, as float16.

  Args:
    vectors: at least one.
    path: file to write.
    seed: number of the draw that its lists are learned from.
  """
  faiss = libraries.faiss()
  count, width = vectors.shape
  lists = lists_of(count)
  index = faiss.IndexIVFScalarQuantizer(
      faiss.IndexFlatIP(width), width, lists,
      faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False)
  index.train(drawn(vectors, trained_on(count), seed))
  for _, block in vectors.blocks(_BLOCK):
    index.add(np.ascontiguousarray(block, np.float32))
  faiss.write_index(index, path)


def inverted(path: str, probes: int) -> Search:
  """Search through the nearest lists of an inverted file, as `exact`."""
  faiss = libraries.faiss()
  index = faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC)
  index.nprobe = min(probes, index.nlist)

  def search(queries: np.ndarray, k: int) -> Hits:
    score, place = index.search(np.ascontiguousarray(queries, np.float32), k)
    return np.where(place < 0, -np.inf, score), place

  return search


def drawn(vectors: vectors_lib.Vectors, count: int, seed: int) -> np.ndarray:
  """[count, d] float32 vectors, drawn by their rows; all of fewer."""
  if count >= len(vectors):
    return np.asarray(vectors[:], np.float32)
  keys = draws.keys(vectors.rows, seed, _DRAW)
  chosen = np.sort(np.argpartition(keys, count)[:count])
  return at(vectors, chosen)


def at(vectors: vectors_lib.Vectors, places: np.ndarray) -> np.ndarray:
  """[r, d] float32 vectors at ascending places."""
  out = np.zeros((len(places), vectors.shape[1]), np.float32)
  for start, block in vectors.blocks(_BLOCK):
    inside = slice(*np.searchsorted(places, (start, start + len(block))))
    out[inside] = block[places[inside] - start]
  return out


def edges(queries: np.ndarray, rows: np.ndarray, all_rows: np.ndarray,
          search: Search, *, k: int, floor: float) -> dict[str, np.ndarray]:
  """Edges from rows to their nearest others, those above a score.

  Args:
    queries: [q, d] vectors of `rows`.
    rows: [q] rows of the pool.
    all_rows: [n] rows of all vectors that are searched.
    search: see `exact`.
    k: neighbours of each row, itself not counted.
    floor: scores strictly above it are kept.

  Returns:
    a, b: [edges] rows, a below b; score: [edges] float32.
  """
  score, place = search(queries, min(k + 1, len(all_rows)))
  near = np.where(place < 0, -1, all_rows[place])
  far = np.repeat(rows[:, None], near.shape[1], 1)
  # A row is left out of its own neighbours, or else the last of them.
  itself = near == far
  itself[~itself.any(1), k:] = True
  good = ~itself & (near >= 0) & (score > floor)
  a, b = far[good], near[good]
  return {'a': np.minimum(a, b), 'b': np.maximum(a, b),
          'score': score[good].astype(np.float32)}


def _better(first: Hits, second: Hits, k: int) -> Hits:
  """The best k of two lists for each query, by score, then by place."""
  score, place = (np.concatenate(pair, axis=1) for pair in zip(
      first, second, strict=True))
  order = np.lexsort((place, -score))[:, :k]
  return (np.take_along_axis(score, order, 1),
          np.take_along_axis(place, order, 1))


def _filled(hits: Hits, k: int) -> Hits:
  score, place = hits
  more = ((0, 0), (0, k - score.shape[1]))
  return (np.pad(score, more, constant_values=-np.inf),
          np.pad(place, more, constant_values=-1))
