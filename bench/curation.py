"""Curation's algorithms against faiss and scipy, and a chain on images.

  python -m bench.curation [--parts=graph,kmeans,hierarchy,allocation,
      components,chain] [--repeats=3] [--data=DIR]
  python -m bench.curation --parts=ray --address=HOST:PORT

graph: 64 neighbours of rows among 100,000 × 256, by the default of a processor
(faiss, block by block) and by the search of accelerators, against faiss's
IndexFlatIP. kmeans: 1,000 clusters of the same rows, ten iterations, against
faiss.Kmeans from the same centroids. hierarchy: two levels of 500 and 100 of
19,950 unit rows of a hundred concepts, three seeds: seconds, and the divergence
of the concepts that are drawn from equal shares. allocation: a budget shared by
a million clusters. components: ten million edges over twenty million rows, in
sixteen parts, against scipy at once; seconds, and bytes at most. chain: ingest,
filter, hash and materialize of the folders in DIR that are named, images a
second of a core. ray: the same chain of a hundred times flowers5 by two workers
here, and by a cluster of two cores, each of which did it in small before.

Sides take turns, least times count. Prints a JSON line a part.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

from dinojax.curate import balance
from dinojax.curate import components
from dinojax.curate import hierarchy
from dinojax.curate import kmeans
from dinojax.curate import neighbors
from dinojax.parallel import mesh as mesh_lib

ROWS, WIDTH, NEIGHBOURS, QUERIES = 100_000, 256, 64, 10_000
CLUSTERS, ITERATIONS = 1000, 10
FOLDERS = ('flowers5', 'cifar10_jpeg')


class Rows:
  """Rows in memory, read as a curation's vectors are."""

  def __init__(self, array: np.ndarray):
    self._array, self.shape = array, array.shape
    self.rows = np.arange(len(array))

  def __len__(self) -> int:
    return len(self._array)

  def __getitem__(self, part):
    return self._array[part]

  def blocks(self, size: int):
    """First place and rows, so many at a time."""
    for start in range(0, len(self), size):
      yield start, self._array[start:start + size]


def clustered(rows: int, width: int, seed: int = 0) -> np.ndarray:
  """Unit rows around two thousand centers, float16."""
  rng = np.random.default_rng(seed)
  centers = rng.normal(size=(2000, width))
  x = centers[rng.integers(0, 2000, rows)] + rng.normal(size=(rows, width))
  return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)


def timed(programs: dict, repeats: int) -> tuple[dict, dict]:
  """Least seconds, and answers, of programs that take turns."""
  times, answers = {name: [] for name in programs}, {}
  for repeat in range(-1, repeats):
    for name, program in programs.items():
      began = time.perf_counter()
      answers[name] = program()
      if repeat >= 0:
        times[name].append(time.perf_counter() - began)
  return {name: round(min(each), 3) for name, each in times.items()}, answers


def graph(options) -> dict:
  """Neighbours of some of the rows among all."""
  import faiss
  x = clustered(ROWS, WIDTH)
  queries, single = x[:QUERIES].astype(np.float32), x.astype(np.float32)
  index = faiss.IndexFlatIP(WIDTH)
  index.add(single)
  mesh = mesh_lib.make(devices=mesh_lib.one_device())
  search = lambda mesh: neighbors.exact(Rows(x), mesh)(queries, NEIGHBOURS)[1]
  seconds, answers = timed({
      'faiss': lambda: index.search(queries, NEIGHBOURS)[1],
      'ours': lambda: search(None), 'mesh': lambda: search(mesh)},
                           options.repeats)
  agree = lambda name: round(float(np.mean([len(np.intersect1d(a, b)) for a, b
      in zip(answers[name][:500], answers['faiss'][:500], strict=True)])
                                   / NEIGHBOURS), 4)
  return {'s': seconds, 'ratio': round(seconds['ours'] / seconds['faiss'], 2),
          'mesh_ratio': round(seconds['mesh'] / seconds['faiss'], 2),
          'agree': agree('ours'), 'mesh_agree': agree('mesh')}


def k_means(options) -> dict:
  """Lloyd's iteration from the same centroids, by cores and by devices."""
  import faiss
  x = clustered(ROWS, WIDTH)
  single, initial = x.astype(np.float32), x[:CLUSTERS].astype(np.float32)
  mesh = mesh_lib.make(devices=mesh_lib.one_device())

  def peer():
    fitted = faiss.Kmeans(WIDTH, CLUSTERS, niter=ITERATIONS, nredo=1,
                          max_points_per_centroid=ROWS)
    fitted.train(single, init_centroids=initial)
    return fitted.obj[-1]

  ours = lambda mesh: kmeans.fit(
      Rows(x), initial, iterations=ITERATIONS, mesh=mesh,
      settle=False).inertia
  seconds, answers = timed({
      'faiss': peer, 'ours': lambda: ours(None), 'mesh': lambda: ours(mesh)},
                           options.repeats)
  return {'s': seconds, 'ratio': round(seconds['ours'] / seconds['faiss'], 2),
          'mesh_ratio': round(seconds['mesh'] / seconds['faiss'], 2),
          'inertia_ratio': round(answers['ours'] / answers['faiss'], 5),
          'mesh_inertia_ratio': round(
              answers['mesh'] / answers['faiss'], 5)}


def concepts(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """19,950 unit rows of a hundred concepts of 22 to 5,550, and the concepts."""
  rng = np.random.default_rng(seed)
  sizes = np.arange(1, 101) ** -1.2
  sizes = np.maximum(np.round(sizes / sizes[0] * 5550), 22).astype(int)
  sizes[1] += 19_950 - sizes.sum()
  of = np.repeat(np.arange(100), sizes)
  centers = rng.normal(size=(100, 64))
  centers /= np.linalg.norm(centers, axis=1, keepdims=True)
  x = centers[of] + 0.1 * rng.normal(size=(len(of), 64))
  return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), of


def divergence(of: np.ndarray, counts: np.ndarray) -> float:
  """Of the concepts that were drawn, from equal shares, in nats."""
  share = np.bincount(of, counts, 100) / counts.sum()
  share = share[share > 0]
  return float((share * np.log(share * 100)).sum())


def drawn(rows: np.ndarray, of: np.ndarray, sizes, seed: int
          ) -> tuple[float, float]:
  """Seconds of a hierarchy and of the draw from it, and the divergence."""
  began, labels, at = time.perf_counter(), [], rows
  for size in sizes:
    fitted = hierarchy.fit(at, hierarchy.Level(size), iterations=50, seed=seed)
    labels.append(fitted.labels)
    at = fitted.centroids
  budgets = balance.cluster_budgets(
      np.bincount(labels[0], minlength=sizes[0]), labels[1:], 2000, seed=seed)
  counts = balance.point_counts(labels[0], budgets[0], seed=seed)
  return time.perf_counter() - began, divergence(of, counts)


def hierarchies(options) -> dict:
  """Two levels, and one, of three seeds."""
  del options
  rows, of = concepts()
  out = {'pool': round(divergence(of, np.ones(len(of))), 3)}
  for sizes in ((500,), (500, 100)):
    drawn(rows, of, sizes, 9)  # compiles
    made = [drawn(rows, of, sizes, seed) for seed in range(3)]
    seconds, off = np.median(made, axis=0)
    out[str(list(sizes))] = {'s': round(seconds, 2), 'kl': round(off, 3)}
  return out


def allocation(options) -> dict:
  """A budget of a million clusters."""
  rng = np.random.default_rng(0)
  sizes = np.minimum(rng.zipf(1.3, 1_000_000), 100_000)
  above = [rng.integers(0, 10_000, 1_000_000), rng.integers(0, 100, 10_000)]
  seconds, _ = timed({'ours': lambda: balance.cluster_budgets(
      sizes, above, 10_000_000, seed=0)}, options.repeats)
  return {'s': seconds['ours'], 'images': int(sizes.sum())}


_EDGES, _NODES, _PARTS = 10_000_000, 20_000_000, 16


def _most_mb() -> int:
  """The most memory of this process; not of the one that started it."""
  text = pathlib.Path('/proc/self/status').read_text()
  return int(text.partition('VmHWM:')[2].split()[0]) // 1000


def _components(way: str):
  """Seconds and memory of a way, in a process of its own."""
  rng = np.random.default_rng(0)
  a = rng.integers(0, _NODES, _EDGES)
  b = np.minimum(a + rng.integers(1, 1000, _EDGES), _NODES - 1)
  before = _most_mb()
  began = time.perf_counter()
  if way == 'at_once':
    label = components.labels(a, b, _NODES)
  else:
    union = components.Union(_NODES)
    step = _EDGES // _PARTS
    for start in range(0, _EDGES, step):
      union.add(a[start:start + step], b[start:start + step])
    label = union.labels()
  print(json.dumps({
      's': round(time.perf_counter() - began, 2),
      'extra_mb': _most_mb() - before,
      'sum': int(np.asarray(label, np.int64).sum())}))


def joined(options) -> dict:
  """Components at once by scipy, and in parts."""
  out = {}
  for _ in range(options.repeats):
    for way in ('at_once', 'in_parts'):
      got = json.loads(subprocess.run(
          [sys.executable, '-m', 'bench.curation', f'--components={way}'],
          check=True, capture_output=True, text=True).stdout)
      if way not in out or got['s'] < out[way]['s']:
        out[way] = got
  if out['at_once']['sum'] != out['in_parts']['sum']:
    raise SystemExit('the two ways differ')
  return out | {'ratio': round(out['in_parts']['s'] / out['at_once']['s'], 2)}


def _curated(folder: str, times: int, **engine) -> tuple[int, float]:
  """Images and seconds of a chain of a folder, given so many times."""
  from dinojax.configs.curate import folder as folder_config
  from dinojax.runs import curation
  c = folder_config.get_config(folder)
  c.ingest.pools = (f'folder:{folder}',) * times
  c.stages = ('ingest', 'filter', 'hash', 'materialize')
  c.ingest.rows_per_shard = 250
  with tempfile.TemporaryDirectory() as workdir:
    began = time.perf_counter()
    curation.curate(curation.Request(c, workdir, **engine))
    seconds = time.perf_counter() - began
    manifest = json.loads(next(pathlib.Path(workdir, 'ingest').glob(
        '*/manifest.json')).read_text())
  return manifest['counts']['images'], seconds


def _chain(folder: str, times: int):
  """A chain in a process of its own."""
  count, seconds = _curated(folder, times, workers=1)
  print(json.dumps({
      'images': count, 's': round(seconds, 2), 'images_s': round(
          count / seconds), 'max_mb': _most_mb()}))


def chain(options) -> dict:
  """Images a second of the stages that need no model, and memory."""
  out = {}
  for name in FOLDERS:
    folder = pathlib.Path(options.data or '../shared/data', name)
    if not folder.exists():
      out[name] = f'{folder} is not here'
      continue
    out[name] = {times: json.loads(subprocess.run(
        [sys.executable, '-m', 'bench.curation', f'--chain={folder}',
         f'--times={times}'], check=True, capture_output=True,
        text=True).stdout.splitlines()[-1]) for times in (1, 10)}
  return out


def ray(options) -> dict:
  """A job of a minute by two workers here, and by those of a cluster."""
  folder = str(pathlib.Path(options.data or '../shared/data', FOLDERS[0]))
  ways = {'here': {'workers': 2},
          'ray': {'engine': 'ray', 'address': options.address}}
  for way in ways.values():
    _curated(folder, 2, **way)
  seconds, answers = timed({
      name: lambda way=way: _curated(folder, 100, **way)[0]
      for name, way in ways.items()}, options.repeats)
  return {'images': answers['ray'], 's': seconds, 'ratio': round(
      seconds['ray'] / seconds['here'], 2)}


PARTS = {'graph': graph, 'kmeans': k_means, 'hierarchy': hierarchies,
         'allocation': allocation, 'components': joined, 'chain': chain}
OTHERS = {'ray': ray}  # that need more than a machine


def main():
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--parts', default=','.join(PARTS))
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--data')
  parser.add_argument('--address', default='auto', help='of a Ray cluster')
  parser.add_argument('--components', help=argparse.SUPPRESS)
  parser.add_argument('--chain', help=argparse.SUPPRESS)
  parser.add_argument('--times', type=int, default=1, help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.components:
    _components(options.components)
  elif options.chain:
    _chain(options.chain, options.times)
  else:
    for part in options.parts.split(','):
      print(json.dumps({'bench': f'curation.{part}'} | (
          PARTS | OTHERS)[part](options)),
            flush=True)


if __name__ == '__main__':
  main()
