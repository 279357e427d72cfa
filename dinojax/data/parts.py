"""A source in two parts: what is trained on, and what is measured on."""

import numpy as np

from dinojax.core import errors
from dinojax.data import record as record_lib

PARTS = ('kept', 'held_out')
ONE_OF = 10  # images, in the order of the source, is held out


class Chosen:
  """Some records of a source, by their numbers."""

  def __init__(self, inner: record_lib.Source, indices: np.ndarray):
    """Keeps the records `indices`, in their order."""
    self.spec, self.classes = inner.spec, inner.classes
    self._inner, self._chosen = inner, indices

  def __len__(self) -> int:
    return len(self._chosen)

  def order(self, sizes: bool) -> list[str]:
    """Lines that decide which record has which number, see data.identity."""
    inner = getattr(self._inner, 'order', None)
    return [*(inner(sizes) if inner else [str(len(self._inner))]),
            ' '.join(map(str, self._chosen))]

  def __getitem__(self, index: int) -> record_lib.Record:
    return self._inner[int(self._chosen[index])]


def evenly(source: record_lib.Source, limit: int) -> record_lib.Source:
  """At most `limit` records of a source, evenly over it."""
  if len(source) <= limit:
    return source
  return Chosen(source, np.linspace(
      0, len(source) - 1, limit).round().astype(int))


class Part(Chosen):
  """Every tenth image of a source, or all others.

  A folder is in the order of its paths, so a tenth of each class is held out.
  """

  def __init__(self, part: str, inner: record_lib.Source):
    """Chooses by position.

    Args:
      part: one of PARTS.
      inner: the whole.

    Raises:
      UserError: too few images.
    """
    out = np.arange(len(inner)) % ONE_OF == ONE_OF - 1
    super().__init__(inner, np.flatnonzero(out == (part == 'held_out')))
    self.spec = f'{part}:{inner.spec}'
    if not len(self._chosen):
      raise errors.UserError(
          f'{self.spec} holds no image: one in {ONE_OF} is held out, and '
          f'there are {len(inner)}')
