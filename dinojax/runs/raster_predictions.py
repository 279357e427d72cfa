"""Maps of GeoTIFF by a trained head, each at the place of its image.

  OUT/rasters/NAME.tif   heights or depths in metres (float32, NaN unknown), or
                         classes (8 bits, 255 unknown), where the image is
  OUT/pictures/NAME.jpg  image and map, small
  OUT/predictions.jsonl  a line a raster: reference system, metres of a pixel,
                         mean and greatest value

A raster of any size goes through the backbone in windows that overlap, of
which the middle parts are kept. Windows that are done are kept in OUT/work
until their raster is whole, so the same command goes on where it stopped.
"""

from collections.abc import Sequence
import dataclasses
import io
import itertools
import json
import os
import pathlib
import shutil
from typing import Any

import numpy as np
from PIL import Image

from dinojax.core import atomic
from dinojax.core import errors
from dinojax.core import log
from dinojax.core import paths
from dinojax.data import rasters
from dinojax.evals import dense
from dinojax.evals import dense_pictures
from dinojax.evals import protocol
from dinojax.evals import views as views_lib
from dinojax.evals import windows
from dinojax.features import backbone as backbone_lib
from dinojax.features import preprocessing
from dinojax.features import stream
from dinojax.parallel import processes
from dinojax.probes import head as head_lib
from dinojax.probes.tasks import depth

SCHEME = 'geotiff'
EXAMPLE = 'geotiff:DIR, geotiff:FILE.tif, or a pattern such as geotiff:*.tif'
RASTERS, PICTURES, LINES, WORK = (
    'rasters', 'pictures', 'predictions.jsonl', 'work')
WINDOW_PX, MARGIN_PX = 512, 64  # of a window, and of what overlaps around it
_SHOWN_PX = 1024
_UNKNOWN_CLASS = 255


@dataclasses.dataclass(frozen=True)
class Piece:
  """A window of a raster, and the part of it that is kept.

  Attributes:
    window: left, top, right and bottom in the raster.
    kept: the same of the part that is kept.
  """

  window: rasters.Window
  kept: rasters.Window

  @property
  def name(self) -> str:
    """Its name among those of a raster."""
    return '{}-{}'.format(*self.kept[:2])


def pieces(size: tuple[int, int], side: int, margin: int) -> list[Piece]:
  """Windows that cover a raster, row by row; the parts kept cover it once.

  Args:
    size: (width, height) of the raster.
    side: side of a window, or the raster's where that is shorter.
    margin: pixels of a window beside others that are not kept.
  """
  axes = []
  for length in size:
    window = min(side, length)
    step = max(window - 2 * margin, 1)
    count = 1 + -(-(length - window) // step) if length > window else 1
    starts = [min(i * step, length - window) for i in range(count)]
    cuts = [0, *((a + window + b) // 2
                 for a, b in itertools.pairwise(starts)), length]
    axes.append([(start, start + window, *cut) for start, cut in zip(
        starts, itertools.pairwise(cuts), strict=True)])
  return [Piece((x[0], y[0], x[1], y[1]), (x[2], y[2], x[3], y[3]))
          for y in axes[1] for x in axes[0]]


@dataclasses.dataclass(frozen=True)
class Item:
  """A window of a raster as an item of a set, see evals.dense."""

  path: str
  window: rasters.Window
  value_range: tuple[float, ...]
  name: str
  cut: None = None

  def decoded(self) -> tuple[Image.Image, None]:
    """Its pixels, and no truth."""
    with rasters.opened(self.path) as raster:
      return Image.fromarray(rasters.rgb(
          raster, self.window, self.value_range)), None


@dataclasses.dataclass(frozen=True)
class Windows:
  """Windows of a raster as a set."""

  path: str
  some: tuple[Piece, ...]
  value_range: tuple[float, ...]

  @property
  def spec(self) -> str:
    """The raster."""
    return self.path

  def __len__(self) -> int:
    return len(self.some)

  def __getitem__(self, index: int) -> Item:
    piece = self.some[index]
    return Item(self.path, piece.window, self.value_range, piece.name)


def listed(spec: str) -> dict[str, str]:
  """Rasters by their names in the results, of which each has a place.

  Raises:
    UserError: none, or one without coordinates.
  """
  place = paths.expand(spec.removeprefix(f'{SCHEME}:'))
  path = pathlib.Path(place)
  if path.is_dir():
    members, root = sorted(p for p in path.rglob('*') if rasters.is_raster(
        p.name)), path
  elif path.exists():
    members, root = [path], path.parent
  else:
    root = pathlib.Path(place.partition('*')[0]).parent
    members = sorted(p for p in root.glob(os.path.relpath(place, root))
                      if rasters.is_raster(p.name)) if '*' in place else []
  if not members:
    raise errors.UserError(
        f'{spec} has no file that ends in {" or ".join(rasters.SUFFIXES)}: '
        f'give {EXAMPLE}')
  out = {}
  for each in members:
    rasters.check_place(str(each), rasters.header(str(each)))
    name = str(each.relative_to(root).with_suffix(''))
    out[name if name not in out else str(each.relative_to(root))] = str(each)
  return out


def write_all(folder: pathlib.Path, spec: str, model: backbone_lib.Backbone,
              head: head_lib.Head, at_once: int, num_threads: int) -> str:
  """Makes the maps of all rasters that are not there yet.

  Args:
    folder: folder of the results.
    spec: see `listed`.
    model: the backbone.
    head: a head of maps.
    at_once: windows that go through the backbone at a time.
    num_threads: threads that read.

  Raises:
    UserError: see `listed`.
  """
  names = listed(spec)
  lines = folder / LINES
  done = {row['name'] for row in log.rows(lines)} if lines.exists() else set()
  left = [name for name in names if name not in done]
  patch = model.config.side_px
  side, margin = (max(round(px / patch), 1) * patch
                  for px in (WINDOW_PX, MARGIN_PX))
  plans = {name: pieces(rasters.header(names[name]).size, side, margin)
           for name in left}
  with log.Bar(sum(map(len, plans.values())), unit='windows') as bar:
    done_windows = [0]

    def progress(number):
      done_windows[0] += number
      bar.show(done_windows[0])

    job = protocol.Job(
        model, {}, preprocessing.Preprocessing(None, None), None,
        reading=stream.Reading(num_threads=num_threads), say=bar.say,
        progress=progress)
    maps = dense.Maps(
        job, head.on(model).task, views_lib.Views(
            windows.Windows(), direct=True),
        is_class=bool(head.classes), at_once=at_once)
    stack = dense.replicated(head.stack, model.mesh)
    for name in left:
      work = folder / WORK / name
      _windows(work, names[name], plans[name], maps, stack)
      processes.meet()
      _check_whole(work, names[name], plans[name])
      if processes.is_first():
        line = {'name': name} | _whole(
            folder, name, names[name], plans[name], work, head,
            model.value_range)
        out = log.JsonLines(lines)
        out.write(line)
        out.close()
        shutil.rmtree(work)
      processes.meet()
  return (f'{len(names)} rasters in {folder}/{RASTERS}, as pictures in '
          f'{folder}/{PICTURES}')


def _windows(work: pathlib.Path, path: str, plan: Sequence[Piece],
             maps: dense.Maps, stack: Any):
  """Writes the kept parts of this process's windows that are missing."""
  work.mkdir(parents=True, exist_ok=True)
  there = json.loads(processes.of_first(json.dumps(sorted(
      place.name for place in work.glob('*.npy')))))
  left = [piece for piece in plan if f'{piece.name}.npy' not in there]
  maps.job.progress(len(plan) - len(left))
  if not left:
    return
  sizes = [(piece.window[3] - piece.window[1],
            piece.window[2] - piece.window[0]) for piece in left]
  maps.plan(sizes, 'predict')
  source = Windows(path, tuple(left), maps.job.model.value_range)
  for row, predicted in maps.of(source, sizes, stack):
    piece = left[row['index']]
    values = predicted[0] if maps.is_class else predicted[0, ..., 0]
    corner = piece.window
    inside = values[piece.kept[1] - corner[1]:piece.kept[3] - corner[1],
                    piece.kept[0] - corner[0]:piece.kept[2] - corner[0]]
    content = io.BytesIO()
    np.save(content, inside.astype(
        np.uint8 if maps.is_class else np.float32))
    atomic.write_bytes(work / f'{piece.name}.npy', content.getvalue())


def _check_whole(work: pathlib.Path, path: str, plan: Sequence[Piece]):
  """Refuses a raster of which windows could not be read.

  Raises:
    UserError: there are some.
  """
  lost = [piece for piece in plan
          if not (work / f'{piece.name}.npy').exists()]
  if lost:
    raise errors.UserError(
        f'{path} is damaged: {len(lost)} of {len(plan)} windows cannot be '
        f'read, the first at {lost[0].window[:2]}; get it again, or take it '
        'away')


def _whole(folder: pathlib.Path, name: str, path: str, plan: Sequence[Piece],
           work: pathlib.Path, head: head_lib.Head,
           value_range: tuple[float, ...]) -> dict[str, Any]:
  """Writes a raster of its windows, and its picture; a line on it."""
  of, is_class = rasters.header(path), bool(head.classes)
  target = folder / RASTERS / f'{name}.tif'
  target.parent.mkdir(parents=True, exist_ok=True)
  total, count, most, areas = 0.0, 0, -np.inf, np.zeros(256, np.int64)
  unknown = _UNKNOWN_CLASS if is_class else np.nan
  with rasters.opened(path) as image, rasters.written(
      str(target), of, 'uint8' if is_class else 'float32', unknown) as raster:
    for piece in plan:
      values = np.load(work / f'{piece.name}.npy', allow_pickle=False)
      valid = rasters.known(image, piece.kept)
      rasters.put(raster, piece.kept, np.where(
          valid, values, unknown).astype(values.dtype))
      count += int(valid.sum())
      if is_class:
        areas += np.bincount(values[valid], minlength=256)
      elif valid.any():
        total += float(values[valid].sum(dtype=np.float64))
        most = max(most, float(values[valid].max()))
  picture = f'{PICTURES}/{name}.jpg'
  _draw(folder / picture, path, str(target), head, value_range)
  line = {'raster': f'{RASTERS}/{name}.tif', 'picture': picture,
          'crs': of.crs.split('"')[1] if '"' in of.crs else of.crs,
          'metres_per_pixel': round(of.metres, 4), 'pixels': count}
  if is_class:
    return line | {'areas_m2': {
        kind: round(float(areas[i]) * of.metres**2, 1)
        for i, kind in enumerate(head.classes) if areas[i]}}
  unit = '' if isinstance(head.task, depth.RelativeDepth) else '_m'
  return line | {f'mean{unit}': round(total / count, 4) if count else None,
                 f'greatest{unit}': round(most, 4) if count else None}


def _draw(place: pathlib.Path, path: str, target: str, head: head_lib.Head,
          value_range: tuple[float, ...]):
  """Writes image and map side by side, small."""
  pixels, _ = rasters.small(path, _SHOWN_PX, value_range)
  with rasters.opened(target) as raster:
    values = raster.read(1, out_shape=pixels.shape[:2])
  if not head.classes:
    values = np.nan_to_num(values)[..., None]
  panel = dense_pictures.panel(
      Image.fromarray(pixels), None, values, head.classes, None,
      isinstance(head.task, depth.RelativeDepth))
  place.parent.mkdir(parents=True, exist_ok=True)
  with atomic.replacing(place) as temporary:
    Image.fromarray(panel).save(str(temporary), 'JPEG')
