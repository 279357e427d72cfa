"""What a small model learns of a raw pool, and of what a curation leaves of it.

  python -m bench.curation_subsets --data=DIR --workdir=DIR
      [--descriptor=onnx:sscd.onnx] [--seeds 0 1 2]

The pool and the benchmarks are those of bench.curation_planted, of all images.
A ViT trains on the whole pool, copies and all; its features cluster and search
what dedup and decontamination leave. Then the same ViT trains, as many steps,
on each of four subsets of equal size: drawn by chance, drawn evenly from
clusters, retrieved by photographs of chosen sets, and both with those sets
mixed in. k-NN tells their features apart, on the benchmarks' test images,
which the curation kept out. Prints where the images of each subset are from,
and the scores of all seeds. Runs of ten minutes at most on two cores; the same
command goes on where it was stopped.
"""

import argparse
import collections
import itertools
import json
import os
import pathlib
import statistics

from etils import epath
import jax
import numpy as np

from bench import curation_planted
from bench import shared_world
from dinojax.configs import shared_world as config_lib
from dinojax.core import atomic
from dinojax.curate import recipe
from dinojax.curate import selections
from dinojax.data import curated
from dinojax.runs import curation
from dinojax.runs import scores

# Photographs of the kind that is wanted, with the images that each retrieves.
SEEDS_OF = (('imagenet_1perclass', 12), ('flickr8k_captions', 12),
            ('flowers5/train', 12))
BENCHMARKS = {'cifar10': 'cifar10_jpeg', 'tiny_imagenet': 'tiny_imagenet'}
SHARE = 0.1  # of the chosen sets themselves, in the mixture
STEPS = 600.0
RAW = 'raw'
# To SSCD, images of 28 to 64 pixels resemble each other once they are enlarged:
# DINOv2's 0.60 and 0.45 would leave few of them.
SIMILAR, MOST = 0.75, 100


def main():
  """Curates, trains, measures, and prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--data', required=True)
  parser.add_argument('--workdir', required=True)
  parser.add_argument('--descriptor', default='pixels:8')
  parser.add_argument('--seeds', nargs='*', type=int, default=(0, 1, 2))
  parser.add_argument('--steps', type=float, default=STEPS)
  options = parser.parse_args()
  if 'JAX_NUM_CPU_DEVICES' not in os.environ:
    jax.config.update('jax_num_cpu_devices', 2)
  data, workdir = pathlib.Path(options.data), pathlib.Path(options.workdir)
  pool = workdir / 'curation'
  if not (pool / 'built').exists():
    curation_planted.build(data, pool, None)
  trained = lambda name, seed: str(workdir / f'{name}_{seed}')
  train(data, f'folder:{pool / "pool"}', trained(RAW, 0), 0, options.steps)
  made = subsets(data, pool, options.descriptor, trained(RAW, 0))
  runs = {RAW: f'folder:{pool / "pool"}'} | {
      name: subset['train'] for name, subset in made.items()}
  for seed, (name, source) in itertools.product(options.seeds, runs.items()):
    train(data, source, trained(name, seed), seed, options.steps)
  print(origins(data, pool, made))
  models = {name: [trained(name, seed) for seed in options.seeds]
            for name in runs}
  shared_world.tables(benchmarks(data), sum(models.values(), []),
                      workdir / 'results')
  print(summary(models, workdir / 'results'))


def train(data: pathlib.Path, source, workdir: str, seed: int, steps: float):
  """Trains the small network of the small worlds on a source."""
  c = config_lib.get_config(f'{data},short,small')
  c.data.train, c.data.validation = source, None
  c.seed, c.train.total_steps = seed, steps
  shared_world.trained(c, workdir)


def subsets(data: pathlib.Path, pool: pathlib.Path, descriptor: str,
            model: str) -> dict[str, dict]:
  """Sources for training, and the names of the images, of every subset.

  What retrieval finds says how large the others are.
  """
  c = curation_planted.config(pool, descriptor)
  c.dedup.threshold = c.decontaminate.threshold = SIMILAR
  c.dedup.max_component, c.decontaminate.transitive = MOST, False
  c.embed.descriptor = f'model:{model}'
  c.cluster.levels, c.cluster.iterations = (300, 30), 50
  c.retrieve.samples = tuple(
      (f'folder:{data}/{name}', number) for name, number in SEEDS_OF)
  out = {'retrieved': curate(c, pool, 'retrieve')}
  size = len(out['retrieved']['names'])
  c.sample.images = size
  out['clustered'] = curate(c, pool, 'cluster', 'sample')
  c.retrieve.samples = tuple(
      (name, number // 2) for name, number in c.retrieve.samples)
  half = len(curate(c, pool, 'retrieve')['names'])
  c.sample.images = size - half
  c.materialize.weights = (('retrieve', (1 - SHARE) * half / size),
                           ('sample', (1 - SHARE) * (1 - half / size)))
  c.materialize.others = tuple(
      (name, SHARE / len(SEEDS_OF)) for name, _ in c.retrieve.samples)
  out['mixed'] = curate(c, pool, 'retrieve', 'cluster', 'sample')
  c.materialize.weights, c.materialize.others = (), ()
  c.cluster.levels, c.sample.images = (1,), size  # one cluster: by chance
  out['random'] = curate(c, pool, 'cluster', 'sample')
  return {name: out[name] for name in (
      'random', 'clustered', 'retrieved', 'mixed')}


def curate(c, pool: pathlib.Path, *chosen: str) -> dict:
  """Runs the stages that choose; the mixture, and the names of its images."""
  c.stages = (*curation_planted.STAGES, 'embed', *chosen, 'materialize')
  print(curation.curate(curation.Request(c, str(pool))))
  train_, _ = curated.expand(((f'{curated.SCHEME}{pool}', 1.0),), ())
  at = curation_planted.places(c, pool)
  names = np.array(curation_planted.column(at['ingest'], 'name'))
  return {'train': train_, 'names': [
      name for stage in chosen if stage in recipe.SELECTIONS
      for name in names[selections.read(at[stage])['row']]]}


def origins(data: pathlib.Path, pool: pathlib.Path,
            made: dict[str, dict]) -> str:
  """A line a set of the data, a column a subset: shares of its images."""
  files, _ = curation_planted.files_of(data, None)
  sets = [path.relative_to(data).parts[0] for path in files]
  names = sorted(path.name for path in (pool / 'pool').iterdir())
  names = {RAW: names} | {
      name: subset['names'] for name, subset in made.items()}
  counts = {name: collections.Counter(
      'copies of test images' if stem.startswith('test') else
      sets[int(stem[:6])] for stem in stems) for name, stems in names.items()}
  total = {name: count.total() for name, count in counts.items()}
  lines = ['| set | ' + ' | '.join(
      f'{name}, {total[name]:,}' for name in counts) + ' |',
           '|' + '---|' * (len(counts) + 1)]
  for key in sorted(set().union(*counts.values())):
    lines.append(f'| {key} | ' + ' | '.join(
        f'{100 * count[key] / total[name]:.1f}'
        for name, count in counts.items()) + ' |')
  return '\n'.join(lines)


def benchmarks(data: pathlib.Path) -> dict[str, tuple]:
  """Tables of k-NN, for shared_world.tables."""
  return {name: (['knn'], {
      'data': {'crop_px': 64, 'resize_px': 64}, 'knn': {'k': (20,)}}, {
          'train': f'folder:{data}/{folder}/train',
          'test': [f'folder:{data}/{folder}/' + next(
              part for part in curation_planted.TESTS
              if (data / folder / part).exists())]})
          for name, folder in BENCHMARKS.items()}


def summary(models: dict[str, list[str]], out: pathlib.Path) -> str:
  """A line a subset, a column a benchmark: mean top-1, and of all seeds."""
  lines = ['| trained on | ' + ' | '.join(BENCHMARKS) + ' |',
           '|' + '---|' * (len(BENCHMARKS) + 1)]
  rows = {name: scores.read(epath.Path(out / name)) for name in BENCHMARKS}
  values = {}
  for name, places in models.items():
    cells = []
    for benchmark, of in rows.items():
      each = [line['value'] for place in places for line in of
              if line['model'].partition('@')[0] == place
              and line['metric'].startswith('top-1,')]
      values[f'{name} {benchmark}'] = each
      cells.append(f'{statistics.mean(each):.1f} (' + ', '.join(
          f'{value:.1f}' for value in each) + ')')
    lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
  atomic.write_text(out / 'values.json', json.dumps(values))
  return '\n'.join(lines)


if __name__ == '__main__':
  main()
