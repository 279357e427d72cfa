"""Pixels of a source, some images at a time; what cannot be read is said."""

from collections.abc import Iterator
from concurrent import futures
import functools

import numpy as np

from dinojax.data import images
from dinojax.data import record as record_lib
from dinojax.features import stream

_AT_ONCE = 64


def read(source: record_lib.Source, num_threads: int = 1
         ) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
  """Indices [r] and pixels, [y, x, 3] uint8, of images that can be read.

  Args:
    source: images.
    num_threads: threads that decode, for tasks that have a machine.
  """
  with futures.ThreadPoolExecutor(num_threads) as pool:
    each = pool.map if num_threads > 1 else map
    for start in range(0, len(source), _AT_ONCE):
      index = range(start, min(start + _AT_ONCE, len(source)))
      good = []
      for i, pixels in zip(index, each(
          functools.partial(_decoded, source), index), strict=True):
        if isinstance(pixels, str):
          stream.warn([{'name': f'image {i}', 'problem': pixels}], source)
        else:
          good.append((i, pixels))
      if good:
        yield np.array([i for i, _ in good]), [pixels for _, pixels in good]


def _decoded(source: record_lib.Source, index: int) -> np.ndarray | str:
  """[y, x, 3] uint8 of an image, or why it cannot be read."""
  try:
    return np.asarray(images.open_image(source[index].image).decode())
  except (OSError, images.BadImage) as error:
    return str(error)
