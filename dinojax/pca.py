"""`dinojax pca --workdir=runs/demo [--images=DIR] [--out=pca.png]`.

Patch features of a trained run as colours: their first principal components,
and how similar every patch is to a marked one.
"""

import os
import sys

from absl import app
from absl import flags
from etils import epath
import numpy as np
from PIL import Image

from dinojax import model as model_lib
from dinojax.augment import photometric
from dinojax.core import errors
from dinojax.data import images as images_lib
from dinojax.data import photos
from dinojax.data import sources
from dinojax.evals import pictures

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.')
_IMAGES = flags.DEFINE_string(
    'images', None, 'Folder of images; default: regions of the embedded '
    'photographs far from every training tile.')
_OUT = flags.DEFINE_string(
    'out', None, 'Picture to write; default: pca.png in the workdir.')
_COUNT = flags.DEFINE_integer('count', 4, 'Images shown.', lower_bound=1)
_GRID = flags.DEFINE_integer(
    'grid', 32, 'Patches along the side of an image.', lower_bound=2)
_PHOTOS = ('chelsea', 'coffee', 'rocket', 'astronaut')


def main(argv: list[str]) -> int:
  """Writes the picture."""
  del argv
  try:
    out = _OUT.value or str(epath.Path(_WORKDIR.value) / 'pca.png')
    draw(_WORKDIR.value, out)
  except errors.UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  print(f'wrote {out}')
  return 0


def draw(workdir: str, out: str):
  """Loads the EMA teacher of a run and draws its patch features."""
  model = model_lib.load(workdir)
  side = _GRID.value * model.config.patch_px
  shown = np.stack([_square(image, side) for image in _images()])
  features = model(photometric.normalize(
      shown, model.mean, model.std)).patches
  grids = np.asarray(features, np.float32).reshape(
      len(shown), _GRID.value, _GRID.value, -1)
  sheet(shown, grids).save(out)


def sheet(shown: np.ndarray, grids: np.ndarray) -> Image.Image:
  """One row an image: itself with a marked patch, PCA, similarity."""
  size, rows = 224, []
  query = (grids.shape[1] * 45 // 100, grids.shape[2] * 45 // 100)
  place = tuple((i + 0.5) * size / grids.shape[1] for i in query[::-1])
  for image, colours, grid in zip(
      shown, pictures.pca_rgb(grids), grids, strict=True):
    near = pictures.colorize(pictures.similarity(grid, query))
    rows.append([
        pictures.mark(pictures.enlarge(image, size, smooth=True), place),
        pictures.enlarge(colours, size),
        pictures.mark(pictures.enlarge(near, size, smooth=True), place)])
  return pictures.panel(
      rows, ('image', 'PCA of patches', 'similarity to the mark'))


def _images() -> list[Image.Image]:
  if _IMAGES.value is None:
    return [Image.fromarray(photos.held_out(name))
            for name in _PHOTOS[:_COUNT.value]]
  source = sources.open_source(f'folder:{os.path.expanduser(_IMAGES.value)}')
  chosen = range(min(len(source), _COUNT.value))
  return [images_lib.open_image(source[i].image).decode() for i in chosen]


def _square(image: Image.Image, side: int) -> np.ndarray:
  """The centre square of an image, resized; [y, x, c] uint8."""
  width, height = image.size
  short = min(width, height)
  left, top = (width - short) / 2, (height - short) / 2
  return np.asarray(image.resize(
      (side, side), Image.Resampling.BICUBIC,
      box=(left, top, left + short, top + short)))


def entry():
  """The `pca` entry of the console command."""
  flags.mark_flag_as_required('workdir')
  app.run(main)


if __name__ == '__main__':
  entry()
