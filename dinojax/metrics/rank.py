"""Effective rank of features: how many directions they use; numpy."""

import numpy as np

_EPSILON = 1e-7  # added to shares, as RankMe's authors do


def effective_rank(spectrum: np.ndarray) -> float:
  """Exponential of the entropy of a spectrum that is scaled to sum to one.

  Args:
    spectrum: [d] singular values or eigenvalues, none of them negative.

  Returns:
    From 1, of a single direction, to d, of all alike.
  """
  share = spectrum / spectrum.sum() + _EPSILON
  return float(np.exp(-np.sum(share * np.log(share))))


def rankme(features: np.ndarray) -> float:
  """Effective rank of the singular values of centred features [r, d].

  Source: RankMe (Garrido et al. 2023).
  """
  features = np.asarray(features, np.float64)
  features = features - features.mean(0)
  # Of the smaller product, whose eigenvalues are the squares.
  square = (features.T @ features if features.shape[0] >= features.shape[1]
            else features @ features.T)
  values = np.linalg.eigvalsh(square)
  return effective_rank(np.sqrt(np.maximum(values, 0.0)))
