"""Average precision of boxes and masks, as COCO measures it.

An image gives the best hundred of each class with what they match, at ten
overlaps and four ranges of area; scores are of all images together.
"""

from collections.abc import Mapping, Sequence
import dataclasses

import numpy as np

OVERLAPS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
# Areas in pixels, of which the objects count.
AREAS: Mapping[str, tuple[float, float]] = {
    'all': (0, 1e10), 'small': (0, 32**2), 'medium': (32**2, 96**2),
    'large': (96**2, 1e10)}
MOST = 100  # of a class in an image
_FIELDS = ('label', 'score', 'rank', 'matched', 'ignored', 'counts')


@dataclasses.dataclass(frozen=True)
class Matches:
  """Predictions of an image, and the objects that they match.

  Attributes:
    label: [d] classes.
    score: [d] scores.
    rank: [d] place among those of the class in the image, from 0.
    matched: [areas, overlaps, d] bool: a prediction has found an object.
    ignored: [areas, overlaps, d] bool: it counts neither way.
    counts: [areas, k] objects that are to be found, by class.
  """

  label: np.ndarray
  score: np.ndarray
  rank: np.ndarray
  matched: np.ndarray
  ignored: np.ndarray
  counts: np.ndarray


def box_overlaps(predicted: np.ndarray, truth: np.ndarray,
                 crowd: np.ndarray) -> np.ndarray:
  """[d, g] IoU of boxes (left, top, right, bottom).

  Args:
    predicted: [d, 4].
    truth: [g, 4].
    crowd: [g] bool: of those the overlap is the part of the prediction inside.
  """
  low = np.maximum(predicted[:, None, :2], truth[None, :, :2])
  high = np.minimum(predicted[:, None, 2:], truth[None, :, 2:])
  both = np.clip(high - low, 0, None).prod(-1)
  area = lambda boxes: (boxes[:, 2:] - boxes[:, :2]).prod(-1)
  return _over(both, area(predicted), area(truth), crowd)


def mask_overlaps(predicted: np.ndarray, truth: np.ndarray,
                  crowd: np.ndarray) -> np.ndarray:
  """[d, g] IoU of masks [d, y, x] and [g, y, x] bool; see `box_overlaps`."""
  flat = lambda masks: masks.reshape(len(masks), -1).astype(np.float32)
  ours, theirs = flat(predicted), flat(truth)
  return _over(ours @ theirs.T, ours.sum(1), theirs.sum(1), crowd)


def _over(both: np.ndarray, ours: np.ndarray, theirs: np.ndarray,
          crowd: np.ndarray) -> np.ndarray:
  union = np.where(crowd[None], ours[:, None],
                   ours[:, None] + theirs[None] - both)
  return both / np.maximum(union, 1e-12)


def matches(overlaps: np.ndarray, label: np.ndarray, score: np.ndarray,
            area: np.ndarray, true_label: np.ndarray, true_area: np.ndarray,
            crowd: np.ndarray, num_classes: int) -> Matches:
  """Matches predictions of an image with its objects, the best first.

  Args:
    overlaps: [d, g] see `box_overlaps`.
    label: [d] classes of the predictions.
    score: [d] their scores.
    area: [d] their areas, pixels.
    true_label: [g] classes of the objects.
    true_area: [g] their areas.
    crowd: [g] bool: many objects, found any number of times and never missed.
    num_classes: classes, k.

  Source: COCOeval of pycocotools.
  """
  order = np.argsort(-score, kind='stable')
  rank = np.zeros(len(order), np.int64)
  for kind in np.unique(label):
    some = label[order] == kind
    rank[some] = np.arange(some.sum())
  order, rank = order[rank < MOST], rank[rank < MOST]
  overlaps, label, score, area = (
      x[order] for x in (overlaps, label, score, area))
  shape = (len(AREAS), len(OVERLAPS), len(label))
  matched, ignored = np.zeros(shape, bool), np.zeros(shape, bool)
  counts = np.zeros((len(AREAS), num_classes), np.int64)
  for a, (low, high) in enumerate(AREAS.values()):
    beside = crowd | (true_area < low) | (true_area > high)
    counts[a] = np.bincount(true_label[~beside], minlength=num_classes)
    outside = (area < low) | (area > high)
    for t, least in enumerate(OVERLAPS):
      for kind in np.unique(label):
        ours, theirs = np.flatnonzero(label == kind), np.flatnonzero(
            true_label == kind)
        has, aside = _matched(
            overlaps[np.ix_(ours, theirs)], beside[theirs], crowd[theirs],
            least)
        matched[a, t, ours] = has
        ignored[a, t, ours] = aside | (~has & outside[ours])
  return Matches(label, score, rank, matched, ignored, counts)


def _matched(overlaps: np.ndarray, beside: np.ndarray, crowd: np.ndarray,
             least: float) -> tuple[np.ndarray, np.ndarray]:
  """[d] bool each: a prediction has an object, and one that does not count."""
  has, aside = np.zeros((2, len(overlaps)), bool)
  free = np.ones(overlaps.shape[1], bool)
  # Objects that count come first; among those that do not, too, the best.
  for i, row in enumerate(overlaps):
    for group in (~beside, beside):
      open_ = group & (free | crowd) & (row >= min(least, 1 - 1e-10))
      if open_.any():
        # Of equal overlaps the last one, as in the source.
        best = len(row) - 1 - int(np.argmax(
            np.where(open_, row, -1.0)[::-1]))
        free[best] = False
        has[i], aside[i] = True, beside[best]
        break
  return has, aside


def columns(each: Matches, room: int = MOST) -> dict[str, np.ndarray]:
  """Arrays [1, …] of an image, filled up to a number of predictions.

  Args:
    each: matches of the image.
    room: predictions that are there at most.
  """
  empty, out = room - len(each.label), {}
  for name in _FIELDS:
    value = getattr(each, name)
    if name != 'counts':
      pad = [(0, 0)] * (value.ndim - 1) + [(0, empty)]
      value = np.pad(value, pad, constant_values=-1 if name == 'label' else 0)
    out[name] = value[None]
  return out


def of_rows(rows: Mapping[str, np.ndarray]) -> dict[str, float]:
  """AP and AR of `columns` of many images, see `average_precision`."""
  return average_precision(_of_rows(rows))


def by_class(rows: Mapping[str, np.ndarray],
             classes: Sequence[str]) -> dict[str, float | None]:
  """AP of every class by its name, in %; None where no object counts."""
  precision, _ = curves(_of_rows(rows))
  out = {}
  for i, name in enumerate(classes):
    known = precision[0, :, i]
    out[name] = round(100 * float(known.mean()), 2) if (
        known > -1).all() else None
  return out


def _of_rows(rows: Mapping[str, np.ndarray]) -> list[Matches]:
  return [Matches(*(rows[name][i] for name in _FIELDS))
          for i in range(len(rows['label']))]


def average_precision(images: Sequence[Matches]) -> dict[str, float]:
  """AP and AR at all overlaps, of the best of a class and by area; in %.

  Args:
    images: matches of all images, in data order.

  Returns:
    AP, AP50, AP75, AP of small, medium and large objects, AR of the best, of
    ten and of a hundred, and by area: means over classes that occur; NaN where
    no object counts.
  """
  precision, recall = curves(images)
  mean = lambda x: 100 * float(x[x > -1].mean()) if (x > -1).any() else (
      float('nan'))
  at = lambda overlap: int(np.argmin(np.abs(OVERLAPS - overlap)))
  names = list(AREAS)
  return {'AP': mean(precision[0]), 'AP50': mean(precision[0, at(0.5)]),
          'AP75': mean(precision[0, at(0.75)])} | {
              f'AP {name}': mean(precision[names.index(name)])
              for name in names[1:]} | {
                  f'AR{most}': mean(curves(images, most)[1][0])
                  for most in (1, 10)} | {'AR100': mean(recall[0])} | {
                      f'AR {name}': mean(recall[names.index(name)])
                      for name in names[1:]}


def curves(images: Sequence[Matches], most: int = MOST
           ) -> tuple[np.ndarray, np.ndarray]:
  """Precision [areas, overlaps, k, recalls] and recall [areas, overlaps, k].

  Args:
    images: matches of all images, in data order.
    most: predictions of a class in an image that count.

  Returns:
    Curves; −1 where no object of a class counts.
  """
  label = np.concatenate([each.label for each in images])
  score = np.concatenate([each.score for each in images])
  rank = np.concatenate([each.rank for each in images])
  matched, ignored = (np.concatenate(
      [getattr(each, name) for each in images], axis=2)
                      for name in ('matched', 'ignored'))
  counts = sum(each.counts for each in images)
  shape = (*matched.shape[:2], counts.shape[1])
  precision, recall = np.full((*shape, len(RECALLS)), -1.0), np.full(
      shape, -1.0)
  for kind in range(counts.shape[1]):
    some = np.flatnonzero((label == kind) & (rank < most))
    some = some[np.argsort(-score[some], kind='stable')]
    for a in range(shape[0]):
      if not counts[a, kind]:
        continue
      for t in range(shape[1]):
        curve = _curve(matched[a, t, some], ignored[a, t, some],
                       counts[a, kind])
        precision[a, t, kind], recall[a, t, kind] = curve
  return precision, recall


def _curve(matched: np.ndarray, ignored: np.ndarray, count: int
           ) -> tuple[np.ndarray, float]:
  """[recalls] precision at least so high further on, and the last recall."""
  right = np.cumsum(matched & ~ignored)
  wrong = np.cumsum(~matched & ~ignored)
  recall = right / count
  precision = right / np.maximum(right + wrong, np.spacing(1))
  precision = np.maximum.accumulate(precision[::-1])[::-1]
  place = np.searchsorted(recall, RECALLS, side='left')
  out = np.zeros(len(RECALLS))
  inside = place < len(precision)
  out[inside] = precision[place[inside]]
  return out, float(recall[-1]) if len(recall) else 0.0
