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
  return float(np.nanmean(any_match(scores, labels, top)))


def any_match(scores: np.ndarray, labels: np.ndarray,
              top: int = 1) -> np.ndarray:
  """[r] 1 where a right answer is among the `top` best; NaN without any.

  Args: see `any_match_accuracy`.
  """
  labels = np.asarray(labels)
  answers = best(scores, top)
  right = (answers[:, :, None] == labels[:, None, :]).any((1, 2))
  return np.where((labels >= 0).any(1), right, np.nan)


def by_group(values: np.ndarray, groups: np.ndarray) -> dict[str, float]:
  """Means of rows by the name of their group; NaN rows do not count.

  Args:
    values: [r].
    groups: [r] names.
  """
  groups = np.asarray(groups)
  return {str(name): float(np.nanmean(values[groups == name]))
          for name in np.unique(groups)}


def mean_reciprocal_rank(scores: np.ndarray, labels: np.ndarray) -> float:
  """Mean over classes of 1 / rank of the label."""
  rank = np.argmax(
      best(scores, np.shape(scores)[1]) == np.asarray(labels)[:, None], axis=1)
  return float(np.nanmean(_mean_by_class(
      1.0 / (1 + rank), labels, np.shape(scores)[1])))


def voc2007_map(scores: np.ndarray, labels: np.ndarray,
                form: str = 'dinov3') -> float:
  """Mean over classes of `voc2007_precisions`."""
  return float(np.nanmean(voc2007_precisions(scores, labels, form)))


def voc2007_precisions(scores: np.ndarray, labels: np.ndarray,
                       form: str = 'dinov3') -> np.ndarray:
  """[k] average precision of each class; NaN where it is never present.

  Args:
    scores: [r, k].
    labels: [r, k] 1 where the class is present.
    form: 'kit': the mean of eleven points, as the VOC 2007 kit has it;
      'dinov3': of a curve that begins with precision 1 at recall 0, so that
      the first point is always 1; 'area': the area below the whole curve, as
      the kits of later years have it.

  Source: PASCAL VOC's development kits; DINOv3.
  """
  function = _area if form == 'area' else lambda s, p: _eleven_points(
      s, p, form == 'dinov3')
  return np.array([
      function(scores[:, k], labels[:, k]) if np.any(labels[:, k]) else np.nan
      for k in range(np.shape(scores)[1])])


def _curve(scores: np.ndarray,
           present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Precision and recall after each of the falling scores."""
  present = np.asarray(present)[np.argsort(-scores, kind='stable')] > 0
  hits = np.cumsum(present)
  return hits / np.arange(1, len(hits) + 1), hits / hits[-1]


def _area(scores: np.ndarray, present: np.ndarray) -> float:
  precision, recall = _curve(scores, present)
  highest = np.maximum.accumulate(precision[::-1])[::-1]  # from here on
  return float(np.sum(np.diff(recall, prepend=0.0) * highest))


def _eleven_points(scores: np.ndarray, present: np.ndarray,
                   begins_at_one: bool) -> float:
  precision, recall = _curve(scores, present)
  if begins_at_one:
    precision, recall = np.append(precision, 1.0), np.append(recall, 0.0)
  # Less a rounding error: three tenths of ten positives reach 0.3.
  return float(np.mean([
      precision[recall >= level - 1e-6].max()
      for level in np.linspace(0, 1, 11)]))


def _mean_by_class(values: np.ndarray, labels: np.ndarray,
                   num_classes: int) -> np.ndarray:
  count = np.bincount(labels, minlength=num_classes)
  total = np.bincount(labels, weights=values, minlength=num_classes)
  return np.where(count > 0, total / np.maximum(count, 1), np.nan)
