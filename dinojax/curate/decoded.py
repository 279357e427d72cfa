"""Pixels of a source, some images at a time; what cannot be read is said."""

from collections.abc import Iterator

import numpy as np

from dinojax.data import images
from dinojax.data import record as record_lib
from dinojax.features import stream

_AT_ONCE = 64


def read(source: record_lib.Source
         ) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
  """Indices [r] and pixels, [y, x, 3] uint8, of images that can be read."""
  index, pixels = [], []
  for i in range(len(source)):
    try:
      entry = source[i]
      picture = images.open_image(entry.image).decode()
    except (OSError, images.BadImage) as error:
      stream.warn([{'name': f'image {i}', 'problem': str(error)}], source)
      continue
    index.append(i)
    pixels.append(np.asarray(picture))
    if len(index) == _AT_ONCE:
      yield np.array(index), pixels
      index, pixels = [], []
  if index:
    yield np.array(index), pixels
