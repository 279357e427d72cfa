"""Subsets of labelled images: some of each class, and a part held out."""

from collections.abc import Sequence

import numpy as np

from dinojax.data import mixture

_SUBSET, _SPLIT = 11, 12  # streams of random numbers
_ALMOST_ALL = 1 - 1e-9  # 1 would be one image


def count(size: int, amount: float) -> int:
  """Images taken of a class: so many if 1 or more, else that part of it."""
  return (min(int(amount), size) if amount >= 1
          else min(max(int(size * amount), 1), size))


def per_class(labels: Sequence[int], amount: float, seed: int) -> np.ndarray:
  """Indices of a random subset, sorted.

  Args:
    labels: [r] classes; negative ones are taken out.
    amount: images of each class if 1 or more, else their share of it.
    seed: number of the try; the same one draws the same images.

  Source: few-shot evaluation of DINOv2 and DINOv3.
  """
  labels = np.asarray(labels)
  return np.sort(np.concatenate([
      _drawn(np.flatnonzero(labels == label), amount, (seed, _SUBSET, i))
      for i, label in enumerate(np.unique(labels[labels >= 0]))]))


def per_label(labels: np.ndarray, part: float, seed: int) -> np.ndarray:
  """Indices of a random part of images with several labels, sorted.

  Images are drawn label by label. Those that have many bring others along, so
  the part is corrected once by how many labels were wanted and came.

  Args:
    labels: [r, k] of zeros and ones.
    part: share of the labels that is wanted.
    seed: number of the try.
  """
  labels = np.asarray(labels)

  def draw(share: float, attempt: int) -> np.ndarray:
    """Images drawn for every label; one may be drawn for several."""
    return np.concatenate([
        _drawn(np.flatnonzero(labels[:, k]), min(share, _ALMOST_ALL),
               (seed, _SUBSET, attempt, k))
        for k in range(labels.shape[1]) if labels[:, k].any()])

  came = labels[draw(part, 0)].sum()
  return np.unique(draw(part * part * labels.sum() / came, 1))


def split(labels: Sequence[int], part: float,
          seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Indices that train and that validate, a part of each class; both sorted.

  Of a class of one image none validates.
  """
  labels = np.asarray(labels)
  out = [np.arange(0)]
  for i, label in enumerate(np.unique(labels[labels >= 0])):
    index = np.flatnonzero(labels == label)
    if len(index) > 1:
      out.append(_drawn(index, part, (seed, _SPLIT, i)))
  held = np.sort(np.concatenate(out))
  return np.setdiff1d(np.flatnonzero(labels >= 0), held), held


def _drawn(index: np.ndarray, amount: float,
           key: tuple[int, ...]) -> np.ndarray:
  return mixture.generator(*key).choice(
      index, count(len(index), amount), replace=False)
