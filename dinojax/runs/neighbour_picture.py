"""Images beside those that a model finds most like them."""

from collections.abc import Iterator
import itertools

import numpy as np
from PIL import Image

from dinojax.core import errors
from dinojax.data import inspection
from dinojax.data import record as record_lib
from dinojax.features import backbone
from dinojax.features import nearest as nearest_lib
from dinojax.runs import pictures

_TILE_PX = 96
_BATCH = 32


def draw(model: backbone.Backbone, source: record_lib.Source, *,
         rows: int = 5, columns: int = 6, most: int = 200,
         resize_px: int = 256, crop_px: int = 224) -> Image.Image:
  """A row for each of some images: itself, then its nearest neighbours.

  Args:
    model: backbone whose CLS features are compared by their cosine.
    source: images, of which at most `most` are looked at, evenly over classes.
    rows: images that are asked for.
    columns: neighbours of each.
    most: images that are looked at.
    resize_px: length of the short side before the crop.
    crop_px: side of the square that the model sees.

  Raises:
    UserError: none of the images can be read.
  """
  pixels = np.stack(list(_squares(
      model, source, most, max(resize_px, crop_px), crop_px)))
  cls = np.concatenate([
      np.asarray(model(model.normalize(pixels[i:i + _BATCH])).cls, np.float32)
      for i in range(0, len(pixels), _BATCH)])
  asked = np.unique(np.linspace(0, len(cls) - 1, rows).astype(int))
  _, nearest = nearest_lib.nearest(
      cls, cls[asked], k=min(columns + 1, len(cls)))
  return pictures.panel(
      [[pictures.enlarge(pixels[index], _TILE_PX, smooth=True)
        for index in (first, *[n for n in near if n != first][:columns])]
       for first, near in zip(asked, nearest, strict=True)],
      ['image', 'nearest'])


def _squares(model: backbone.Backbone, source: record_lib.Source, most: int,
             resize_px: int, crop_px: int) -> Iterator[np.ndarray]:
  """Crops of readable images, one decoded at a time."""
  count = 0
  for index in itertools.islice(inspection.spread(source, most), most):
    try:
      square, = model.pixels(
          source[index].image, resize_px=resize_px, crop_px=crop_px)
    except errors.UserError:
      continue  # one picture less: `crops` and training say which and why
    count += 1
    yield square
  if not count:
    raise errors.UserError(
        f'none of the images of {source.spec} that are looked at can be read')
