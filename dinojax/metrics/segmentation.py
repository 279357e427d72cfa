"""Intersection, union and what follows from them, of label maps; numpy."""

import numpy as np

IGNORED = 255  # of label maps


def areas(predicted: np.ndarray, labels: np.ndarray, num_classes: int, *,
          zero_is_background: bool = False) -> np.ndarray:
  """[4, k] pixels of intersection, union, prediction and label.

  Args:
    predicted: [y, x] classes.
    labels: [y, x] classes, IGNORED where nothing counts.
    num_classes: k.
    zero_is_background: label 0 is ignored and the others move down by one, as
      ADE20K is evaluated.
  """
  labels = np.asarray(labels).astype(np.int64)
  if zero_is_background:
    labels = np.where(
        (labels == 0) | (labels == IGNORED), IGNORED, labels - 1)
  counted = labels != IGNORED
  predicted = np.asarray(predicted).astype(np.int64)[counted]
  labels = labels[counted]
  count = lambda x: np.bincount(
      x[(x >= 0) & (x < num_classes)], minlength=num_classes)
  shared = count(predicted[predicted == labels])
  of_prediction, of_label = count(predicted), count(labels)
  return np.stack([shared, of_prediction + of_label - shared, of_prediction,
                   of_label])


def scores(total: np.ndarray) -> dict[str, np.ndarray]:
  """Metrics of areas [4, k] summed over images; NaN where a class is absent.

  Returns:
    per_class_iou and per_class_acc [k]; their means mIoU and acc over the
    classes that occur; aAcc of pixels; dice, fscore, precision and recall.

  Source: mmseg's metrics as DINOv3 evaluates them.
  """
  shared, union, predicted, labels = np.asarray(total, np.float64)
  ratio = lambda a, b: np.divide(
      a, b, out=np.full_like(a, np.nan), where=b > 0)
  iou, accuracy = ratio(shared, union), ratio(shared, labels)
  precision = ratio(shared, predicted)
  both = precision + accuracy
  fscore = ratio(2 * precision * accuracy, both)
  mean = lambda x: float(np.nanmean(x)) if np.isfinite(x).any() else np.nan
  return {
      'per_class_iou': iou, 'per_class_acc': accuracy, 'mIoU': mean(iou),
      'acc': mean(accuracy), 'aAcc': float(shared.sum() / labels.sum()),
      'dice': mean(ratio(2 * shared, predicted + labels)),
      'fscore': mean(fscore), 'precision': mean(precision),
      'recall': mean(accuracy)}
