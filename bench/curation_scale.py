"""Ten million rows through clusters, draws, retrieval and components.

  python -m bench.curation_scale --workdir=DIR [--rows=10000000]
      [--graph_rows=1000000]

Drawn unit rows × 256 in float16, of five thousand concepts whose sizes fall as
their rank, go through the stages of a curation by one process: rows, vectors,
k-means of a thousand clusters in ten passes, assignment, an even draw of a
tenth, components of planted pairs; and, on the clusters, retrieval by a hundred
thousand queries. Then the graph of the first million by an inverted file, with
the recall of its edges. Prints a JSON line a part: seconds, and the most memory
of the process so far. The same command goes on where it was stopped.
"""

import argparse
import dataclasses
import json
import resource
import time

import numpy as np

from dinojax.core import fields
from dinojax.curate import chain
from dinojax.curate import draws
from dinojax.curate import retrieval
from dinojax.curate import tables
from dinojax.curate import vectors
from dinojax.curate import verdicts
from dinojax.curate.engines import in_process
from dinojax.curate.engines import work
from dinojax.curate.stages import base
from dinojax.curate.stages import cluster
from dinojax.curate.stages import dedup
from dinojax.curate.stages import joined
from dinojax.curate.stages import pool_rows
from dinojax.curate.stages import sample

WIDTH, CONCEPTS, SHARD = 256, 5000, 250_000


@dataclasses.dataclass(frozen=True)
class Size:
  """Number of rows."""

  rows: fields.Positive = 10_000_000


class Rows(base.Stage):
  """Rows of a pool that has no images."""

  def phases(self):
    """Numbers rows, and says that all are alive."""
    return (work.Phase(pool_rows.INDEX, base.once, self._index),
            work.Phase(verdicts.ROWS, lambda place: len(
                pool_rows.shard_rows(place)), self._rows))

  def _index(self, place, index):
    starts = np.append(np.arange(0, self.config.rows, SHARD), self.config.rows)
    tables.write(place.file(pool_rows.INDEX, index, pool_rows.SHARDS),
                 {'start': starts})
    return {}

  def _rows(self, place, index):
    rows = pool_rows.shard_rows(place)[index]
    size = np.full(len(rows), 224)
    tables.write(place.file(verdicts.ROWS, index), {
        'row': np.arange(rows.start, rows.stop), 'alive': size > 0,
        'width': size, 'height': size})
    return {'images': len(rows)}


class Vectors(base.Stage):
  """Unit rows around the centers of concepts; every twentieth has a copy."""

  def phases(self):
    """Draws."""
    return (work.Phase(vectors.VECTORS, self.num_shards, self._draw),)

  def _draw(self, place, index):
    rows = self.shard_rows(place)[index]
    rng = np.random.default_rng((1, index))
    centers = np.random.default_rng(0).normal(
        size=(CONCEPTS, WIDTH)).astype(np.float32)
    share = np.arange(1, CONCEPTS + 1) ** -1.0
    of = rng.choice(CONCEPTS, len(rows), p=share / share.sum())
    x = centers[of] + rng.normal(size=(len(rows), WIDTH), scale=0.8).astype(
        np.float32)
    copies = planted(np.arange(rows.start, rows.stop - 1)) - rows.start
    x[copies + 1] = x[copies] + rng.normal(
        size=(len(copies), WIDTH), scale=0.1)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    vectors.write(place, index, np.arange(rows.start, rows.stop), x)
    return {'described': len(rows)}


def planted(rows: np.ndarray) -> np.ndarray:
  """Rows of which the next one is a copy."""
  return rows[draws.keys(rows, 7) % np.uint64(20) == 0]


class Planted(dedup.Dedup):
  """Components of pairs that are known."""

  def phases(self):
    """Writes the pairs, joins, judges."""
    return (work.Phase(dedup.EDGES, self.num_shards, self._pairs),
            work.Phase(joined.JOIN, base.once, self._join),
            work.Phase(verdicts.ROWS, self.num_shards, self._judge))

  def _pairs(self, place, index):
    rows = self.shard_rows(place)[index]
    a = planted(np.arange(rows.start, rows.stop - 1))
    tables.write(place.file(dedup.EDGES, index), {
        'a': a, 'b': a + 1, 'score': np.full(len(a), 0.9, np.float32)})
    return {'edges': len(a)}


def told(part: str, began: float, **more):
  """Prints a line."""
  print(json.dumps({
      'bench': f'curation_scale.{part}', 's': round(
          time.perf_counter() - began, 1), 'max_gb': round(resource.getrusage(
              resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)} | more), flush=True)


def retrieved(place: work.Place, clustered: int):
  """Images of the clusters in which more than three of many queries fall."""
  began, table = time.perf_counter(), cluster.assigned(place)
  asked = np.random.default_rng(2).choice(
      table['level_1'], 100_000)  # queries are like the pool
  taken = retrieval.of_clusters(
      np.bincount(asked, minlength=len(cluster.centroids(place))),
      table['level_1'], table['distance'])
  told('retrieve', began, rows=len(taken.rows), of=clustered)


def main():
  """Runs what is not done, and prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--workdir', required=True)
  parser.add_argument('--rows', type=int, default=10_000_000)
  parser.add_argument('--graph_rows', type=int, default=1_000_000)
  options = parser.parse_args()
  reads = {'pool': 'ingest', 'after': 'ingest', 'vectors': 'embed'}
  some = {key: reads[key] for key in ('pool', 'after')}
  engine = in_process.InProcess(1)
  stages = [
      Rows(Size(options.rows), {}, 'ingest'),
      Vectors(Size(options.rows), some, 'embed'),
      Planted(dedup.Settings(), reads, 'dedup'),
      cluster.Cluster(cluster.Settings(
          (1000,), iterations=10, start='random'), reads, 'cluster'),
      sample.Sample(sample.Settings(options.rows // 10),
                    {'clusters': 'cluster'}, 'sample')]
  for number, stage in enumerate(stages):
    began = time.perf_counter()
    places = chain.run(stages[:number + 1], options.workdir, engine,
                       say=lambda line: None)
    told(stage.name, began, counts=work.manifest(
        places[stage.name])['counts'])
  retrieved(places['cluster'], options.rows)
  graph = [Rows(Size(options.graph_rows), {}, 'ingest'),
           Vectors(Size(options.graph_rows), some, 'embed'),
           dedup.Dedup(dedup.Settings(
               0.9, 0.85, search='inverted'), reads, 'graph')]
  began = time.perf_counter()
  places = chain.run(graph, options.workdir, engine, say=lambda line: None)
  counts = work.manifest(places['graph'])['counts']
  told('graph', began, counts=counts, recall=round(
      counts['recall_found'] / max(counts['recall_edges'], 1), 4))


if __name__ == '__main__':
  main()
