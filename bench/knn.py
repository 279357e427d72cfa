"""Exact k-NN against faiss-cpu's IndexFlatIP on the same cores.

  python -m bench.knn [--repeats=3]

10,000 queries among 50,000 rows of 384 numbers, 200 neighbours, float32. Both
use all cores; OPENBLAS_CORETYPE and OPENBLAS_L2_SIZE must be unset, since they
slow faiss down. `ratio` is our least time over the peer's; `product` is that
of the matrix product alone. `agree` is the share of the neighbours that are
the same: rounding orders near ones differently. It needs faiss-cpu.
"""

import argparse
import json
import os
import time

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.features import nearest as nearest_lib

ROWS, QUERIES, DIM, NEIGHBOURS = 50_000, 10_000, 384, 200
_TILE = 256


def drawn(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """Rows and queries of length one."""
  rng = np.random.default_rng(seed)
  parts = [rng.normal(size=(count, DIM)).astype(np.float32)
           for count in (ROWS, QUERIES)]
  return tuple(x / np.linalg.norm(x, axis=1, keepdims=True) for x in parts)


def sides(train: np.ndarray, test: np.ndarray) -> dict:
  """Programs that are timed, by name; each gives the neighbours or nothing."""
  import faiss
  index = faiss.IndexFlatIP(DIM)
  index.add(train)
  rows = jnp.asarray(train)
  product = jax.jit(lambda a, b: jnp.einsum('qd,rd->qr', a, b))

  def products():
    for start in range(0, QUERIES, _TILE):
      product(test[start:start + _TILE], rows).block_until_ready()

  return {'ours': lambda: nearest_lib.nearest(train, test, NEIGHBOURS)[1],
          'faiss': lambda: index.search(test, NEIGHBOURS)[1],
          'product': products}


def main():
  """Measures in turns and prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--repeats', type=int, default=3)
  args = parser.parse_args()
  programs = sides(*drawn())
  times, answers = {name: [] for name in programs}, {}
  for repeat in range(-1, args.repeats):  # the first warms up
    for name, program in programs.items():
      start = time.perf_counter()
      answers[name] = program()
      if repeat >= 0:
        times[name].append(time.perf_counter() - start)
  least = {name: min(each) for name, each in times.items()}
  agree = np.mean([len(np.intersect1d(a, b)) for a, b in zip(
      answers['ours'][:500], answers['faiss'][:500], strict=True)])
  print(json.dumps({
      'bench': 'knn', 'peer': 'faiss-cpu IndexFlatIP', 'unit': 's',
      'ratio': round(least['ours'] / least['faiss'], 2),
      'product_ratio': round(least['product'] / least['faiss'], 2),
      **{name: round(value, 2) for name, value in least.items()},
      'agree': round(float(agree) / NEIGHBOURS, 4), 'repeats': args.repeats,
      'cpus': os.cpu_count()}))


if __name__ == '__main__':
  main()
