"""Boxes of objects in images by a detector, as COCO has them."""

from collections.abc import Iterator, Mapping, Sequence
import json
import pathlib
from typing import Any

import numpy as np

from dinojax.core import atomic
from dinojax.core import errors
from dinojax.evals import box_pictures
from dinojax.evals import detection_heads
from dinojax.evals import detections
from dinojax.evals import protocol
from dinojax.probes import head as head_lib
from dinojax.runs import segment_predictions

_SIDE_PX = 1536  # of detectors that do not say theirs


class Boxes:
  """Makes and writes boxes with classes and scores."""

  where = segment_predictions.RESULTS

  def __init__(self, head: head_lib.Head, sides: str | None, *, flips: bool):
    """Compiles nothing yet.

    Args:
      head: a detector.
      sides: sides of the squares of the views, with commas; None: as it was
        trained.
      flips: True adds mirror images.

    Raises:
      UserError: sides that are none, or no whole patches.
    """
    patch = head.task.pixels.patch_px
    usual = int(head.facts.get('views', {}).get('crop_px', max(
        round(_SIDE_PX / patch), 1) * patch))
    self._head = head
    self._views = detections.views(_sides(sides) or [usual], flips)
    for side, _ in self._views:
      detection_heads.check_side(
          '--squares_px', side, patch, head.task.decoder.windows,
          head.task.decoder.num_queries)
    self._ids = [int(x) for x in head.facts.get(
        'category ids', range(len(head.classes)))]

  @property
  def made_by(self) -> dict:
    """Values that the answers depend on."""
    return {'answers': 'boxes', 'views': self._views}

  def begin(self, job: protocol.Job, sizes: Sequence, at_once: int):
    """Plans squares, which images of all sizes are brought to."""
    del sizes
    self._finder = detections.Finder(
        job, self._head.task, self._views, at_once)

  def of(self, source: Any, sizes: Sequence) -> Iterator[tuple[dict, Any]]:
    """Items with their objects."""
    del sizes
    head = {'params': self._head.params, 'stats': self._head.stats}
    yield from self._finder.of(source, head)

  def written(self, folder: pathlib.Path, place: str, alone: Any,
              predicted: detections.Detections) -> tuple[dict, np.ndarray]:
    """A line on an image with its objects, and its picture."""
    del folder, place
    picture, _ = alone.decoded()
    panel = box_pictures.panel(picture, None, predicted, self._head.classes)
    objects = []
    for box, label, score in zip(predicted.boxes, predicted.labels,
                                 predicted.scores, strict=True):
      left, top, right, bottom = (round(float(x), 2) for x in box)
      objects.append({
          'category_id': self._ids[int(label)],
          'class': self._head.classes[int(label)],
          'score': round(float(score), 6),
          'bbox': [left, top, round(right - left, 2), round(bottom - top, 2)]})
    return {'objects': objects}, panel

  def finish(self, folder: pathlib.Path, lines: Sequence[Mapping]):
    """Writes the results of all images for the evaluation of COCO."""
    lines = sorted(lines, key=lambda line: line['index'])
    numbers = segment_predictions.image_ids(
        [line['name'] for line in lines], [line['index'] for line in lines])
    atomic.write_text(folder / segment_predictions.RESULTS, json.dumps([
        {'image_id': number} | {
            name: x for name, x in each.items() if name != 'class'}
        for number, line in zip(numbers, lines, strict=True)
        for each in line['objects']]))


def _sides(text: str | None) -> list[int]:
  """Sides in a text.

  Raises:
    UserError: something that is no number of pixels.
  """
  try:
    out = [int(part) for part in text.split(',')] if text else []
  except ValueError:
    out = [0]
  if any(side < 1 for side in out):
    raise errors.UserError(
        f'--squares_px={text} are no sides in pixels: give one or several, '
        'such as 1024,1536')
  return out
