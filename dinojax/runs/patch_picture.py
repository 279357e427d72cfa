"""Patch features of runs as colours, beside their images."""

from collections.abc import Sequence
import dataclasses
import os
import zipfile

from etils import epath
import numpy as np
from PIL import Image

from dinojax.core import atomic
from dinojax.core import errors
from dinojax.core import paths
from dinojax.data import frames
from dinojax.data import inspection
from dinojax.data import photos
from dinojax.data import sources
from dinojax.evals import patches as patches_lib
from dinojax.features import backbone
from dinojax.features import spec as spec_lib
from dinojax.runs import models as models_lib
from dinojax.runs import pictures

_PHOTOS = ('chelsea', 'coffee', 'rocket', 'astronaut')
_BATCH_PATCHES = 4096  # of the images that are read together
_CELL_PX, _PATCH_PX, _LARGEST_PX = 224, 4, 1024  # sides of a cell of the sheet


@dataclasses.dataclass(frozen=True)
class Look:
  """Choice of the images and of what is drawn of them.

  Attributes:
    images: source of images, or a video; None: regions of the embedded
      photographs far from every training tile.
    count: images, or frames, that are shown.
    grid: patches along the side of an image.
    foreground: colours the foreground alone, by components of its own.
    classifier: file of a logistic classifier of patches that tells the
      foreground, an npz of `weight` [d] and `bias`; None: the first component
      does.
    attention: adds the attention of CLS in the last block, mean of the heads.
  """

  images: str | None = None
  count: int = 4
  grid: int = 32
  foreground: bool = False
  attention: bool = False
  classifier: str | None = None

  @property
  def spec(self) -> spec_lib.FeatureSpec:
    """The features that are read."""
    outputs = ('map', 'cls_attention') if self.attention else ('map',)
    return spec_lib.FeatureSpec(outputs, 1, 'final')


def default_out(run: str) -> str:
  """In the folder of a run; else beside DIR/STUDENT, DIR@STEP or a file.

  Of what is not on this machine, here.
  """
  if run.startswith('hf:') or not atomic.is_local(run):
    return f'{run.rstrip("/").rpartition("/")[2]}_pca.png'
  folder = epath.Path(run)
  return str(folder / 'pca.png') if folder.is_dir() else f'{run}_pca.png'


def draw(runs: Sequence[str], look: Look = Look()) -> Image.Image:
  """Patch features of the EMA of runs as colours, a row an image.

  Args:
    runs: runs or weights, drawn beside each other.
    look: images, and what is drawn of them.

  Raises:
    UserError: nothing there, or damaged.
  """
  names = [os.path.basename(run.rstrip('/')) for run in runs]
  return of_models([models_lib.load(run) for run in runs], names, look)


def of_models(models: Sequence[backbone.Backbone], names: Sequence[str],
              look: Look = Look()) -> Image.Image:
  """As `draw`, of models that are loaded already, by their names.

  Raises:
    UserError: no images there, or none that can be read.
  """
  for model in models:
    look.spec.check(model.config)  # before images are read
  read, shown, features = {}, None, []
  for model in models:
    greys = model.value_range  # as it was trained to see them
    if greys not in read:
      read[greys] = _images(look.images, look.count, greys)
    side = look.grid * model.config.token_px
    pixels = np.stack([_square(image, side) for image in read[greys]])
    features.append(_features(model, pixels, look))
    shown = pixels if shown is None else shown
  return _sheet(shown, features, names, look)


def _features(model: backbone.Backbone, pixels: np.ndarray,
              look: Look) -> dict[str, np.ndarray]:
  """Patches `map` [b, y, x, d] and, asked for, `attention` [b, y, x]."""
  most = max(_BATCH_PATCHES // look.grid**2, 1)
  rows = next(n for n in range(min(most, len(pixels)), 0, -1)
              if len(pixels) % n == 0)
  parts = []
  for i in range(0, len(pixels), rows):
    last, = model.read(model.normalize(pixels[i:i + rows]), look.spec)
    part = {'map': np.asarray(last['map'], np.float32)}
    if look.attention:
      weights = np.asarray(last['cls_attention'], np.float32).mean(1)
      part['attention'] = weights[:, -look.grid**2:].reshape(
          -1, look.grid, look.grid)
    parts.append(part)
  return {name: np.concatenate([part[name] for part in parts])
          for name in parts[0]}


def _sheet(shown: np.ndarray, features: Sequence[dict[str, np.ndarray]],
           names: Sequence[str], look: Look) -> Image.Image:
  """One row an image: itself with a marked patch, then what models see."""
  size = min(max(_CELL_PX, _PATCH_PX * look.grid), _LARGEST_PX)
  query = patches_lib.query((look.grid,) * 2)
  place = ((query[0] + 0.5) * size / look.grid,) * 2
  rows = [[pictures.mark(pictures.enlarge(image, size, smooth=True), place)]
          for image in shown]
  enlarge = lambda colours: pictures.enlarge(colours, size, smooth=True)
  for maps in features:
    patches = maps['map']
    for i, colours in enumerate(_colours(patches, look)):
      near = pictures.colorize(pictures.similarity(patches[i], query))
      rows[i] += [pictures.enlarge(colours, size),
                  pictures.mark(enlarge(near), place)]
      if look.attention:
        rows[i].append(enlarge(pictures.colorize(maps['attention'][i])))
  foreground = look.foreground or look.classifier
  what = ['PCA of the foreground' if foreground else 'PCA of patches',
          'similarity to the mark'] + ['attention of CLS'] * look.attention
  titles = ['image'] + [f'{name}: {text}' if len(names) > 1 else text
                        for name in names for text in what]
  return pictures.panel(rows, titles)


def _colours(patches: np.ndarray, look: Look) -> np.ndarray:
  """[b, y, x, 3] uint8 colours of patches [b, y, x, d].

  Raises:
    UserError: a classifier that cannot be read, or of other features.
  """
  if not look.classifier:
    return pictures.pca_rgb(
        patches, pictures.foreground(patches) if look.foreground else None)
  weight, bias = _classifier(look.classifier)
  if weight.shape != patches.shape[-1:]:
    raise errors.UserError(
        f'--classifier={look.classifier} has weights of shape '
        f'{weight.shape}, and patches have {patches.shape[-1]} features: give '
        'a classifier of this model')
  got = pictures.foreground_pca(patches, weight, bias)
  return np.round(255 * got.colours).astype(np.uint8)


def _classifier(file: str) -> tuple[np.ndarray, float]:
  """Weights and bias of a logistic classifier.

  Raises:
    UserError: no such file, or another content.
  """
  try:
    with np.load(paths.expand(file), allow_pickle=False) as arrays:
      return arrays['weight'].reshape(-1), float(arrays['bias'].reshape(()))
  except (OSError, ValueError, KeyError, TypeError,
          zipfile.BadZipFile) as error:
    raise errors.UserError(
        f'--classifier={file} cannot be read ({error}): give an npz with '
        '`weight`, a number a feature, and `bias`') from error


def _images(spec: str | None, count: int,
            value_range: tuple[float, ...]) -> list[Image.Image]:
  if spec is None:
    return [Image.fromarray(photos.held_out(name))
            for name in _PHOTOS[:count]]
  if frames.is_video(spec):
    return frames.read(paths.expand(spec), count)
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
