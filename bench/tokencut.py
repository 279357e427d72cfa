"""TokenCut's eigenvector: Lanczos on the device against LAPACK's two vectors.

  python -m bench.tokencut [--sides 30 45 60] [--repeats 5]

Features of a drawn scene, p = side² patches. The peer is scipy.linalg.eigh of
(D - A, D) for the second and third vector, as TokenCut asks for. Prints one
JSON line: seconds, the least of interleaved repeats, after compiling; `ratio`
is the peer's time divided by ours. `floor_s` is the time of one product of the
affinity with a vector, of which there are some dozens.
"""

import argparse
import json
import os
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from dinojax.evals import cut

_TAU, _EPS, _WIDTH = 0.2, 1e-5, 64


def main() -> int:
  """Measures, prints."""
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument('--sides', type=int, nargs='+', default=[30, 45, 60])
  parser.add_argument('--repeats', type=int, default=5)
  options = parser.parse_args()
  line = {'bench': 'tokencut', 'device': jax.devices()[0].device_kind,
          'cores': os.cpu_count(), 'repeats': options.repeats, 'sides': [
              measure(side, options.repeats) for side in options.sides]}
  print(json.dumps(line))
  return 0


def scene(side: int, seed: int = 0) -> np.ndarray:
  """[p, d] patches: an object on a background whose features drift."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[:side, :side] / side
  inside = (np.hypot(y - 0.45, x - 0.55) < 0.22)[..., None]
  first, second, drift = rng.normal(size=(3, _WIDTH))
  features = np.where(inside, first, second) + y[..., None] * drift
  features += 0.9 * rng.normal(size=features.shape)
  return features.reshape(side * side, _WIDTH).astype(np.float32)


def measure(side: int, repeats: int) -> dict:
  """Times of a grid of patches."""
  features = scene(side)
  valid = jnp.ones(len(features), bool)
  matrix = jax.jit(cut.affinity)(features, _TAU, _EPS)
  vector = jnp.ones(len(features))
  product = jax.jit(lambda a, x: a @ x)
  ours = lambda: [np.asarray(x) for x in cut.second_vector(
      features, valid, _TAU, _EPS)]
  floor = lambda: product(matrix, vector).block_until_ready()
  dense = np.asarray(matrix, np.float64)
  degree = np.diag(dense.sum(1))
  peer = lambda: scipy.linalg.eigh(
      degree - dense, degree, subset_by_index=[1, 2])
  (got, values, converged), (want, vectors) = ours(), peer()
  floor()
  sign = np.sign(np.vdot(got, vectors[:, 0]))
  times: dict[str, list[float]] = {'ours': [], 'peer': [], 'floor': []}
  for _ in range(repeats):
    for name, call in (('ours', ours), ('peer', peer), ('floor', floor)):
      began = time.perf_counter()
      call()
      times[name].append(time.perf_counter() - began)
  least = {name: min(some) for name, some in times.items()}
  return {
      'side': side, 'ours_s': round(least['ours'], 4),
      'peer_s': round(least['peer'], 4), 'floor_s': round(least['floor'], 5),
      'ratio': round(least['peer'] / least['ours'], 2),
      'converged': bool(converged),
      'eigenvalues': [round(float(x), 6) for x in want],
      'eigenvalue_gap': float(np.abs(values - want).max()),
      'vector_gap': float(np.abs(sign * got - vectors[:, 0]).max()
                          / np.abs(vectors[:, 0]).max())}


if __name__ == '__main__':
  sys.exit(main())
