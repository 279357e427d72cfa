"""A look at a few images of a source, before training reads them all."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from dinojax.data import images
from dinojax.data import sources


@dataclasses.dataclass(frozen=True)
class Sample:
  """What was seen of a source.

  Attributes:
    spec: of the source.
    num_images: of the whole source.
    sides: [r, 2] width and height of the readable images, pixels.
    problems: names of the others, and why.
  """

  spec: str
  num_images: int
  sides: np.ndarray
  problems: Sequence[tuple[str, str]]

  @property
  def num_seen(self) -> int:
    """Images that were looked at."""
    return len(self.sides) + len(self.problems)

  @property
  def short_px(self) -> int:
    """The short side of the image in the middle; 0 without images."""
    return int(np.median(self.sides.min(-1))) if len(self.sides) else 0


def sample(source: sources.Source, count: int, *,
           max_pixels: int = images.DEFAULT_MAX_PIXELS) -> Sample:
  """Decodes `count` images, evenly spread over the source."""
  sides, problems = [], []
  chosen = np.unique(np.linspace(0, len(source) - 1, count).astype(int))
  for index in chosen:
    name = str(index)
    try:
      record = source[int(index)]
      name = record.name
      image = images.open_image(record.image, max_pixels=max_pixels)
      image.decode()
      sides.append(image.size)
    except images.BadImage as error:
      problems.append((name, error.reason))
    except OSError as error:
      problems.append((name, f'unreadable: {error}'))
  return Sample(source.spec, len(source),
                np.array(sides, int).reshape(-1, 2), problems)
