"""Classification metrics of scores and labels; fractions of one, numpy."""

import numpy as np


def in_top(scores: np.ndarray, labels: np.ndarray, top: int) -> np.ndarray:
  """[r] bool: whether the label is among the `top` best of [r, k] scores."""
  return (best(scores, top) == np.asarray(labels)[:, None]).any(1)


def best(scores: np.ndarray, top: int) -> np.ndarray:
  """[r, top] classes by falling score; the first of equal ones leads."""
  return np.argsort(-np.asarray(scores), axis=1, kind='stable')[:, :top]


def accuracy(scores: np.ndarray, labels: np.ndarray, top: int = 1) -> float:
  """Share of rows whose label is among the `top` best."""
  return float(in_top(scores, labels, top).mean())


def per_class_accuracy(scores: np.ndarray, labels: np.ndarray,
                       top: int = 1) -> np.ndarray:
  """[k] share of each class's rows that are right; NaN without rows."""
  return _mean_by_class(
      in_top(scores, labels, top), labels, np.shape(scores)[1])


def mean_per_class_accuracy(scores: np.ndarray, labels: np.ndarray,
                            top: int = 1) -> float:
  """Mean over the classes that occur: every class weighs the same."""
  return float(np.nanmean(per_class_accuracy(scores, labels, top)))


def any_match_accuracy(scores: np.ndarray, labels: np.ndarray,
                       top: int = 1) -> float:
  """Share of rows with a right answer among the `top` best.

  Args:
    scores: [r, k].
    labels: [r, n] the right answers, padded with −1; rows without any are
      left out.
    top: answers that count.

  Source: ImageNet-ReaL as DINOv2 evaluates it.
  """
  labels = np.asarray(labels)
  answers = best(scores, top)
  right = (answers[:, :, None] == labels[:, None, :]).any((1, 2))
  return float(right[(labels >= 0).any(1)].mean())


def mean_reciprocal_rank(scores: np.ndarray, labels: np.ndarray) -> float:
  """Mean over classes of 1 / rank of the label."""
  rank = np.argmax(
      best(scores, np.shape(scores)[1]) == np.asarray(labels)[:, None], axis=1)
  return float(np.nanmean(_mean_by_class(
      1.0 / (1 + rank), labels, np.shape(scores)[1])))


def voc2007_map(scores: np.ndarray, labels: np.ndarray) -> float:
  """Mean over classes of 11-point interpolated average precision.

  Args:
    scores: [r, k].
    labels: [r, k] 1 where the class is present; classes without any present
      are left out.

  Source: PASCAL VOC 2007 as DINOv3 evaluates it: the curve begins with
    precision 1 at recall 0, so the first of the points is always 1.
  """
  values = [_eleven_points(scores[:, k], labels[:, k])
            for k in range(np.shape(scores)[1]) if np.any(labels[:, k])]
  return float(np.mean(values))


def _eleven_points(scores: np.ndarray, present: np.ndarray) -> float:
  present = np.asarray(present)[np.argsort(-scores, kind='stable')] > 0
  hits = np.cumsum(present)
  precision = np.append(hits / np.arange(1, len(hits) + 1), 1.0)
  recall = np.append(hits / hits[-1], 0.0)
  # Less a rounding error: three tenths of ten positives reach 0.3.
  return float(np.mean([
      precision[recall >= level - 1e-6].max()
      for level in np.linspace(0, 1, 11)]))


def _mean_by_class(values: np.ndarray, labels: np.ndarray,
                   num_classes: int) -> np.ndarray:
  count = np.bincount(labels, minlength=num_classes)
  total = np.bincount(labels, weights=values, minlength=num_classes)
  return np.where(count > 0, total / np.maximum(count, 1), np.nan)
