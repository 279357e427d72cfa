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


def lidar(views: np.ndarray, delta: float = 1e-4) -> float:
  """Effective rank of the discriminant matrix of images' views.

  Args:
    views: [r, v, d] features of v views of each image.
    delta: added to the diagonal of the scatter within images.

  Returns:
    From 1 to the smaller of d and r − 1.

  Source: LiDAR (Thilak et al. 2023): the eigenvalues of
    W^(−1/2) · B · W^(−1/2), B the scatter of images' means, W of views around
    their image's mean.
  """
  views = np.asarray(views, np.float64)
  means = views.mean(1)
  around = (views - means[:, None]).reshape(-1, views.shape[2])
  within = around.T @ around / len(around)
  within += delta * np.eye(len(within))
  values, axes = np.linalg.eigh(within)
  between = (means - means.mean(0)) @ (axes / np.sqrt(values))
  square = (between.T @ between if len(between) >= between.shape[1]
            else between @ between.T)
  return effective_rank(np.maximum(np.linalg.eigvalsh(square), 0.0))
