"""PDQ: 256 bits of an image, by the package pdqhash that a user installs."""

from collections.abc import Sequence
import types

import numpy as np

from dinojax.core import errors

BITS = 256
# Of 100: below it an image shows too little to tell it by. Source: the makers
# of PDQ (ThreatExchange), who discard such hashes.
_QUALITY = 50


def library() -> types.ModuleType:
  """The package pdqhash.

  Raises:
    UserError: it is not installed.
  """
  try:
    import pdqhash
  except ImportError as error:
    raise errors.UserError(
        'hash.kind=pdq needs the package pdqhash: pip install pdqhash (it is '
        'compiled then), or take hash.kind=pca') from error
  return pdqhash


def hashes(images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
  """Hashes of images that show enough.

  Args:
    images: [y, x, 3] uint8 each.

  Returns:
    [r, 32] uint8, the most significant bit first; and [r], which images they
    are of.
  """
  compute, rows, good = library().compute, [], []
  for index, pixels in enumerate(images):
    bits, quality = compute(np.ascontiguousarray(pixels))
    if quality >= _QUALITY:
      rows.append(np.packbits(np.asarray(bits, np.uint8)))
      good.append(index)
  return (np.array(rows, np.uint8).reshape(-1, BITS // 8),
          np.array(good, np.int64))
