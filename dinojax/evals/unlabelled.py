"""Images without maps, as the sets of maps are read."""

import dataclasses
from typing import Any

from PIL import Image

from dinojax.data import images
from dinojax.data import pipeline
from dinojax.data import record as record_lib


@dataclasses.dataclass(frozen=True)
class Reading:
  """How images are read.

  Attributes:
    max_pixels: pixels of the largest image that is read.
    num_threads: threads that read headers.
  """

  max_pixels: int = images.DEFAULT_MAX_PIXELS
  num_threads: int = 2


class Images:
  """A source of records as a set of images, at their own sizes."""

  def __init__(self, source: record_lib.Source, reading: Reading):
    """Opens nothing."""
    self.spec, self.classes = source.spec, ()
    self._source, self._reading = source, reading

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> 'Alone':
    record = self._source[int(index)]
    return Alone(record.image, record.name, self._reading.max_pixels)

  def headers(self) -> list[dict]:
    """Name of each image, its size (rows, columns), or its `problem`."""
    return list(pipeline.items_in_order(
        self, _size, num_threads=self._reading.num_threads))


@dataclasses.dataclass(frozen=True)
class Alone:
  """An image without a map, see sets.dense.Pair."""

  image: bytes
  name: str
  max_pixels: int

  def opened(self) -> images.Image:
    """The image by its header."""
    return images.open_image(self.image, max_pixels=self.max_pixels)

  def decoded(self) -> tuple[Image.Image, None]:
    """The image, and no map."""
    return self.opened().decode(), None


def _size(alone: Any) -> dict:
  return {'size': alone.opened().size[::-1]}
