"""From masks of queries to segments: panoptic maps, and instances with scores.

Masks are logits [q, y, x] at the size of the image, classes logits [q, k + 1],
the last one of no object. Host code, in numpy.
"""

from collections.abc import Collection
import dataclasses

import numpy as np

from dinojax.kernels import resample

VOID = -1  # segment of pixels that are in none
THRESHOLD, OVERLAP = 0.8, 0.8
TOP = 100


@dataclasses.dataclass(frozen=True)
class Instance:
  """A mask with its class.

  Attributes:
    query: number of the query.
    label: class.
    score: share of the class times the mean of the mask inside, 0 to 1.
    mask: [y, x] bool.
  """

  query: int
  label: int
  score: float
  mask: np.ndarray


def at_image(masks: np.ndarray, window_px: int, inside: tuple[int, int],
             image: tuple[int, int]) -> np.ndarray:
  """[q, y, x] logits at the size of an image that was put into a square.

  Args:
    masks: [q, y, x] logits of the square.
    window_px: side of the square.
    inside: rows and columns of the square, from the top left, that were image.
    image: rows and columns of the image.
  """
  by_axis = []
  for axis, cells in enumerate(masks.shape[1:]):
    to_square = resample.linear_matrix(cells, window_px)[:inside[axis]]
    by_axis.append(np.float32(
        resample.linear_matrix(inside[axis], image[axis]) @ to_square))
  # [y, s] [q, s, t] [t, x]: two products, whatever the size of the image.
  return by_axis[0] @ (np.asarray(masks, np.float32) @ by_axis[1].T)


def kept(classes: np.ndarray, threshold: float) -> np.ndarray:
  """Queries that are of a class by more than a threshold, in order.

  Args:
    classes: [q, k + 1] logits.
    threshold: share of the class.
  """
  share = _softmax(classes)
  return np.flatnonzero((share.argmax(1) != share.shape[1] - 1)
                        & (share.max(1) > threshold))


def likeliest(classes: np.ndarray, top: int) -> np.ndarray:
  """Queries that are in the likeliest pairs of a query and a class, in order.

  Args:
    classes: [q, k + 1] logits.
    top: pairs.
  """
  share = _softmax(classes)[:, :-1]
  order = np.argsort(-share, axis=None, kind='stable')[:top]
  return np.unique(order // share.shape[1])


def panoptic(classes: np.ndarray, masks: np.ndarray, stuff: Collection[int], *,
             threshold: float = THRESHOLD, overlap: float = OVERLAP
             ) -> np.ndarray:
  """[y, x, 2] int32: the class of a pixel, k of none, and its segment.

  Args:
    classes: [q, k + 1] logits.
    masks: [q, y, x] logits.
    stuff: classes whose masks are one segment an image.
    threshold: least share of its class that a query needs.
    overlap: least part of a mask that stays when others have taken theirs.

  Source: Mask2Former's panoptic inference, as EoMT has it.
  """
  share = _softmax(classes)
  none = share.shape[1] - 1
  label, score = share.argmax(1), share.max(1)
  chosen = kept(classes, threshold)
  out = np.stack([np.full(masks.shape[1:], none), np.full(
      masks.shape[1:], VOID)], axis=-1).astype(np.int32)
  if not len(chosen):
    return out
  inside = _sigmoid(masks[chosen])
  owner = (score[chosen, None, None] * inside).argmax(0)
  segment_of: dict[int, int] = {}
  number = 0
  for i, query in enumerate(chosen):
    mine, whole = owner == i, inside[i] >= 0.5
    both = mine & whole
    if not both.any() or mine.sum() / whole.sum() < overlap:
      continue
    kind = int(label[query])
    if kind in stuff and kind in segment_of:
      out[both] = kind, segment_of[kind]
      continue
    segment_of.setdefault(kind, number)
    out[both] = kind, number
    number += 1
  return out


def instances(classes: np.ndarray, masks: np.ndarray, *, top: int = TOP
              ) -> list[Instance]:
  """The likeliest pairs of a query and a class, the best class first.

  Args:
    classes: [q, k + 1] logits.
    masks: [q, y, x] logits.
    top: pairs, at most; a query may be in several.

  Source: Mask2Former's instance inference.
  """
  share = _softmax(classes)[:, :-1]
  order = np.argsort(-share, axis=None, kind='stable')[:top]
  inside, marked = _sigmoid(masks), masks > 0
  area = marked.sum((1, 2))
  mean = (inside * marked).sum((1, 2)) / np.maximum(area, 1e-6)
  return [Instance(int(query), int(label), float(
      share[query, label] * mean[query]), marked[query])
          for query, label in zip(*np.unravel_index(order, share.shape),
                                  strict=True)]


def _softmax(x: np.ndarray) -> np.ndarray:
  x = np.exp(x - x.max(-1, keepdims=True))
  return x / x.sum(-1, keepdims=True)


def _sigmoid(x: np.ndarray) -> np.ndarray:
  return 0.5 * (1 + np.tanh(0.5 * x))
