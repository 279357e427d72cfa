"""Predictions for images by a trained head, and pictures of them.

  OUT/maps/NAME.png      classes (8 bits), or depths or their inverse (16
                         bits), or segments as COCO has them (colours)
  OUT/pictures/NAME.jpg  the image beside its map, in colour
  OUT/predictions.jsonl  a line an image: name, map, picture, unit of the map,
                         segments, or objects with masks or boxes
  OUT/coco.json          all segments or objects, as COCO's evaluation has them
  OUT/head.json          what made them, and the names of the classes

GeoTIFF become GeoTIFF, see raster_predictions.

What is there is not made again, so the same command goes on where it stopped.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any

import jax
import numpy as np
from PIL import Image

from dinojax.core import atomic
from dinojax.core import errors
from dinojax.core import log
from dinojax.core import output
from dinojax.core import paths
from dinojax.core import text
from dinojax.data import images
from dinojax.data import parts
from dinojax.data import sources
from dinojax.evals import dense
from dinojax.evals import dense_pictures
from dinojax.evals import protocol
from dinojax.evals import published_heads
from dinojax.evals import stored_heads
from dinojax.evals import unlabelled
from dinojax.evals import views as views_lib
from dinojax.evals import windows
from dinojax.features import backbone as backbone_lib
from dinojax.features import preprocessing
from dinojax.features import store as store_lib
from dinojax.features import stream
from dinojax.parallel import processes
from dinojax.probes import head as head_lib
from dinojax.probes.tasks import depth
from dinojax.runs import assemble
from dinojax.runs import box_predictions
from dinojax.runs import models as models_lib
from dinojax.runs import raster_predictions
from dinojax.runs import segment_predictions

MAPS, PICTURES, LINES, ABOUT = (
    'maps', 'pictures', 'predictions.jsonl', 'head.json')
# Rows to columns of the shapes that whole images are brought to.
_FORMS = (0.5, 9 / 16, 0.75, 1.0, 4 / 3, 16 / 9, 2.0)
_SHORT_PX = 480  # of an image in a head of whole images
_UNITS = (0.001, 0.01)  # metres, of 16-bit depths
_GROUP = 64  # images between two looks at what is done


@dataclasses.dataclass(frozen=True)
class Request:
  """A request, see the flags of `dinojax predict`."""

  model: str
  head: str
  source: str
  out: str
  short_px: int | None = None
  flips: bool | None = None
  max_depth: float | None = None
  classes: str | None = None
  answers: str | None = None
  squares_px: str | None = None
  windows_at_once: int = 8
  num_threads: int = 2
  max_pixels: int = images.DEFAULT_MAX_PIXELS
  compile_cache: str = ''


def predict(request: Request) -> str:
  """Makes what is not there yet, and returns a sentence about all.

  Raises:
    UserError: a head that does not fit, nothing to read, a folder that holds
      other predictions.
  """
  processes.initialize()
  folder = pathlib.Path(paths.expand(request.out))
  atomic.check_out(str(folder / LINES))
  of_rasters = request.source.startswith(f'{raster_predictions.SCHEME}:')
  if of_rasters:
    raster_predictions.listed(request.source)
    source = None
  else:
    source = sources.open_source(paths.expand(request.source))
  assemble.compile_cache(request.compile_cache)
  model = models_lib.load(paths.expand(request.model))
  weights = store_lib.digest(model.config, model.params)
  head = _head(request, model)
  warning = head.check(model, weights)
  if warning:
    output.warn(warning)
  answers = segment_predictions.answers_of(head, request.answers)
  running = head.on(model)
  _check_flags(request, answers)
  if of_rasters:
    return _rasters(folder, head, running, model, weights, answers, request)
  if answers == 'semantic':
    writer = Maps(running, views_of(head, request, model.config.side_px))
  elif answers == 'boxes':
    writer = box_predictions.Boxes(
        running, request.squares_px, flips=bool(request.flips))
  else:
    writer = segment_predictions.Segments(running, answers)
  _begin(folder, head, {'weights': weights, 'source': source.spec,
                        **writer.made_by})
  return _write_all(folder, source, model, writer, request)


def _rasters(folder: pathlib.Path, head: head_lib.Head, running: head_lib.Head,
             model: backbone_lib.Backbone, weights: str, answers: str,
             request: Request) -> str:
  """Makes maps of GeoTIFF.

  Raises:
    UserError: a head that makes no maps.
  """
  if answers != 'semantic':
    raise errors.UserError(
        f'{request.source}: maps of rasters are of classes, depths or heights, '
        f'and this head makes {answers}: give --as=semantic or another head')
  _begin(folder, head, {'weights': weights, 'source': request.source,
                        'windows': raster_predictions.WINDOW_PX})
  return raster_predictions.write_all(
      folder, request.source, model, running, request.windows_at_once,
      request.num_threads)


def _check_flags(request: Request, answers: str):
  """Refuses flags of other answers.

  Raises:
    UserError: there are some.
  """
  if answers != 'semantic' and request.short_px or (
      answers not in ('semantic', 'boxes') and request.flips):
    raise errors.UserError(
        '--short_px and --flips are of maps of classes and depths; segments '
        'and objects are made of squares: leave them away, or give '
        '--as=semantic')
  if answers != 'boxes' and request.squares_px:
    raise errors.UserError(
        '--squares_px is of detectors, and this head makes other answers: '
        'leave it away')


def _head(request: Request, model: backbone_lib.Backbone) -> head_lib.Head:
  """The head of a folder of ours, or of a published file."""
  place = paths.expand(request.head)
  if stored_heads.is_head(place):
    if request.max_depth or request.classes:
      raise errors.UserError(
          '--max_depth and --classes are of published heads; this one says '
          f'them itself, in {os.path.join(place, stored_heads.DESCRIPTION)}')
    head = stored_heads.load(place)
    if head.kind == 'text':
      raise errors.UserError(
          f'{place} aligns texts and makes no maps: give it to `dinojax '
          'evaluate --protocols=zero_shot` by --config.zero_shot.head, or to '
          'dinojax.load_aligned')
    return head
  return published_heads.read(
      place, model, max_depth=request.max_depth, classes=request.classes)


def views_of(head: head_lib.Head, request: Request, patch_px: int
             ) -> views_lib.Views:
  """Views that are averaged: those of training, unless others are asked for."""
  of_head = head.facts.get('views', {})
  flips = request.flips
  if flips is None:
    flips = bool(of_head.get('flips', not head.classes))
  if head.classes:
    short = request.short_px or int(of_head.get('short_px', 512))
    crop = int(of_head.get('crop_px', short))
    stride = of_head.get('stride_px', crop * 2 // 3)  # None: evenly
    return views_lib.Views(
        windows.Windows(crop, stride and int(stride)),
        short, flips=flips, softmax=bool(of_head.get('softmax', True)),
        ratios=tuple(map(float, of_head.get('ratios', (1.0,)))))
  if of_head.get('native') and not request.short_px:
    return views_lib.Views(windows.Windows(), flips=flips, direct=True)
  whole = lambda px: max(round(px / patch_px), 1) * patch_px
  short, size = request.short_px or _SHORT_PX, of_head.get('size')
  if size and not request.short_px:
    return views_lib.Views(windows.Windows(), size=tuple(size), flips=flips,
                       direct=True)
  shapes = tuple((whole(short * max(form, 1)), whole(short / min(form, 1)))
                 for form in _FORMS)
  return views_lib.Views(windows.Windows(), shapes=shapes, flips=flips,
                     direct=True)


def _begin(folder: pathlib.Path, head: head_lib.Head, made_of: Mapping):
  """Writes what makes the predictions, once.

  Raises:
    UserError: the folder holds those of something else.
  """
  key = hashlib.sha256(json.dumps([
      dict(made_of), head.kind, dataclasses.asdict(head.task),
      [hashlib.sha256(np.ascontiguousarray(leaf).tobytes()).hexdigest()
       for leaf in jax.tree.leaves((head.params, head.stats))]],
      default=str).encode()).hexdigest()[:16]
  about = folder / ABOUT
  if about.exists():
    before = atomic.read_json(about, 'give another --out').get('key')
    if before != key:
      raise errors.UserError(
          f'{folder} holds predictions of another head, model, source, size or '
          'views: give another --out, or delete it')
    return
  if processes.is_first():
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_text(about, json.dumps({
        'key': key, 'kind': head.kind, 'classes': head.classes,
        'origin': dataclasses.asdict(head.origin), **made_of},
                                        indent=1, default=str))


def _write_all(folder: pathlib.Path, source: Any, model: backbone_lib.Backbone,
               writer: Any, request: Request) -> str:
  """Makes the predictions of all images, some at a time."""
  whole = unlabelled.Images(source, unlabelled.Reading(
      request.max_pixels, request.num_threads))
  headers = whole.headers()
  sizes = [row.get('size') for row in headers]
  if not any(sizes):
    raise errors.UserError(
        f'none of the {len(whole)} images of {source.spec} can be read')
  done = _done(folder)
  left = [i for i, size in enumerate(sizes) if size and i not in done]
  names = file_names([row['name'] for row in headers])
  number = jax.process_index()
  lines = log.JsonLines(folder / (LINES if not number else f'{number}-{LINES}'))
  with log.Bar(len(done) + len(left)) as bar:
    job = protocol.Job(
        model, {}, preprocessing.Preprocessing(None, None), None,
        reading=stream.Reading(num_threads=request.num_threads,
                               max_pixels=request.max_pixels), say=bar.say)
    writer.begin(job, [sizes[i] for i in left], request.windows_at_once)
    bar.show(len(done))
    for start in range(0, len(left), _GROUP):
      chosen = left[start:start + _GROUP]
      some = parts.Chosen(whole, np.array(chosen))
      for row, predicted in writer.of(some, [sizes[i] for i in chosen]):
        index, alone = chosen[row['index']], some[row['index']]
        line, panel = writer.written(
            folder, f'{MAPS}/{names[index]}.png', alone, predicted)
        at_picture = f'{PICTURES}/{names[index]}.jpg'
        write_image(folder / at_picture, panel, 'JPEG')
        lines.write({'name': alone.name} | line | {
            'picture': at_picture, 'index': index})
      bar.show(len(done) + start + len(chosen))
  lines.close()
  processes.meet()
  if processes.is_first():
    writer.finish(folder, [row for path in sorted(folder.glob(f'*{LINES}'))
                           for row in log.rows(path)])
  bad = [row for row in headers if row['problem']]
  for row in bad if processes.is_first() else ():
    print(f'left out: {text.printable(row["name"])}: '
          f'{text.printable(row["problem"])}')
  return (f'{len(whole) - len(bad)} images in {folder}/{writer.where}, as '
          f'pictures in {folder}/{PICTURES}; {len(bad)} could not be read')


def _done(folder: pathlib.Path) -> set[int]:
  """Images that have their maps already, the same ones on every process."""
  rows = [row['index'] for path in sorted(folder.glob(f'*{LINES}'))
          for row in log.rows(path)]
  return set(json.loads(processes.of_first(json.dumps(rows))))


class Maps:
  """Makes and writes a class or a depth of every pixel."""

  where = MAPS

  def __init__(self, head: head_lib.Head, views: views_lib.Views):
    """Compiles nothing yet."""
    self._head, self._views = head, views
    self._unit = unit_of(head)
    self._relative = isinstance(head.task, depth.RelativeDepth)

  @property
  def made_by(self) -> dict:
    """Values that the maps depend on."""
    return {'views': dataclasses.asdict(self._views)}

  def begin(self, job: protocol.Job, sizes: Sequence, at_once: int):
    """Fixes what is compiled for images of these sizes."""
    self._maps = dense.Maps(job, self._head.task, self._views,
                            is_class=bool(self._head.classes), at_once=at_once)
    if sizes:
      self._maps.plan(sizes, 'predict', 'such as by --short_px=480')
    self._stack = dense.replicated(self._head.stack, job.model.mesh)

  def of(self, source: Any, sizes: Sequence) -> Iterator[tuple[dict, Any]]:
    """Items with their maps."""
    for row, predicted in self._maps.of(source, sizes, self._stack):
      yield row, predicted[0]

  def written(self, folder: pathlib.Path, place: str, alone: Any,
              predicted: np.ndarray) -> tuple[dict, np.ndarray]:
    """Writes the map of an image; a line on it, and its picture."""
    head = self._head
    picture, _ = alone.decoded()
    panel = dense_pictures.panel(
        picture, None, predicted, head.classes, getattr(
            head.task, 'max_depth', None), self._relative)
    line = {'map': place}
    if head.classes:
      array = predicted.astype(np.uint8)
    else:
      unit = self._unit or max(float(predicted.max()), 1e-6) / 65_535
      line['inverse_of_unit' if self._relative else 'metres_per_unit'] = unit
      array = np.clip(np.round(predicted[..., 0] / unit), 0, 65_535).astype(
          np.uint16)
    write_image(folder / place, array, 'PNG')
    return line, panel

  def finish(self, folder: pathlib.Path, lines: Sequence[Mapping]):
    """Maps need nothing more."""
    del folder, lines


def write_image(place: pathlib.Path, pixels: np.ndarray, kind: str):
  """Writes an image of a kind that Pillow knows."""
  place.parent.mkdir(parents=True, exist_ok=True)
  with atomic.replacing(place) as temporary:
    Image.fromarray(pixels).save(str(temporary), kind)


def unit_of(head: head_lib.Head) -> float | None:
  """Metres of a unit of 16-bit depths; None: maps have none."""
  if head.classes or isinstance(head.task, depth.RelativeDepth):
    return None
  reach = getattr(head.task, 'max_depth', 0.0)
  return next((unit for unit in _UNITS if reach <= 65_535 * unit), _UNITS[-1])


def file_names(names: Sequence[str]) -> list[str]:
  """Names of files below a folder, without suffix where they stay different.

  Args:
    names: names of records; nothing of them leads out of the folder.
  """
  whole = ['/'.join(part for part in pathlib.PurePosixPath(
      name.replace('\\', '/')).parts if part not in ('/', '..', '.'))
      or f'image{i}' for i, name in enumerate(names)]
  stems = [name.rpartition('.')[0] or name for name in whole]
  many = {stem for stem, count in _counted(stems).items() if count > 1}
  out = [name if stem in many else stem
         for name, stem in zip(whole, stems, strict=True)]
  many = {name for name, count in _counted(out).items() if count > 1}
  return [f'{name}-{i}' if name in many else name
          for i, name in enumerate(out)]


def _counted(values: Sequence[str]) -> dict[str, int]:
  out: dict[str, int] = {}
  for value in values:
    out[value] = out.get(value, 0) + 1
  return out
