"""A source without files: drawn patterns, for trials that need no images.

Label = kind of pattern: stripes, checks, rings or dots, each with colours and
a size of its own. An image is a function of its split and index.
"""

import io

import numpy as np
from PIL import Image

from dinojax.core import errors
from dinojax.data import record as record_lib

KINDS = ('stripes', 'checks', 'rings', 'dots')
SIDE_PX = 64
_COUNTS = {'train': 128, 'validation': 64}


class Patterns:
  """Patterns of one split."""

  classes = KINDS

  def __init__(self, split: str):
    """Opens 'train' or 'validation'.

    Raises:
      UserError: unknown split.
    """
    if split not in _COUNTS:
      raise errors.UserError(
          f'patterns:{split} is not known: use patterns:train or '
          'patterns:validation')
    self.spec, self._split = f'patterns:{split}', split

  def __len__(self) -> int:
    return _COUNTS[self._split]

  def __getitem__(self, index: int) -> record_lib.Record:
    label = range(len(self))[index] % len(KINDS)
    rng = np.random.default_rng((list(_COUNTS).index(self._split), index))
    data = io.BytesIO()
    Image.fromarray(draw(KINDS[label], rng)).save(data, 'PNG')
    return record_lib.Record(
        data.getvalue(), label, f'{KINDS[label]}/{index}')


def draw(kind: str, rng: np.random.Generator) -> np.ndarray:
  """A pattern [y, x, c] uint8 in two random colours.

  Args:
    kind: one of KINDS.
    rng: randomness.
  """
  angle, period = rng.uniform(0, np.pi), rng.uniform(8, 24)  # pixels
  y, x = np.mgrid[:SIDE_PX, :SIDE_PX] - rng.uniform(0, SIDE_PX, (2, 1, 1))
  waves = 2 * np.pi / period * np.stack([
      x * np.cos(angle) + y * np.sin(angle),
      y * np.cos(angle) - x * np.sin(angle)])
  height = {
      'stripes': np.sin(waves[0]),
      'checks': np.sin(waves[0]) * np.sin(waves[1]),
      'rings': np.sin(2 * np.pi / period * np.hypot(x, y)),
      'dots': np.sin(waves[0]) + np.sin(waves[1]) - 1,
  }[kind]
  first, second = rng.integers(0, 256, (2, 3))
  return np.where(height[..., None] > 0, first, second).astype(np.uint8)
