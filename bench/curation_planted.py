"""What a curation finds of copies and test images that were planted in a pool.

  python -m bench.curation_planted --data=DIR --workdir=DIR
      [--descriptor=onnx:sscd.onnx] [--most=400]

The pool is all images of the sets in DIR but their test parts (with --most of
a set so many, drawn by chance), every twentieth with a copy of each kind, and
copies of every fourth test image; the test images are the benchmarks. Of every
kind: the share of the pairs that each stage joins, or of the test images that
leave the pool. Of what no copy explains: how many images each stage drops, and
so its precision, to which the sets' own likenesses are errors. The thresholds
are DINOv2's for SSCD, and for mean colours those of the recipe of a folder.
Prints one JSON line, and writes the page of pictures to the workdir.
"""

import argparse
import collections
from collections.abc import Callable
import io
import json
import os
import pathlib

import numpy as np
from PIL import Image

from dinojax.configs.curate import folder as folder_config
from dinojax.core import atomic
from dinojax.curate import draws
from dinojax.curate import recipe
from dinojax.curate import tables
from dinojax.curate import verdicts
from dinojax.curate.engines import work
from dinojax.curate.stages import joined
from dinojax.runs import curation

STAGES = ('ingest', 'filter', 'hash', 'describe', 'dedup', 'decontaminate')
LEFT_OUT = ('odd_files', 'Annotations', 'masks')  # no images of the world
TESTS = ('test', 'val')
EVERY, OF_TESTS = 20, 4  # image with copies, and test image in the pool
_DRAW = 91  # stream of random numbers


def jpeg(quality: int) -> Callable:
  """Stored anew with losses."""
  def change(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, 'JPEG', quality=quality)
    return out.getvalue()

  return change


def png(change: Callable) -> Callable:
  """Stored without losses after a change."""
  def changed(image: Image.Image) -> bytes:
    out = io.BytesIO()
    change(image).save(out, 'PNG')
    return out.getvalue()

  return changed


def cropped(share: float) -> Callable:
  """The middle of an image, a share of each side."""
  def crop(image: Image.Image) -> Image.Image:
    x, y = (round(size * (1 - share) / 2) for size in image.size)
    return image.crop((x, y, image.width - x, image.height - y))

  return crop


KINDS = {
    'jpeg30': jpeg(30), 'jpeg10': jpeg(10),
    'half': png(lambda image: image.resize(
        (max(image.width // 2, 1), max(image.height // 2, 1)))),
    'crop.8': png(cropped(0.8)), 'crop.5': png(cropped(0.5)),
    'mirror': png(lambda image: image.transpose(
        Image.Transpose.FLIP_LEFT_RIGHT)),
    'grey': png(lambda image: image.convert('L').convert('RGB'))}


def files_of(data: pathlib.Path, most: int | None) -> tuple[list, list]:
  """Files of the pool, and of the tests; of a set at most so many each."""
  pool, tests = [], []
  for folder in sorted(path for path in data.iterdir() if path.is_dir()):
    parts: tuple[list, list] = ([], [])
    for path in sorted(folder.rglob('*')):
      inside = path.relative_to(data).parts
      if path.suffix.lower() in ('.jpg', '.jpeg', '.png') and not set(
          inside) & set(LEFT_OUT):
        parts[bool(set(inside) & set(TESTS))].append(path)
    for chosen, files in zip((pool, tests), parts, strict=True):
      order = np.argsort(draws.keys(np.arange(len(files)), _DRAW))[:most]
      chosen += [files[i] for i in np.sort(order)]
  return pool, tests


def build(data: pathlib.Path, out: pathlib.Path, most: int | None):
  """Writes the pool and the benchmarks; of a copy's name the end says which."""
  pool, tests = files_of(data, most)
  put = lambda part, name, bytes_: atomic.write_bytes(
      out / part / name, bytes_)
  for part in ('pool', 'tests'):
    (out / part).mkdir(parents=True, exist_ok=True)
  for i, path in enumerate(pool):
    bytes_ = path.read_bytes()
    put('pool', f'{i:06d}{path.suffix}', bytes_)
    if i % EVERY == 0:
      image = Image.open(io.BytesIO(bytes_)).convert('RGB')
      for kind, change in KINDS.items():
        put('pool', f'{i:06d}~{kind}.png', change(image))
  for i, path in enumerate(tests):
    bytes_ = path.read_bytes()
    put('tests', f'test{i:06d}{path.suffix}', bytes_)
    if i % OF_TESTS == 0:
      image = Image.open(io.BytesIO(bytes_)).convert('RGB')
      kind = list(KINDS)[i // OF_TESTS % len(KINDS)]
      put('pool', f'test{i:06d}~{kind}.png', KINDS[kind](image))
  atomic.write_text(out / 'built', '')


def config(out: pathlib.Path, descriptor: str):
  """The recipe."""
  c = folder_config.get_config(str(out / 'pool'))
  c.stages = STAGES
  c.ingest.rows_per_shard = 500
  c.describe.descriptor = descriptor
  c.decontaminate.references = (f'folder:{out / "tests"}',)
  if not descriptor.startswith('pixels:'):
    c.dedup.threshold, c.dedup.floor = 0.6, 0.45
    c.decontaminate.threshold = 0.45
  else:
    c.decontaminate.threshold = 0.97
  return c


def places(c, workdir: pathlib.Path) -> dict[str, work.Place]:
  """Where the stages of a finished curation are."""
  out: dict[str, work.Place] = {}
  for stage in recipe.chain(recipe.read(c), curation.load):
    inputs = {name: out[name] for name in stage.needs}
    out[stage.name] = work.Place(os.path.join(
        workdir, stage.name, work.key(stage, inputs)), inputs)
  return out


def column(place: work.Place, name: str) -> list:
  """A column of the verdicts of all rows."""
  parts = [tables.read(place.checked(verdicts.ROWS, i), (name,))[name]
           for i in range(place.count(verdicts.ROWS))]
  return [value for part in parts for value in (
      part if isinstance(part, list) else part.tolist())]


def measured(at: dict[str, work.Place]) -> dict:
  """Shares of what was planted, by kind, and what else was dropped."""
  names = [name.rpartition('.')[0] for name in column(at['ingest'], 'name')]
  row = {name: i for i, name in enumerate(names)}
  labels = {stage: np.array(joined.labels(at[stage]))
            for stage in ('hash', 'dedup')}
  why = {stage: column(at[stage], 'reason') for stage in STAGES[1:]
         if stage != 'describe'}
  counts, recall = collections.Counter(), collections.defaultdict(dict)
  hits: dict = collections.defaultdict(collections.Counter)
  for name, i in row.items():
    first, _, kind = name.partition('~')
    if not kind or why['filter'][i]:
      continue
    if name.startswith('test'):
      counts['tests', kind] += 1
      hits['decontaminate']['tests', kind] += bool(
          why['decontaminate'][i] or why['dedup'][i] or why['hash'][i])
      continue
    counts['copies', kind] += 1
    by_hash = labels['hash'][i] == labels['hash'][row[first]]
    hits['hash']['copies', kind] += by_hash
    # What the hash dropped is no longer compared.
    hits['dedup']['copies', kind] += by_hash or (
        labels['dedup'][i] == labels['dedup'][row[first]])
  for stage, found_ in hits.items():
    for (what, kind), number in found_.items():
      recall[f'{stage}: {what}'][kind] = round(
          number / counts[what, kind], 3)
  planted = {name.partition('~')[0] for name in names if '~' in name}
  dropped = {stage: sum(map(bool, reasons)) for stage, reasons in why.items()}
  other = {stage: sum(bool(reason) and name.partition('~')[0] not in planted
                      for name, reason in zip(names, reasons, strict=True))
           for stage, reasons in why.items()}
  return {'images': len(names), 'copies': sum(
      number for (what, _), number in counts.items() if what == 'copies'),
          'tests': sum(number for (what, _), number in counts.items()
                       if what == 'tests'),
          'recall': recall, 'dropped': dropped,
          'dropped_but_not_planted': other, 'precision': {
              stage: round(1 - other[stage] / max(number, 1), 3)
              for stage, number in dropped.items()}}


def main():
  """Builds, curates, measures, and prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--data', required=True)
  parser.add_argument('--workdir', required=True)
  parser.add_argument('--descriptor', default='pixels:8')
  parser.add_argument('--most', type=int)
  options = parser.parse_args()
  workdir = pathlib.Path(options.workdir)
  if not (workdir / 'built').exists():
    build(pathlib.Path(options.data), workdir, options.most)
  c = config(workdir, options.descriptor)
  print(curation.curate(curation.Request(c, str(workdir))))
  print(json.dumps({
      'bench': 'curation_planted', 'descriptor': options.descriptor.partition(
          ':')[0]} | measured(places(c, workdir))))


if __name__ == '__main__':
  main()
