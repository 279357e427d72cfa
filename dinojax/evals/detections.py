"""Objects of images by a detector, from several views of each.

Boxes come from squares, are brought back to their image, and those of several
views are merged on the host.
"""

from collections.abc import Iterator, Sequence
import dataclasses
from typing import Any

import numpy as np

from dinojax.evals import letterbox
from dinojax.evals import protocol
from dinojax.evals import squares
from dinojax.metrics import detection

SIGMA, LEAST = 0.5, 1e-3
TOP = detection.MOST
View = tuple[int, bool]  # side of a square, and whether it is mirrored


@dataclasses.dataclass(frozen=True)
class Detections:
  """Objects of an image, the likeliest first.

  Attributes:
    boxes: [n, 4] corners (left, top, right, bottom) in pixels of the image.
    labels: [n] classes.
    scores: [n] from 0 to 1.
  """

  boxes: np.ndarray
  labels: np.ndarray
  scores: np.ndarray

  @property
  def areas(self) -> np.ndarray:
    """[n] pixels of the boxes."""
    return np.prod(self.boxes[:, 2:] - self.boxes[:, :2], axis=1)

  def some(self, chosen: np.ndarray) -> 'Detections':
    """Some of them, by number or by bool."""
    return Detections(
        self.boxes[chosen], self.labels[chosen], self.scores[chosen])


def views(sides: Sequence[int], flips: bool) -> tuple[View, ...]:
  """Views of some sides, each once, with their mirror images."""
  return tuple((side, flip) for side in dict.fromkeys(sides)
               for flip in ((False, True) if flips else (False,)))


class Finder:
  """A detector on all devices, which looks at every image in several views."""

  def __init__(self, job: protocol.Job, task: Any, views: Sequence[View],
               at_once: int):
    """Compiles nothing yet.

    Args:
      job: the backbone, and how images are read.
      task: the task of the head.
      views: see `views`.
      at_once: images that go through the backbone at a time.
    """
    self._views = tuple(views)
    self._squares = [squares.Squares(job, task, side, at_once, flip=flip)
                     for side, flip in self._views]

  def of(self, source: Any, head: dict) -> Iterator[tuple[dict, 'Detections']]:
    """Items with their objects, from all views of them together.

    Args:
      source: items whose `decoded` gives an image and what is true of it.
      head: parameters and statistics.
    """
    for each in zip(*(squares_.of(source, head)
                      for squares_ in self._squares), strict=True):
      parts = [at_image(answer.boxes, answer.labels, answer.scores, square,
                        flip=flip)
               for (_, answer, square), (_, flip) in zip(
                   each, self._views, strict=True)]
      yield each[0][0], merged(parts)


def at_image(boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray,
             square: letterbox.Letterbox, *, flip: bool = False) -> Detections:
  """Objects of a square in pixels of its image.

  Args:
    boxes: [n, 4] corners in pixels of the square.
    labels: [n] classes.
    scores: [n].
    square: where the image lies in it.
    flip: True: the square has the image's mirror image.
  """
  edges = np.asarray(boxes, np.float64) / np.tile(square.scale, 2)
  width, height = square.size
  if flip:
    edges = np.stack([width - edges[:, 2], edges[:, 1],
                      width - edges[:, 0], edges[:, 3]], axis=1)
  edges = np.clip(edges, 0, np.tile([width, height], 2))
  return Detections(edges, np.asarray(labels), np.asarray(scores, np.float64))


def merged(views: Sequence[Detections], top: int = TOP) -> Detections:
  """Objects of several views of an image: the best, each at most once or so.

  Args:
    views: objects of every view.
    top: objects that stay; of one view all of its best.
  """
  together = _joined(views)
  if len(views) == 1:
    order = np.argsort(-together.scores, kind='stable')
    return together.some(order[:top])
  parts = [soft_nms(together.some(together.labels == kind))
           for kind in np.unique(together.labels)]
  out = _joined(parts) if parts else together
  return out.some(np.argsort(-out.scores, kind='stable')[:top])


def _joined(parts: Sequence[Detections]) -> Detections:
  return Detections(*(np.concatenate([getattr(part, name) for part in parts])
                      for name in ('boxes', 'labels', 'scores')))


def soft_nms(detected: Detections, sigma: float = SIGMA,
             least: float = LEAST) -> Detections:
  """Objects of one class, whose scores fall where better ones overlap them.

  Args:
    detected: objects.
    sigma: deviation of the fall, exp(−overlap² / sigma).
    least: score below which an object is left out.

  Source: Soft-NMS (arXiv 1704.04503), Gaussian. The DINOv3 paper names it for
    test-time augmentation and nothing of it is released: these values are ours.
  """
  scores, left = detected.scores.astype(np.float64).copy(), []
  remaining = np.arange(len(scores))
  while len(remaining):
    best = remaining[np.argmax(scores[remaining])]
    if scores[best] < least:
      break
    left.append(best)
    remaining = remaining[remaining != best]
    if len(remaining):
      share = detection.box_overlaps(
          detected.boxes[best][None], detected.boxes[remaining],
          np.zeros(len(remaining), bool))[0]
      scores[remaining] *= np.exp(-share**2 / sigma)
      remaining = remaining[scores[remaining] >= least]
  left = np.array(left, np.int64)
  return Detections(detected.boxes[left], detected.labels[left], scores[left])
