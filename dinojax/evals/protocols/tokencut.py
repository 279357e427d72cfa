"""Discovery of an object by the normalised cut of patches: CorLoc.

Source: TokenCut (Wang et al. 2022), evaluated as LOST does. Images are taken
  as they are, with the mean colour beyond their right and lower edges.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np
from PIL import Image

from dinojax.core import errors
from dinojax.core import fields
from dinojax.evals import cut
from dinojax.evals import drawing
from dinojax.evals import items
from dinojax.evals import protocol
from dinojax.evals.sets import boxes
from dinojax.evals.sets import tables
from dinojax.features import spec as spec_lib
from dinojax.metrics import overlap

TITLE = 'discovery of an object by cutting patches in two'
COST = 'test once, at the size of the images'
PIXELS = lambda settings: settings.long_px or ''
ROLES = {'test': protocol.Role(opens=boxes.open_set, what=(
    f'images with boxes, {boxes.EXAMPLE}'))}
_PICTURES = 8


@dataclasses.dataclass(frozen=True)
class Settings:
  """Share of images with a true box that the discovered one overlaps."""

  test: tuple[str, ...] = ()  # Sets of images with boxes.
  tau: float = 0.2  # Least cosine of patches that belong together.
  eps: fields.Above0 = 1e-5  # Affinity of patches that do not.
  # Features that are compared: keys of the last attention, or patches.
  features: str = 'keys'
  # Grids of patches are filled up to multiples of so many rows and columns
  # with the mean colour: sizes share programs. TokenCut's is 1.
  pad_patches: fields.Positive = 4
  # Longer side that images are resized to, in pixels; None: as they are.
  long_px: fields.Positive | None = None


def check(settings: Settings, config: Any):
  """Keys are of attention.

  Raises:
    UserError: features that are not known, or that the backbone lacks.
  """
  if settings.features not in ('keys', 'patches'):
    raise errors.UserError(
        f'tokencut.features={settings.features} is not known: give keys or '
        'patches')
  if settings.features == 'keys' and not config.has_attention:
    raise errors.UserError(
        'tokencut.features=keys, and a ConvNeXt has no attention: give '
        'tokencut.features=patches')


def passes(settings: Settings, sizes: Mapping[str, int]) -> int:
  """Images that go through the backbone."""
  del settings
  return sizes['test']


def run(job: protocol.Job, settings: Settings) -> list[protocol.Measured]:
  """CorLoc and overlap of every image.

  Raises:
    UserError: an image that cannot be read.
  """
  model = items.on_own_devices(job.model)
  return [_measured(job, model, test, settings) for test in job.sets['test']]


def _measured(job: protocol.Job, model, test: boxes.Boxes,
              settings: Settings) -> protocol.Measured:
  """Rows of a set."""
  def measure(index: int):
    columns, picture = _image(model, test[index], test.where, settings,
                              index < _PICTURES)
    columns['index'] = np.array([index])
    job.progress(1)
    return columns, {} if picture is None else {f'{index:02d}': picture}

  rows, pictures = items.rows(
      len(test), measure, folder=items.place(job, test.spec),
      passed=lambda item: job.progress(1))
  unsure = int((rows['converged'] == 0).sum())
  if unsure:
    job.say(f'tokencut: the cut of {unsure} of {len(test)} images did not '
            'converge: their boxes may be others')
  sheet = [pictures[name] for name in sorted(pictures)]
  return protocol.Measured(
      test.spec, rows, score,
      facts={'features': settings.features, 'boxes': int(
          rows['boxes'].sum()), 'not converged': unsure},
      pictures={'boxes': drawing.grid(
          [sheet[i:i + 4] for i in range(0, len(sheet), 4)])})


def score(rows: protocol.Rows) -> dict[str, float]:
  """CorLoc, and the mean overlap with the best box, in per cent."""
  return protocol.means({'CorLoc': rows['CorLoc'], 'IoU': rows['IoU']})


def _image(model, item: boxes.Item, where: str, settings: Settings,
           draw: bool) -> tuple[protocol.Rows, np.ndarray | None]:
  """Columns of an image [1, …], and its picture."""
  picture = tables.pixels(item.path, where)
  size = picture.size
  if settings.long_px:
    factor = settings.long_px / max(size)
    size = tuple(max(round(n * factor), 1) for n in size)
  patch = model.config.token_px
  step = patch * settings.pad_patches
  sides = [-(-n // step) * step for n in size]
  pixels = np.empty((sides[1], sides[0], 3), np.uint8)
  pixels[:] = np.round(255 * np.array(model.mean)).astype(np.uint8)
  pixels[:size[1], :size[0]] = np.asarray(
      picture if size == picture.size else picture.resize(
          size, Image.Resampling.BICUBIC))
  outputs, = items.read(model, [pixels], spec_lib.FeatureSpec(
      ('map',) if settings.features == 'patches' else ('keys', 'map')))
  features = outputs['map']
  if settings.features == 'keys':
    # CLS and registers come first.
    rows, columns = features.shape[:2]
    features = outputs['keys'][-rows * columns:].reshape(rows, columns, -1)
  patch = pixels.shape[0] // features.shape[0]
  if max(size) <= patch:
    raise errors.UserError(
        f'{item.path} has {size[0]} × {size[1]} pixels, one patch of {patch}: '
        f'leave it out, or set tokencut.long_px to {8 * patch} or more')
  got = cut.discover(
      features, patch_px=patch,
      image_px=size[::-1], tau=settings.tau, eps=settings.eps)
  box = got.box / (np.array(size) / picture.size)[[0, 1, 0, 1]]
  columns = {
      'CorLoc': np.array([float(overlap.is_localised(box, item.boxes))]),
      'IoU': np.array([overlap.iou(box, item.boxes).max()]),
      'box': box[None], 'boxes': np.array([len(item.boxes)]),
      'gap': np.array([got.eigenvalues[1] - got.eigenvalues[0]]),
      'converged': np.array([int(got.converged)])}
  if not draw:
    return columns, None
  mask = np.kron(got.mask, np.ones((patch, patch), bool))
  return columns, drawing.boxes(
      picture, box, item.boxes, mask[:size[1], :size[0]])
