"""Panoptic quality: how well segments are found, and how well they fit."""

from collections.abc import Collection

import numpy as np

MATCHED = 0.5  # IoU above which segments are one; only one can be
ABSORBED = 0.5  # share of a segment in what does not count
COLUMNS = ('iou', 'matched', 'spurious', 'missed')


def counts(predicted: np.ndarray, truth: np.ndarray, num_classes: int,
           crowds: Collection[int] = ()) -> np.ndarray:
  """[4, k] of an image, by class: COLUMNS, the sum of IoU and three counts.

  Args:
    predicted: [y, x, 2] class and segment of every pixel; k, −1 of none.
    truth: [y, x, 2] class and segment; k, −1 where it is not known.
    num_classes: classes, k.
    crowds: segments of the truth that are many: they are not missed, and
      absorb what is predicted inside of them.

  Source: Kirillov et al., Panoptic Segmentation, 2019, and the evaluation of
    COCO: pixels that are not known count nowhere; a predicted segment of
    which more than half lies there, or in a crowd of its class, is no error.
  """
  ours, our_kind, our_area = _numbered(predicted, num_classes)
  theirs, their_kind, their_area = _numbered(truth, num_classes)
  both = np.zeros((len(our_kind) + 1, len(their_kind) + 1), np.int64)
  np.add.at(both, (ours.ravel(), theirs.ravel()), 1)
  unknown, both = both[1:, 0], both[1:, 1:]
  is_crowd = np.isin(_segments(truth, theirs, len(their_kind)), list(crowds))
  union = (our_area - unknown)[:, None] + their_area[None] - both
  iou = both / np.maximum(union, 1)
  pairs = (iou > MATCHED) & ~is_crowd[None] & (
      our_kind[:, None] == their_kind[None])
  absorbed = unknown + (both * (is_crowd[None] & (
      our_kind[:, None] == their_kind[None]))).sum(1)
  spurious = ~pairs.any(1) & (absorbed <= ABSORBED * our_area)
  missed = ~pairs.any(0) & ~is_crowd
  by_class = lambda kind, values: np.bincount(
      kind, values, minlength=num_classes)
  return np.stack([
      by_class(our_kind, (iou * pairs).sum(1)),
      by_class(our_kind, pairs.any(1).astype(float)),
      by_class(our_kind, spurious.astype(float)),
      by_class(their_kind, missed.astype(float))])


def scores(total: np.ndarray) -> dict[str, float]:
  """PQ, SQ and RQ in per cent, means of the classes that occur.

  Args:
    total: [4, k] sums of `counts` over images.
  """
  iou, matched, spurious, missed = total
  weight = matched + 0.5 * (spurious + missed)
  seen = weight > 0
  if not seen.any():
    return dict.fromkeys(('PQ', 'SQ', 'RQ'), float('nan'))
  fit = iou / np.maximum(matched, 1)
  rate = matched / np.where(seen, weight, 1)
  return {'PQ': 100 * float((fit * rate)[seen].mean()),
          'SQ': 100 * float(fit[seen].mean()),
          'RQ': 100 * float(rate[seen].mean())}


def _numbered(pixels: np.ndarray, num_classes: int
              ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """[y, x] numbers of segments from 1 on, 0 of none; their classes, areas."""
  key = pixels[..., 0].astype(np.int64) * 2**32 + pixels[..., 1]
  known, index = np.unique(key, return_inverse=True)
  index = index.reshape(key.shape)
  kind = np.floor_divide(known + 1, 2**32)  # segment −1 is of no class
  is_none = (known - kind * 2**32 < 0) | (kind >= num_classes)
  place = np.where(is_none, 0, np.cumsum(~is_none))
  area = np.bincount(index.ravel(), minlength=len(known))
  return place[index], kind[~is_none], area[~is_none]


def _segments(pixels: np.ndarray, numbers: np.ndarray, count: int
              ) -> np.ndarray:
  """Segments, as the map names them, of the numbers from 1 on."""
  out = np.full(count + 1, -1, np.int64)
  out[numbers.ravel()] = pixels[..., 1].ravel()
  return out[1:]
