"""Errors of matches between images; numpy.

Places are (x, y) in pixels, with 0 at the outer edge of the first pixel.
"""

from collections.abc import Sequence

import numpy as np


def patch_places(index: np.ndarray, columns: int, patch_px: float,
                 at: str = 'centre') -> np.ndarray:
  """[…, 2] places (x, y) of patches by their number, row by row.

  Args:
    index: […] numbers of patches.
    columns: patches in a row.
    patch_px: side of a patch.
    at: 'centre', or 'corner', the top left one.

  Source: 'corner' is Probe3D's, half a patch off: figures of the two are not
    comparable.
  """
  xy = np.stack([index % columns, index // columns], -1).astype(np.float64)
  return (xy + (0.5 if at == 'centre' else 0.0)) * patch_px


def distances(places: np.ndarray, truth: np.ndarray) -> np.ndarray:
  """[…] Euclidean distances of places […, c] from true ones."""
  return np.linalg.norm(places - truth, axis=-1)


def pck(error: np.ndarray, group: np.ndarray,
        alpha: float) -> dict[int, float]:
  """Percentage of correct keypoints by group (class): errors below alpha.

  Args:
    error: [r] errors as a part of the object's size; negative or NaN: the
      keypoint does not count.
    group: [r] group of each.
    alpha: largest error, exclusive.
  """
  counted = error >= 0
  return {int(g): 100 * float(np.mean(error[counted & (group == g)] < alpha))
          for g in np.unique(group[counted])}


def mean_of_groups(values: dict[int, float]) -> float:
  """Mean over groups; NaN: there is none."""
  return float(np.mean(list(values.values()))) if values else float('nan')


def project(points: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
  """[r, 2] pixels of points [r, 3] before a pinhole camera [3, 3]."""
  image = points @ intrinsics.T
  return image[:, :2] / np.maximum(image[:, 2:], 1e-9)


def moved(points: np.ndarray, pose: np.ndarray) -> np.ndarray:
  """[r, 3] points [r, 3] in the coordinates that a pose [3, 4] leads to."""
  return points @ pose[:, :3].T + pose[:, 3]


def rotation_degrees(pose: np.ndarray) -> float:
  """Angle of a pose [3, 4], in degrees."""
  cosine = (np.trace(pose[:, :3]) - 1) / 2
  return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def recall(errors: np.ndarray, threshold: float) -> float:
  """Errors below a threshold, in per cent; NaN does not count."""
  counted = errors[np.isfinite(errors)]
  return 100 * float(np.mean(counted < threshold)) if len(counted) else (
      float('nan'))


def by_bin(values: np.ndarray, where: np.ndarray,
           edges: Sequence[float]) -> np.ndarray:
  """[bins] mean of values whose `where` is in [low, high); NaN: none is."""
  out = []
  for low, high in zip(edges[:-1], edges[1:], strict=True):
    inside = (where >= low) & (where < high)
    out.append(values[inside].mean() if inside.any() else np.nan)
  return np.array(out)


def mapped(homography: np.ndarray, places: np.ndarray) -> np.ndarray:
  """[r, 2] places [r, 2] through a homography [3, 3]; NaN: at infinity.

  The matrix maps pixels with their centres at whole numbers; places have
  theirs half a pixel further.
  """
  flat = np.concatenate([places - 0.5, np.ones((len(places), 1))], 1)
  x = flat @ homography.T
  with np.errstate(divide='ignore', invalid='ignore'):
    out = x[:, :2] / x[:, 2:] + 0.5
  out[~(x[:, 2] > 0)] = np.nan
  return out
