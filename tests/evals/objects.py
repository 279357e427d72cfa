"""Drawn images with objects, in the formats of COCO."""

import json

import numpy as np
from PIL import Image
from PIL import ImageDraw

CATEGORIES = [{'id': 7, 'name': 'disc', 'isthing': 1},
              {'id': 3, 'name': 'box', 'isthing': 1},
              {'id': 90, 'name': 'ground', 'isthing': 0}]
COLORS = {7: (220, 60, 40), 3: (50, 90, 220), 90: (120, 160, 90)}


def scene(rng, size):
  """(image, objects, ids [y, x]): id 1 is the ground, 0 a strip of nothing."""
  width, height = size
  picture = Image.new('RGB', size, COLORS[90])
  ids = Image.new('I', size, 1)
  pens = ImageDraw.Draw(picture), ImageDraw.Draw(ids)
  objects = []
  for number in range(2, 2 + int(rng.integers(1, 4))):
    kind = int(rng.choice([7, 3]))
    side = int(rng.integers(height // 3, height // 2))
    left, top = (int(rng.integers(0, n - side)) for n in size)
    corners = (left, top, left + side, top + side)
    alone = Image.new('1', size)
    for pen, ink in ((pens[0], COLORS[kind]), (pens[1], number),
                     (ImageDraw.Draw(alone), 1)):
      (pen.ellipse if kind == 7 else pen.rectangle)(corners, fill=ink)
    objects.append({'category_id': kind, 'id': number, 'corners': corners,
                    'mask': np.asarray(alone)})
  pixels = np.asarray(picture) + rng.normal(0, 6, (height, width, 3))
  numbers = np.array(ids)
  numbers[-2:] = 0
  return np.clip(pixels, 0, 255).astype(np.uint8), objects, numbers


def save(folder, count, sizes, seed):
  """Writes images/, instances.json, panoptic.json and panoptic/."""
  rng = np.random.default_rng(seed)
  for part in ('images', 'panoptic'):
    (folder / part).mkdir(parents=True, exist_ok=True)
  rows, instances, panoptic = [], [], []
  for i in range(count):
    size = sizes[i % len(sizes)]
    pixels, objects, ids = scene(rng, size)
    Image.fromarray(pixels).save(folder / 'images' / f'{i:03d}.png')
    rows.append({'id': 100 + i, 'file_name': f'{i:03d}.png',
                 'width': size[0], 'height': size[1]})
    for each in objects:
      instances.append({
          'id': len(instances) + 1, 'image_id': 100 + i, 'iscrowd': 0,
          'category_id': each['category_id'],
          'segmentation': runs_of(each['mask']),
          'area': int(each['mask'].sum()), 'bbox': [
              *each['corners'][:2], *(end + 1 - start for start, end in zip(
                  each['corners'][:2], each['corners'][2:], strict=True))]})
    codes = 300 * ids  # of more than eight bits
    Image.fromarray(np.stack([codes % 256, codes // 256, 0 * codes], axis=-1
                             ).astype(np.uint8)).save(
                                 folder / 'panoptic' / f'{i:03d}.png')
    kinds = {each['id']: each['category_id'] for each in objects} | {1: 90}
    panoptic.append({
        'image_id': 100 + i, 'file_name': f'{i:03d}.png', 'segments_info': [
            {'id': 300 * number, 'category_id': kind, 'iscrowd': 0}
            for number, kind in kinds.items() if (ids == number).any()]})
  things = [each for each in CATEGORIES if each['isthing']]
  for name, annotations, categories in (
      ('instances', instances, things), ('panoptic', panoptic, CATEGORIES)):
    (folder / f'{name}.json').write_text(json.dumps({
        'images': rows, 'annotations': annotations, 'categories': categories}))
  return folder


def runs_of(mask):
  """Run lengths of a mask, column by column, the first of zeros."""
  flat = np.concatenate([[0], mask.T.ravel().astype(int), [0]])
  edges = np.flatnonzero(np.diff(flat))
  lengths = np.diff(np.concatenate([[0], edges, [mask.size]]))
  return {'size': list(mask.shape), 'counts': [int(x) for x in lengths]}
