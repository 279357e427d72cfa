"""What a small model learns: docs/results.md from one command.

  python -m bench.shared_world --data=./DIR --workdir=runs/shared_world

Trains configs/shared_world.py on the training parts of small public sets (an
hour on two cores; the same command goes on where it was stopped), and measures
it and its untrained twin by the protocols of `dinojax evaluate`, on the test
parts. Tables are in WORKDIR/results, which --table joins to one of markdown.
`--ablations` trains and measures the variants of the config as well, two seeds
each, a third as long.
"""

import argparse
import csv
import pathlib
import shutil
import sys

import jax
import numpy as np

import dinojax
from dinojax.configs import shared_world
from dinojax.evals import online
from dinojax.interop import reading
from dinojax.interop import store
from dinojax.parallel import mesh as mesh_lib
from dinojax.runs import evaluation
from dinojax.train import method as method_lib
from dinojax.train import settings as settings_lib

VOID = 11  # of the street scenes
HEADS = {'min_steps': 300, 'epochs': 10.0, 'batch_size': 256}
# What changes, and what is measured by it.
ABLATIONS = {'base': '', 'no_koleo': 'no_koleo', 'no_ibot': 'no_ibot',
             'px96': 'px96', 'small': 'small'}


def main() -> int:
  """Trains, measures, prints the tables."""
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument('--data', required=True, help='folder of the sets')
  parser.add_argument('--workdir', required=True)
  parser.add_argument('--only', nargs='*', help='names of tables')
  parser.add_argument('--ablations', action='store_true')
  options = parser.parse_args()
  data = pathlib.Path(options.data)
  workdir = pathlib.Path(options.workdir)
  sets = prepared(data, workdir.with_name(f'{workdir.name}_sets'))
  if options.ablations:
    return ablations(data, workdir, sets)
  dinojax.train(shared_world.get_config(str(data)), str(workdir))
  twin = untrained(data, workdir.with_name(f'{workdir.name}_untrained'))
  tables(sets, [str(workdir), twin], workdir / 'results',
         options.only or requests(sets))
  return 0


def tables(sets: dict[str, str], models: list[str], out: pathlib.Path,
           names) -> None:
  """Measures models on each set, and prints its table."""
  for name in names:
    protocols, config, flags = requests(sets)[name]
    print(f'## {name}\n', evaluation.evaluate(evaluation.Request(
        models, protocols, config=config, out=str(out / name), **flags)),
          sep='\n', flush=True)


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
          'steps': 300, 'warmup_steps': 10, 'batch_size': 8,
          'short_px': 160, 'crop_px': 160}}, {}),
      'room': (['depth'], {'depth': {
          'train': f'depth:{sets["room"]}/train',
          'test': (f'depth:{sets["room"]}/test',), 'steps': 300,
          'warmup_steps': 100, 'batch_size': 8, 'crop': (160, 208)}}, {}),
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
      params = jax.device_get(online.untrained(method, mesh)['backbone'])
    store.save(str(out), reading.Weights(
        method.student.config.backbone, jax.tree.map(np.asarray, params), {},
        mean=settings.augment.mean, std=settings.augment.std,
        family='dinojax'))
  return str(out)


def ablations(data: pathlib.Path, workdir: pathlib.Path,
              sets: dict[str, str]) -> int:
  """Variants of the config, two seeds each, in one table a set."""
  models = []
  for name, word in ABLATIONS.items():
    for seed in ('', 'seed1'):
      arg = ','.join(filter(None, (str(data), 'short', word, seed)))
      place = workdir.with_name(f'{workdir.name}_{name}{seed and "_1"}')
      dinojax.train(shared_world.get_config(arg), str(place))
      models.append(str(place))
  tables(sets, models, workdir.with_name(f'{workdir.name}_ablations'),
         ('flowers5', 'products', 'street'))
  return 0


if __name__ == '__main__':
  sys.exit(main())
