"""Errors of predicted heights in metres, of pixels and of blocks; numpy.

Images give sums, of which scores are made: a coefficient of determination is
of all pixels together, not a mean over images.

Source: the measures of canopy height maps (arXiv 2304.07213, and its sequel).
"""

from collections.abc import Mapping

import numpy as np

BLOCK_M = 30.0  # side of a block, metres
# Of pixels and of blocks: number, sum of errors, of their magnitudes and
# squares, and of true heights and their squares.
SUMS = ('count', 'error', 'absolute', 'square', 'height', 'height_square')
_LEAST = 0.5  # share of a block's pixels that are known


def sums(predicted: np.ndarray, truth: np.ndarray,
         block_px: int) -> dict[str, float]:
  """Sums of an image: SUMS of its pixels, and of its blocks as `block_…`.

  Args:
    predicted: [y, x] metres.
    truth: [y, x] metres; NaN where unknown.
    block_px: side of a block; a block counts where half of it is known, with
      the means of both over what is known.
  """
  valid = np.isfinite(truth)
  out = _sums(predicted[valid], truth[valid])
  rows, columns = (n // block_px * block_px for n in truth.shape)
  cut = lambda x: x[:rows, :columns].reshape(
      rows // block_px, block_px, columns // block_px, block_px)
  number = cut(valid).sum((1, 3))
  some = number >= max(_LEAST * block_px**2, 1)
  mean = lambda x: cut(np.where(valid, x, 0.0)).sum(
      (1, 3), dtype=np.float64)[some] / number[some]
  return out | {f'block_{name}': value for name, value in _sums(
      mean(predicted), mean(truth)).items()}


def _sums(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
  predicted, truth = (x.astype(np.float64) for x in (predicted, truth))
  error = predicted - truth
  values = (len(error), error.sum(), np.abs(error).sum(), (error**2).sum(),
            truth.sum(), (truth**2).sum())
  return dict(zip(SUMS, map(float, values), strict=True))


def scores(rows: Mapping[str, np.ndarray]) -> dict[str, float]:
  """MAE, RMSE and bias in metres, R² of pixels and of blocks.

  Args:
    rows: [r] sums of images by name.

  Returns:
    Scores; NaN where nothing counts, or all true heights are equal.
  """
  of = lambda start: {name: float(rows[start + name].sum()) for name in SUMS}
  pixels, blocks = of(''), of('block_')
  count = pixels['count'] or float('nan')
  return {'MAE': pixels['absolute'] / count,
          'RMSE': float(np.sqrt(pixels['square'] / count)),
          'bias': pixels['error'] / count, 'R2': _determined(pixels),
          'block R2': _determined(blocks)}


def _determined(total: Mapping[str, float]) -> float:
  """Part of the variance of true heights that predictions explain."""
  if not total['count']:
    return float('nan')
  apart = total['height_square'] - total['height']**2 / total['count']
  if apart <= 1e-9 * max(total['height_square'], 1):
    return float('nan')
  return 1 - total['square'] / apart
