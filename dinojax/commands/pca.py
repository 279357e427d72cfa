"""`dinojax pca --workdir=runs/demo [--images=SOURCE] [--out=pca.png]`.

Patch features of a trained run as colours: their first principal components,
and how similar every patch is to a marked one. `--compare=A,B` draws those of
other runs or weights beside them: before and after a stage, for one.
"""

import os
import sys

from absl import flags
from etils import epath
import numpy as np
from PIL import Image

from dinojax.augment import photometric
from dinojax.commands import commandline
from dinojax.commands import entry as entry_lib
from dinojax.core import errors
from dinojax.core import paths
from dinojax.data import inspection
from dinojax.data import photos
from dinojax.data import sources
from dinojax.runs import pictures
from dinojax.runs import weights as weights_lib

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.')
_IMAGES = flags.DEFINE_string(
    'images', None, 'Images, as `embed --source` takes them: a folder, one '
    'image, arrayrecord:GLOB, …; default: regions of the embedded '
    'photographs far from every training tile.')
_OUT = flags.DEFINE_string(
    'out', None, 'Picture to write; default: pca.png in the workdir, or beside '
    'it where that names a student, a step or a file.')
_COMPARE = flags.DEFINE_list(
    'compare', [], 'Other runs or weights, drawn beside the first.')
_COUNT = flags.DEFINE_integer('count', 4, 'Images shown.', lower_bound=1)
_GRID = flags.DEFINE_integer(
    'grid', 32, 'Patches along the side of an image.', lower_bound=2)
_PHOTOS = ('chelsea', 'coffee', 'rocket', 'astronaut')


@entry_lib.guarded()
def main(argv: list[str]) -> int:
  """Writes the picture."""
  del argv
  try:
    runs = [paths.expand(run) for run in (_WORKDIR.value, *_COMPARE.value)]
    out = paths.expand(_OUT.value or default_out(runs[0]))
    draw(runs, out)
  except errors.UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  print(f'wrote {out}')
  return 0


def default_out(run: str) -> str:
  """In the folder of a run; else beside DIR/STUDENT, DIR@STEP or a file."""
  folder = epath.Path(run)
  return str(folder / 'pca.png') if folder.is_dir() else f'{run}_pca.png'


def draw(runs: list[str], out: str):
  """Loads the EMA of each run and draws its patch features."""
  read, shown, grids = {}, None, []
  for run in runs:
    model = weights_lib.load(run)
    greys = model.value_range  # as it was trained to see them
    if greys not in read:
      read[greys] = _images(greys)
    images = read[greys]
    side = _GRID.value * model.config.token_px
    pixels = np.stack([_square(image, side) for image in images])
    features = model(photometric.normalize(
        pixels, model.mean, model.std)).patches
    grids.append(np.asarray(features, np.float32).reshape(
        len(pixels), _GRID.value, _GRID.value, -1))
    shown = pixels if shown is None else shown
  names = [os.path.basename(run.rstrip('/')) for run in runs]
  sheet(shown, grids, names).save(out)


def sheet(shown: np.ndarray, grids: list[np.ndarray],
          names: list[str]) -> Image.Image:
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


def _images(value_range: tuple[float, ...]) -> list[Image.Image]:
  if _IMAGES.value is None:
    return [Image.fromarray(photos.held_out(name))
            for name in _PHOTOS[:_COUNT.value]]
  return inspection.readable(
      sources.open_source(paths.expand(_IMAGES.value)), _COUNT.value,
      value_range=value_range, say=print)


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
  commandline.run(main, 'pca', required=['workdir'])


if __name__ == '__main__':
  entry()
