"""Patch features of runs as colours, beside their images."""

from collections.abc import Sequence
import os

from etils import epath
import numpy as np
from PIL import Image

from dinojax.core import paths
from dinojax.data import inspection
from dinojax.data import photos
from dinojax.data import sources
from dinojax.features import backbone
from dinojax.features import spec
from dinojax.runs import models as models_lib
from dinojax.runs import pictures

_MAP = spec.FeatureSpec(('map',), 1, 'final')
_PHOTOS = ('chelsea', 'coffee', 'rocket', 'astronaut')


def default_out(run: str) -> str:
  """In the folder of a run; else beside DIR/STUDENT, DIR@STEP or a file."""
  folder = epath.Path(run)
  return str(folder / 'pca.png') if folder.is_dir() else f'{run}_pca.png'


def draw(runs: list[str], *, images: str | None = None, count: int = 4,
         grid: int = 32) -> Image.Image:
  """Patch features of the EMA of runs as colours, a row an image.

  Args:
    runs: runs or weights, drawn beside each other.
    images: source of images; None: regions of the embedded photographs far
      from every training tile.
    count: images that are shown.
    grid: patches along the side of an image.

  Raises:
    UserError: nothing there, or damaged.
  """
  names = [os.path.basename(run.rstrip('/')) for run in runs]
  return of_models([models_lib.load(run) for run in runs], names,
                   images=images, count=count, grid=grid)


def of_models(models: Sequence[backbone.Backbone], names: Sequence[str], *,
              images: str | None = None, count: int = 4,
              grid: int = 32) -> Image.Image:
  """As `draw`, of models that are loaded already, by their names.

  Raises:
    UserError: no images there, or none that can be read.
  """
  read, shown, grids = {}, None, []
  for model in models:
    greys = model.value_range  # as it was trained to see them
    if greys not in read:
      read[greys] = _images(images, count, greys)
    side = grid * model.config.token_px
    pixels = np.stack([_square(image, side) for image in read[greys]])
    last, = model.read(model.normalize(pixels), _MAP)
    grids.append(np.asarray(last['map'], np.float32))
    shown = pixels if shown is None else shown
  return sheet(shown, grids, names)


def sheet(shown: np.ndarray, grids: list[np.ndarray],
          names: Sequence[str]) -> Image.Image:
  """One row an image: itself with a marked patch; PCA, similarity of each."""
  size = 224
  count = grids[0].shape[1]
  query = (count * 45 // 100,) * 2
  place = ((query[0] + 0.5) * size / count,) * 2
  rows = [[pictures.mark(pictures.enlarge(image, size, smooth=True), place)]
          for image in shown]
  for grid in grids:
    for row, colours, patches in zip(
        rows, pictures.pca_rgb(grid), grid, strict=True):
      near = pictures.colorize(pictures.similarity(patches, query))
      row += [pictures.enlarge(colours, size), pictures.mark(
          pictures.enlarge(near, size, smooth=True), place)]
  titles = ['image'] + [
      f'{name}: {what}' if len(names) > 1 else what for name in names
      for what in ('PCA of patches', 'similarity to the mark')]
  return pictures.panel(rows, titles)


def _images(spec: str | None, count: int,
            value_range: tuple[float, ...]) -> list[Image.Image]:
  if spec is None:
    return [Image.fromarray(photos.held_out(name))
            for name in _PHOTOS[:count]]
  return inspection.readable(
      sources.open_source(paths.expand(spec)), count,
      value_range=value_range, say=print)


def _square(image: Image.Image, side: int) -> np.ndarray:
  """The centre square of an image, resized; [y, x, c] uint8."""
  width, height = image.size
  short = min(width, height)
  left, top = (width - short) / 2, (height - short) / 2
  return np.asarray(image.resize(
      (side, side), Image.Resampling.BICUBIC,
      box=(left, top, left + short, top + short)))
