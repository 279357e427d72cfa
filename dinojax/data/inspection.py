"""A look at a few images of a source, before training reads them all."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import itertools

import numpy as np
from PIL import Image as PilImage

from dinojax.core import errors
from dinojax.core import text
from dinojax.data import images
from dinojax.data import record as record_lib

# Of 255: 12-bit greys read as 16 bits reach 16.
_FLAT, _DARK = 3, 16


@dataclasses.dataclass(frozen=True)
class Sample:
  """Findings of a look at a few images of a source.

  Attributes:
    spec: spec of the source, as `open_source` reads it.
    num_images: number of images of the whole source.
    sides: [r, 2] width and height of the readable images, pixels.
    problems: names of unreadable images, and why they are.
    empty: names of readable images with next to nothing to see, and whether
      they are 'black', 'white' or 'of one value'.
  """

  spec: str
  num_images: int
  sides: np.ndarray
  problems: Sequence[tuple[str, str]]
  empty: Sequence[tuple[str, str]] = ()

  @property
  def num_seen(self) -> int:
    """Images that were looked at."""
    return len(self.sides) + len(self.problems)

  @property
  def short_px(self) -> int:
    """The short side of the image in the middle; 0 without images."""
    return int(np.median(self.sides.min(-1))) if len(self.sides) else 0


def sample(source: record_lib.Source, count: int, *,
           max_pixels: int = images.DEFAULT_MAX_PIXELS,
           value_range: Sequence[float] = ()) -> Sample:
  """Decodes `count` images, evenly spread over the source."""
  sides, problems, empty = [], [], []
  chosen = np.unique(np.linspace(0, len(source) - 1, count).astype(int))
  for index in chosen:
    name = str(index)
    try:
      record = source[int(index)]
      name = record.name
      image = images.open_image(
          record.image, max_pixels=max_pixels, value_range=value_range)
      look = emptiness(image.decode())
      sides.append(image.size)
      if look:
        empty.append((name, look))
    except images.BadImage as error:
      problems.append((name, error.reason))
    except OSError as error:
      problems.append((name, f'unreadable: {error}'))
  return Sample(source.spec, len(source),
                np.array(sides, int).reshape(-1, 2), problems, empty)


def readable(source: record_lib.Source, count: int, *,
             max_pixels: int = images.DEFAULT_MAX_PIXELS,
             value_range: Sequence[float] = (),
             say: Callable[[str], None]) -> list[PilImage.Image]:
  """The first `count` images that can be read, spread over the classes.

  Args:
    source: records.
    count: number of images; fewer are returned if fewer can be read.
    max_pixels: pixels of the largest image that is read.
    value_range: black and white of deep greys, see data.images.
    say: gets a line for every image that is left out.

  Raises:
    UserError: none can be read.
  """
  readable_images, problems = [], []
  for index in spread(source, count):
    name = str(index)
    try:
      record = source[index]
      name = record.name
      readable_images.append(images.open_image(
          record.image, max_pixels=max_pixels,
          value_range=value_range).decode())
    except (images.BadImage, OSError) as error:
      problems.append(f'{text.printable(name)}: {text.printable(error)}')
      say(f'left out: {problems[-1]}')
    if len(readable_images) == count:
      break
  if not readable_images:
    raise errors.UserError(
        f'none of {len(problems)} images of {source.spec} can be read, the '
        f'first is {problems[0]}; check the source')
  return readable_images


def spread(source: record_lib.Source, count: int) -> Iterator[int]:
  """Numbers of records to look at first, a class after another."""
  labels = getattr(source, 'labels', lambda: None)()
  if labels is None:  # not known without reading: far from each other
    places = np.linspace(0, len(source) - 1, min(count, len(source)))
    first = dict.fromkeys(places.astype(int).tolist())
    yield from first
    yield from (i for i in range(len(source)) if i not in first)
    return
  of_class = [np.flatnonzero(np.asarray(labels) == label).tolist()
              for label in dict.fromkeys(labels)]
  for turn in itertools.zip_longest(*of_class):
    yield from (index for index in turn if index is not None)


def emptiness(pixels: PilImage.Image) -> str:
  """Says 'black', 'white' or 'of one value' of an image, '' of most.

  The lightest and darkest 0.5 % of the pixels do not count: they are what
  remains where a range is wrong by a factor.
  """
  count = np.cumsum(pixels.convert('L').histogram()) / (
      pixels.width * pixels.height)
  darkest, lightest = np.searchsorted(count, (0.005, 0.995))
  if lightest - darkest <= _FLAT and _DARK < darkest < 255 - _DARK:
    return 'of one value'
  if lightest <= _DARK:
    return 'black'
  return 'white' if darkest >= 255 - _DARK else ''
