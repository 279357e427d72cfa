"""Similarity maps of one patch over training, from similarity.jsonl."""

from collections.abc import Mapping

from etils import epath
import numpy as np
from PIL import Image

from dinojax.core import errors
from dinojax.core import log
from dinojax.data import sources
from dinojax.evals import patches
from dinojax.features import preprocessing
from dinojax.runs import pictures
from dinojax.train import settings as settings_lib

_SIDE_PX = 224


def has(folder: epath.Path) -> bool:
  """Tells whether a run has logged any."""
  return (folder / patches.FILE).exists()


def draw(folder: epath.Path, settings: settings_lib.Settings) -> Image.Image:
  """A row for each student: the image, then its first, middle and last map.

  Raises:
    UserError: nothing was logged, or the image cannot be read any more.
  """
  rows = [row for row in log.rows(folder / patches.FILE) if 'maps' in row]
  if not rows:
    raise errors.UserError(f'{folder / patches.FILE} holds no map yet')
  chosen = list({row['step']: row for row in (
      rows[0], rows[len(rows) // 2], rows[-1])}.values())
  source = sources.open_source(patches.source_of(settings))
  drawn = []
  for name in chosen[-1]['maps']:
    maps = [row['maps'].get(name) for row in chosen]
    last = maps[-1]
    count = len(last['map'])
    spot = tuple((n + 0.5) * _SIDE_PX / count for n in patches.query(
        (count, len(last['map'][0])))[::-1])
    image, = preprocessing.centers(
        source[last['record']].image,
        resize_px=settings.knn.resize_px, crop_px=settings.knn.crop_px,
        value_range=tuple(settings.data.value_range))
    drawn.append(
        [pictures.mark(pictures.enlarge(image, _SIDE_PX, smooth=True), spot)]
        + [_map(x) for x in maps])
  if not drawn:
    raise errors.UserError(
        f'the last row of {folder / patches.FILE} holds no map: none of the '
        'images could be read')
  return pictures.panel(
      drawn, ['image', *(f'step {row["step"]}' for row in chosen)])


def _map(kept: Mapping | None) -> Image.Image:
  """A map in colours; grey where a student had not begun."""
  if kept is None:
    return Image.new('RGB', (_SIDE_PX, _SIDE_PX), (128, 128, 128))
  return pictures.enlarge(
      pictures.colorize(np.array(kept['map'], float)), _SIDE_PX)
