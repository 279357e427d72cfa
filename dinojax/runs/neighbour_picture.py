"""Images beside those that a model finds most like them."""

import numpy as np
from PIL import Image

from dinojax.data import inspection
from dinojax.data import record as record_lib
from dinojax.evals import knn
from dinojax.features import backbone
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
  images = inspection.readable(
      source, min(most, len(source)), value_range=model.value_range,
      say=lambda text: None)
  pixels = model.pixels(images, resize_px=max(resize_px, crop_px),
                        crop_px=crop_px)
  cls = np.concatenate([
      np.asarray(model(model.normalize(pixels[i:i + _BATCH])).cls, np.float32)
      for i in range(0, len(pixels), _BATCH)])
  asked = np.unique(np.linspace(0, len(cls) - 1, rows).astype(int))
  _, nearest = knn.nearest(cls, cls[asked], k=min(columns + 1, len(cls)))
  return pictures.panel(
      [[pictures.enlarge(pixels[index], _TILE_PX, smooth=True)
        for index in (first, *[n for n in near if n != first][:columns])]
       for first, near in zip(asked, nearest, strict=True)],
      ['image', 'nearest'])
