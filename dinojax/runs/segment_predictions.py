"""Segments and objects of images by a head of queries, as COCO has them."""

from collections.abc import Iterator, Mapping, Sequence
import json
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from dinojax.core import atomic
from dinojax.core import errors
from dinojax.evals import protocol
from dinojax.evals import segment_pictures
from dinojax.evals import segments
from dinojax.evals import squares
from dinojax.probes import head as head_lib

RESULTS = 'coco.json'
ANSWERS = ('semantic', 'panoptic', 'instances', 'boxes')
_SIDE_PX = 640  # of heads that do not say theirs


def answers_of(head: head_lib.Head, wanted: str | None) -> str:
  """The answers that are asked for, else those that a head was trained for.

  Args:
    head: a head.
    wanted: one of ANSWERS; None: its own.

  Raises:
    UserError: unknown answers, or of a head that has no queries.
  """
  trained = getattr(head.task, 'answers', 'semantic')
  if wanted is None:
    return trained
  if wanted not in ANSWERS:
    raise errors.UserError(
        f'--as={wanted} is not known: give one of {", ".join(ANSWERS)}')
  if 'boxes' in (wanted, trained) and wanted != trained:
    kind = 'detector' if wanted == 'boxes' else 'head of queries'
    raise errors.UserError(
        f'--as={wanted} needs a {kind}, and this one is of {head.kind}: leave '
        '--as away, or give a head that the protocol '
        f'{"detection" if wanted == "boxes" else "segments"} trained')
  if wanted != 'semantic' and not hasattr(head.task, 'answers'):
    raise errors.UserError(
        f'--as={wanted} needs a head of queries, and this one is of '
        f'{head.kind}: leave --as away, or give a head that the protocol '
        'segments trained')
  return wanted


class Segments:
  """Makes and writes segments, or objects with scores."""

  where = RESULTS

  def __init__(self, head: head_lib.Head, answers: str):
    """Compiles nothing yet.

    Args:
      head: a head of queries.
      answers: 'panoptic' or 'instances'.

    Raises:
      UserError: run lengths of objects cannot be written.
    """
    facts = head.facts
    self._head, self._is_panoptic = head, answers == 'panoptic'
    patch = head.task.pixels.patch_px
    self._side = int(facts.get('views', {}).get('crop_px', max(
        round(_SIDE_PX / patch), 1) * patch))
    self._limits = (float(facts.get('threshold', segments.THRESHOLD)),
                    float(facts.get('overlap', segments.OVERLAP)))
    self._ids = [int(x) for x in facts.get('category ids', range(
        len(head.classes)))]
    if not self._is_panoptic:
      _coco()

  @property
  def made_by(self) -> dict:
    """Values that the answers depend on."""
    return {'answers': 'panoptic' if self._is_panoptic else 'instances',
            'side': self._side}

  def begin(self, job: protocol.Job, sizes: Sequence, at_once: int):
    """Plans squares, which images of all sizes are brought to."""
    del sizes
    self._squares = squares.Squares(
        job, self._head.task, self._side, at_once)

  def of(self, source: Any, sizes: Sequence) -> Iterator[tuple[dict, Any]]:
    """Items with their segments or objects."""
    del sizes
    head = {'params': self._head.params, 'stats': self._head.stats}
    for row, queries, square in self._squares.of(source, head):
      answer = squares.Answer(queries.classes, queries.masks, square)
      yield row, (answer.panoptic(self._head.task.stuff, *self._limits)
                  if self._is_panoptic else answer.instances())

  def written(self, folder: pathlib.Path, place: str, alone: Any,
              predicted: segment_pictures.Predicted
              ) -> tuple[dict, np.ndarray]:
    """Writes the segments of an image; a line on them, and its picture."""
    picture, _ = alone.decoded()
    panel = segment_pictures.panel(picture, None, predicted,
                                   self._head.classes)
    if not self._is_panoptic:
      return {'objects': [self._object(each) for each in predicted]}, panel
    number = predicted[..., 1] + 1  # 0 is of no segment
    colors = np.stack([number % 256, number // 256 % 256, number // 65536],
                      axis=-1).astype(np.uint8)
    path = folder / place
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(path) as temporary:
      Image.fromarray(colors).save(str(temporary), 'PNG')
    info = []
    for each in np.unique(number[number > 0]):
      inside = number == each
      kind = int(predicted[..., 0][inside][0])
      info.append({'id': int(each), 'category_id': self._ids[kind],
                   'class': self._head.classes[kind],
                   'area': int(inside.sum())})
    return {'map': place, 'segments': info}, panel

  def _object(self, each: segments.Instance) -> dict:
    runs = _coco().encode(np.asfortranarray(each.mask.astype(np.uint8)))
    left, top, width, height = _coco().toBbox(runs)
    return {'category_id': self._ids[each.label],
            'class': self._head.classes[each.label],
            'score': round(each.score, 6),
            'bbox': [float(x) for x in (left, top, width, height)],
            'segmentation': {'size': list(map(int, runs['size'])),
                             'counts': runs['counts'].decode()}}

  def finish(self, folder: pathlib.Path, lines: Sequence[Mapping]):
    """Writes the results of all images for the evaluation of COCO.

    Images have the number in their names where all of them have one, as those
    of COCO do, else their place in the source.
    """
    lines = sorted(lines, key=lambda line: line['index'])
    numbers = image_ids([line['name'] for line in lines],
                        [line['index'] for line in lines])
    if self._is_panoptic:
      out: Any = {'annotations': [{
          'image_id': number, 'file_name': pathlib.PurePath(
              line['map']).name, 'segments_info': [
                  {name: x[name] for name in ('id', 'category_id')}
                  for x in line['segments']]}
                                  for number, line in zip(
                                      numbers, lines, strict=True)]}
    else:
      out = [{'image_id': number} | {
          name: x for name, x in each.items() if name != 'class'}
             for number, line in zip(numbers, lines, strict=True)
             for each in line['objects']]
    atomic.write_text(folder / RESULTS, json.dumps(out))


def image_ids(names: Sequence[str], indices: Sequence[int]) -> list[int]:
  """Numbers of images: of their names where all have one, else as given."""
  stems = [pathlib.PurePath(name).stem for name in names]
  if all(stem.isdecimal() for stem in stems):
    numbers = [int(stem) for stem in stems]
    if len(set(numbers)) == len(numbers):
      return numbers
  return [int(i) for i in indices]


def _coco() -> Any:
  """The masks of pycocotools.

  Raises:
    UserError: it is not installed.
  """
  try:
    from pycocotools import mask
  except ImportError as error:
    raise errors.UserError(
        'objects are written as run lengths of COCO, which needs pycocotools: '
        'pip install "dinojax[coco]", or give --as=panoptic') from error
  return mask
