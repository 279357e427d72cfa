"""Heads on what a small model learned: a table, with pictures beside it.

  python -m bench.shared_heads --data=./DIR --workdir=runs/shared_world

WORKDIR is the finished run of bench.shared_world, on whose backbone, and on
that of its untrained twin, heads of several kinds learn from the same images.
Tables and pictures are in WORKDIR_heads; the same command goes on where it was
stopped. `captions` trains text alignment on 350 photographs with five captions
each, on either backbone, and measures it on the others.
"""

import argparse
import csv
import pathlib
import shutil
import sys

import numpy as np
from PIL import Image

from bench import shared_world
from dinojax.configs import dinotxt
from dinojax.core import errors
from dinojax.runs import evaluation

RATES = (3e-4, 1e-3)
BOXES = ('raccoon_boxes', 'bccd_boxes')
FARTHEST_M = 4.0  # of a stereo pair: depths are right up to a factor


def main() -> int:
  """Trains, measures, prints the tables."""
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument('--data', required=True, help='folder of the sets')
  parser.add_argument('--workdir', required=True)
  parser.add_argument('--only', nargs='*', help='names of tables')
  options = parser.parse_args()
  data, workdir = pathlib.Path(options.data), pathlib.Path(options.workdir)
  beside = lambda name: shared_world.beside(workdir, name)
  sets = shared_world.prepared(data, beside('sets'))
  sets['stereo'] = str(stereo(data, beside('stereo')))
  sets |= {name: str(boxes(data, beside('boxes'), name)) for name in BOXES}
  models = [str(workdir), shared_world.untrained(data, beside('untrained'))]
  try:
    if not options.only or set(options.only) - {'captions'}:
      shared_world.tables(
          requests(sets), models, beside('heads'), options.only)
    if not options.only or 'captions' in options.only:
      for model in models:
        captions(data, model, beside('heads') / pathlib.Path(model).name)
  except errors.UserError as error:
    print(error, file=sys.stderr)
    return 1
  return 0


def requests(sets: dict[str, str]) -> dict[str, tuple]:
  """Protocols, their values and flags, by the name of a table."""
  street = {
      'train': f'masks:{sets["street"]}/train?ignore={shared_world.VOID}',
      'test': (f'masks:{sets["street"]}/val?ignore={shared_world.VOID}',),
      'short_px': 240, 'crop_px': 240, 'batch_size': 4, 'warmup_steps': 50}
  room = {
      'train': f'depth:{sets["room"]}/train',
      'test': (f'depth:{sets["room"]}/test',), 'learning_rates': RATES,
      'weight_decays': (1e-2,), 'batch_size': 4, 'crop': (160, 208),
      'max_depth': 5.0, 'channels': 64}
  # Crops of a quarter of the area: an hour on two cores for all tables.
  queries = {'num_queries': 30, 'num_points': 1024, 'steps': 300,
             'learning_rates': (1e-3,), 'crop_px': 120, 'stride_px': 120}
  boxes_of = lambda name, **values: (['detection'], {'detection': {
      'train': f'boxes:{sets[name]}/train.csv',
      'test': (f'boxes:{sets[name]}/test.csv',), 'hidden': 128,
      'num_heads': 4, 'num_encoder_layers': 1, 'num_layers': 3,
      'num_queries': 100, 'num_extra': 150, 'crop_px': 192, 'batch_size': 4,
      'steps': 300, 'warmup_steps': 30, 'learning_rate': 5e-4} | values}, {})
  return {
      # Crops of micrographs are alike at every scale; cells are small.
      'raccoon_boxes': boxes_of(
          'raccoon_boxes', box_px=24.0, most_targets=10),
      'bccd_boxes': boxes_of(
          'bccd_boxes', box_px=12.0, most_targets=30, copies=5),
      'street_linear': (['segmentation'], {'segmentation': street | {
          'learning_rates': shared_world.RATES, 'weight_decays': (1e-4,),
          'steps': 400, 'warmup_steps': 10}}, {}),
      'street_masks': (['segmentation'], {'segmentation': street | queries | {
          'recipe': 'masks'}}, {}),
      'street_eomt': (['segmentation'], {'segmentation': street | queries | {
          'recipe': 'eomt', 'num_blocks': 2}}, {}),
      'street_m2f': (['segmentation'], {'segmentation': street | queries | {
          'recipe': 'm2f', 'hidden': 64, 'num_pixel_layers': 2,
          'num_blocks': 4, 'short_px': 256, 'crop_px': 256,
          'stride_px': 128}}, {}),
      'room_dpt': (['depth'], {'depth': room | {
          'recipe': 'dpt', 'steps': 300, 'warmup_steps': 100,
          'plain_steps': 20}}, {}),
      'room_relative': (['depth'], {'depth': room | {
          'recipe': 'relative', 'steps': 300, 'warmup_steps': 100,
          'size': (160, 208),
          'test': (*room['test'], f'depth:{sets["stereo"]}')}}, {})}


def stereo(data: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
  """Left images of stereo pairs, with depths in an unknown unit."""
  if out.exists():
    return out
  making = out.with_name(f'{out.name}.making')
  shutil.rmtree(making, ignore_errors=True)
  for part in ('images', 'depth'):
    (making / part).mkdir(parents=True)
  folder = data / 'middlebury_stereo'
  for row in csv.DictReader(open(folder / 'labels.csv')):
    shift = np.asarray(Image.open(folder / row['disparity'])).astype(float)
    shift = (shift if shift.ndim == 2 else shift[..., 0]) / float(
        row['disparity_scale'])
    depth = np.where(shift > 0, 1 / np.maximum(shift, 1e-6), 0)
    depth *= 1000 * FARTHEST_M / depth.max()
    Image.fromarray(depth.round().astype(np.uint16)).save(
        making / 'depth' / f'{row["scene"]}.png')
    shutil.copy(folder / row['left'], making / 'images' / (
        f'{row["scene"]}.jpg'))
  making.rename(out)
  return out


def boxes(data: pathlib.Path, out: pathlib.Path, name: str) -> pathlib.Path:
  """Tables of boxes: every fourth image tests, the others train."""
  place, source = out / name, data / name
  place.mkdir(parents=True, exist_ok=True)
  rows = list(csv.DictReader(open(source / 'boxes.csv')))
  held_out = set(sorted({row['image'] for row in rows})[::4])
  for part in ('train', 'test'):
    with open(place / f'{part}.csv', 'w', newline='') as file:
      table = csv.DictWriter(file, list(rows[0]))
      table.writeheader()
      table.writerows(row | {'image': str((source / row['image']).absolute())}
                      for row in rows if (
                          row['image'] in held_out) == (part == 'test'))
  return place


def captions(data: pathlib.Path, model: str, out: pathlib.Path):
  """Trains text alignment on a backbone, and prints what it can do."""
  tables = {part: _captions(data, out, part) for part in ('train', 'test')}
  c = dinotxt.get_config('small')
  c.alignment.backbone, c.crops.px = model, 112
  c.data.train, c.data.validation = tables['train'], tables['test']
  c.text.width, c.text.depth, c.text.context, c.text.num_ids = 192, 4, 32, 2048
  c.alignment.total_steps, c.alignment.every_steps = 600.0, 200.0
  shared_world.trained(c, str(out / 'run'))
  head = {'head': str(out / 'run/head')}
  sizes = {'resize_px': 128, 'crop_px': 112}
  print(evaluation.evaluate(evaluation.Request(
      [model], ['captions', 'zero_shot'], config={
          'captions': head | sizes | {'test': (tables['test'],)},
          'zero_shot': head | sizes},
      test=[f'folder:{data}/flowers5/test'], out=str(out / 'results'))),
        flush=True)


def _captions(data: pathlib.Path, out: pathlib.Path, part: str) -> str:
  """Images with captions: the first 350 train, the others test."""
  folder = data / 'flickr8k_captions'
  rows = list(csv.DictReader(open(folder / 'captions.csv')))
  names = sorted({row['image'] for row in rows})
  kept = set(names[:350] if part == 'train' else names[350:])
  path = out / f'{part}.csv'
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path, 'w', newline='') as file:
    table = csv.writer(file)
    table.writerow(('image', 'caption'))
    table.writerows((str((folder / row['image']).absolute()), row['caption'])
                    for row in rows if row['image'] in kept)
  return f'csv:{path}'


if __name__ == '__main__':
  sys.exit(main())
