"""What a small model learns: docs/results.md from one command.

  python -m bench.shared_world --data=./DIR --workdir=runs/shared_world

Trains configs/shared_world.py on the training parts of small public sets (an
hour on two cores; the same command goes on where it was stopped), and measures
it and its untrained twin by the protocols of `dinojax evaluate`, on the test
parts. Every table is in a folder of WORKDIR_results, all of them in its
results.md.

`--ablations [NAME ...]` trains variants of the config of half its width and
depth and a third of its length, each with two seeds, measures them, and prints
a line a variant, the scores of both seeds side by side. `--seeds 0` is one of
them, so that two processes share the work.
"""

import argparse
import csv
import os
import pathlib
import shutil
import sys

from etils import epath
import jax
import numpy as np

import dinojax
from dinojax.configs import shared_world
from dinojax.core import atomic
from dinojax.core import errors
from dinojax.evals import learned
from dinojax.interop import reading
from dinojax.interop import store
from dinojax.parallel import mesh as mesh_lib
from dinojax.runs import evaluation
from dinojax.runs import scores
from dinojax.train import method as method_lib
from dinojax.train import settings as settings_lib

VOID = 11  # of the street scenes
# Of dense heads: higher than the papers', whose heads have more time.
RATES = (1e-3, 3e-3, 1e-2)
HEADS = {'min_steps': 300, 'epochs': 10.0, 'batch_size': 256}
# Words of the config of every variant, in the order in which they need each
# other: `last96` goes on from base, `distilled` learns from WORKDIR.
ABLATIONS = {
    'base': 'short,small', 'no_koleo': 'short,small,no_koleo',
    'no_ibot': 'short,small,no_ibot', 'px96': 'short,small,px96',
    'last96': 'short,small,last96', 'distilled': 'short,distilled'}
SEEDS = (0, 1)


def main() -> int:
  """Trains, measures, prints the tables."""
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument('--data', required=True, help='folder of the sets')
  parser.add_argument('--workdir', required=True)
  parser.add_argument('--only', nargs='*', help='names of tables')
  parser.add_argument('--ablations', nargs='*', help='names of variants; '
                      'none: all', metavar='NAME', choices=list(ABLATIONS))
  parser.add_argument('--seeds', nargs='*', type=int, default=SEEDS)
  options = parser.parse_args()
  # Two devices of a CPU train 1.2 to 1.3 × as fast as one with both cores.
  if 'JAX_NUM_CPU_DEVICES' not in os.environ:
    jax.config.update('jax_num_cpu_devices', 2)
  data = pathlib.Path(options.data)
  workdir = pathlib.Path(options.workdir)
  sets = prepared(data, beside(workdir, 'sets'))
  try:
    if options.ablations is not None:
      ablations(data, workdir, sets, options)
    else:
      trained(shared_world.get_config(str(data)), str(workdir))
      twin = untrained(data, beside(workdir, 'untrained'))
      tables(requests(sets), [str(workdir), twin],
             beside(workdir, 'results'), options.only)
  except errors.UserError as error:
    print(error, file=sys.stderr)
    return 1
  return 0


def trained(config, workdir: str):
  """Trains to the end; a signal ends the program."""
  if not dinojax.train(config, workdir).finished:
    raise SystemExit(1)


def beside(workdir: pathlib.Path, name: str) -> pathlib.Path:
  """A folder whose name is that of the run, and one word more."""
  return workdir.with_name(f'{workdir.name}_{name}')


def tables(wanted: dict[str, tuple], models: list[str], out: pathlib.Path,
           only=None) -> None:
  """Measures models on each set; prints its table, and keeps them all."""
  parts = []
  for name, (protocols, config, flags) in wanted.items():
    if only and name not in only:
      continue
    parts.append(f'## {name}\n\n' + evaluation.evaluate(evaluation.Request(
        models, protocols, config=config, out=str(out / name), **flags)))
    print(parts[-1], flush=True)
  atomic.write_text(epath.Path(out) / 'results.md', '\n'.join(parts))


def requests(sets: dict[str, str]) -> dict[str, tuple]:
  """Protocols, their values and flags, by the name of a table."""
  def classes(name, px, shots, tuned=()):
    return (['knn', 'logistic', 'linear', 'fewshot', 'rankme', *tuned], {
        'data': {'crop_px': px, 'resize_px': px},
        'knn': {'k': (10, 20)}, 'linear': HEADS,
        'fewshot': {'shots': shots},
        'finetune': {'min_steps': 60, 'epochs': 1.0, 'batch_size': 32}}, {
            'train': f'folder:{sets["data"]}/{name}/train',
            'test': [f'folder:{sets["data"]}/{name}/test'], 'cache': True})

  products = f'csv:{sets["data"]}/product_retrieval/labels.csv?role='
  return {
      'flowers5': classes('flowers5', 96, (5.0, 20.0), ('finetune',)),
      'rsscn7': classes('rsscn7_satellite', 96, (5.0, 20.0)),
      'cifar10': classes('cifar10_jpeg', 64, (10.0, 100.0)),
      'products': (['retrieval'], {
          'data': {'crop_px': 96, 'resize_px': 96},
          'retrieval': {'database': f'{products}gallery',
                        'query': f'{products}query'}}, {}),
      'street': (['segmentation'], {'segmentation': {
          'train': f'masks:{sets["street"]}/train?ignore={VOID}',
          'test': (f'masks:{sets["street"]}/val?ignore={VOID}',),
          'learning_rates': RATES, 'weight_decays': (1e-4,), 'steps': 400,
          'warmup_steps': 10, 'batch_size': 4, 'short_px': 240,
          'crop_px': 240}}, {}),
      'room': (['depth'], {'depth': {
          'train': f'depth:{sets["room"]}/train',
          'test': (f'depth:{sets["room"]}/test',), 'learning_rates': RATES,
          'weight_decays': (1e-4,), 'steps': 1_000, 'warmup_steps': 100,
          'batch_size': 4, 'crop': (160, 208), 'max_depth': 5.0}}, {}),
      'videos': (['tracking'], {'tracking': {
          'test': (f'videos:{sets["data"]}/davis_vos',),
          'short_patches': (30,)}}, {}),
      'animals': (['correspondence'], {'correspondence': {
          'test': (f'keypoints:{sets["data"]}/animal_keypoints/keypoints.csv',
                   f'homographies:{sets["data"]}/affine_homographies/'
                   'pairs.csv')}}, {})}


def prepared(data: pathlib.Path, out: pathlib.Path) -> dict[str, str]:
  """Sets in the plain layouts: images and maps side by side, by their parts."""
  if not out.exists():
    making = out.with_name(f'{out.name}.making')
    shutil.rmtree(making, ignore_errors=True)
    for name, source, column, kind in (
        ('street', 'camvid', 'mask', 'masks'),
        ('room', 'rgbd_frames', 'depth', 'depth')):
      for row in csv.DictReader(open(data / source / 'labels.csv')):
        for part, file in (('images', row['image']), (kind, row[column])):
          folder = making / name / row['part'] / part
          folder.mkdir(parents=True, exist_ok=True)
          stem = pathlib.Path(row['image']).stem
          shutil.copy(data / source / file,
                      folder / f'{stem}{pathlib.Path(file).suffix}')
    making.rename(out)
  return {'data': str(data), 'street': str(out / 'street'),
          'room': str(out / 'room')}


def untrained(data: pathlib.Path, out: pathlib.Path) -> str:
  """The network as it was before the first step, as a model on disk."""
  if not store.is_ours(str(out)):
    settings = settings_lib.read(shared_world.get_config(str(data)))
    mesh = mesh_lib.make(settings.mesh.data, settings.mesh.fsdp)
    with mesh_lib.activate(mesh):
      method = method_lib.build(settings, mesh, 1, None)
      params = jax.device_get(learned.untrained(method, mesh)['backbone'])
    store.save(str(out), reading.Weights(
        method.student.config.backbone, jax.tree.map(np.asarray, params), {},
        mean=settings.augment.mean, std=settings.augment.std,
        family='dinojax'))
  return str(out)


def ablations(data: pathlib.Path, workdir: pathlib.Path,
              sets: dict[str, str], options) -> None:
  """Trains variants of the config, measures them, and prints all seeds."""
  names = options.ablations or list(ABLATIONS)
  place = lambda name, seed: str(beside(workdir, f'{name}_{seed}'))
  for seed in options.seeds:
    for name in names:
      config = shared_world.get_config(','.join(
          (str(data), ABLATIONS[name], *(['seed1'] if seed else []))))
      if name == 'last96':
        config.init.source = place('base', seed)
      elif name == 'distilled':
        config.distillation.source = str(workdir)
      trained(config, place(name, seed))
    tables(compared(sets), [place(name, seed) for name in names],
           beside(workdir, f'ablations_{seed}'))
  print(summary({name: [place(name, seed) for seed in SEEDS] for name in names},
                [beside(workdir, f'ablations_{seed}') for seed in SEEDS]))


def compared(sets: dict[str, str]) -> dict[str, tuple]:
  """What the variants are measured by, as in `requests`."""
  whole = requests(sets)
  out = {'street': whole['street']}
  for name in ('flowers5', 'products'):
    protocols, config, flags = whole[name]
    for px in (64, 96):
      out[f'{name}_{px}'] = (
          [p for p in protocols if p in ('knn', 'linear', 'retrieval')],
          config | {'data': {'crop_px': px, 'resize_px': px}}, flags)
  return out


def summary(models: dict[str, list[str]], outs: list[pathlib.Path]) -> str:
  """A line a variant and a column a metric, with the score of each seed."""
  rows = {}
  for out in outs:
    for table in sorted(out.iterdir()) if out.exists() else ():
      if table.is_dir():
        rows.setdefault(table.name, []).extend(
            scores.read(epath.Path(table)))
  columns = [(name, *pair) for name, lines in rows.items()
             for pair in dict.fromkeys((
                 line['protocol'], line['metric']) for line in lines)
             if 'mean per class' not in pair[1]]
  head = ['variant', *(' '.join(column) for column in columns)]
  lines = ['| ' + ' | '.join(head) + ' |', '|' + ' --- |' * len(head)]
  for variant, places in models.items():
    cells = [' / '.join(
        scores.number(line['value']) for place in places for line in rows[name]
        if (line['protocol'], line['metric'], line['model'].partition('@')[0])
        == (protocol, metric, place)) for name, protocol, metric in columns]
    lines.append('| ' + ' | '.join([variant, *cells]) + ' |')
  return '\n'.join(lines)


if __name__ == '__main__':
  sys.exit(main())
