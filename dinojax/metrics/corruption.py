"""ImageNet-C: errors on corrupted images relative to those of AlexNet."""

from collections.abc import Sequence

import numpy as np

# Mean error of AlexNet over the five levels, per cent; the standard fifteen
# first. Source: the public release of ImageNet-C (Hendrycks and Dietterich).
ALEXNET = {
    'gaussian_noise': 88.64, 'shot_noise': 89.45, 'impulse_noise': 92.26,
    'defocus_blur': 81.99, 'glass_blur': 82.63, 'motion_blur': 78.59,
    'zoom_blur': 79.84, 'snow': 86.68, 'frost': 82.66, 'fog': 81.93,
    'brightness': 56.46, 'contrast': 85.32, 'elastic_transform': 64.61,
    'pixelate': 71.78, 'jpeg_compression': 60.65, 'speckle_noise': 84.54,
    'gaussian_blur': 78.71, 'spatter': 71.75, 'saturate': 65.82}
STANDARD = tuple(ALEXNET)[:15]


def accuracies(right: np.ndarray, corruption: np.ndarray, level: np.ndarray,
               num_corruptions: int, num_levels: int = 5) -> np.ndarray:
  """[corruptions, levels] share that is right; NaN without images.

  Args:
    right: [r] of zeros and ones.
    corruption: [r] numbers from 0.
    level: [r] numbers from 1.
    num_corruptions: how many there are.
    num_levels: how many there are.
  """
  place = np.asarray(corruption) * num_levels + np.asarray(level) - 1
  size = num_corruptions * num_levels
  count = np.bincount(place, minlength=size)
  total = np.bincount(place, weights=right, minlength=size)
  return np.where(count > 0, total / np.maximum(count, 1), np.nan).reshape(
      num_corruptions, num_levels)


def relative_errors(accuracy: np.ndarray,
                    baseline: np.ndarray) -> np.ndarray:
  """[corruptions] mean error over AlexNet's; NaN where nothing is known.

  Args:
    accuracy: [corruptions, levels], see `accuracies`.
    baseline: [corruptions, levels] errors of AlexNet, shares of one.

  Differs: levels without images are left out of both means, where the
    reference's are NaN.
  """
  known = np.isfinite(accuracy)
  mean = lambda values: np.where(known, values, 0.0).sum(1) / np.maximum(
      known.sum(1), 1)
  ratio = mean(1 - np.nan_to_num(accuracy)) / np.where(
      known.any(1), mean(baseline), 1.0)
  return np.where(known.any(1), ratio, np.nan)


def mean_error(relative: np.ndarray, names: Sequence[str],
               only: Sequence[str] = STANDARD) -> float:
  """The mean of relative errors of some corruptions that are known."""
  chosen = [value for value, name in zip(relative, names, strict=True)
            if name in only and np.isfinite(value)]
  return float(np.mean(chosen))
