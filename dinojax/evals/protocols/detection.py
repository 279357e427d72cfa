"""Detection of objects: average precision of the boxes of a Plain-DETR.

Source: Plain-DETR's training and DINOv3's detector, whose training is not
  published.
Differs: images enter whole in squares, so that every step has one shape; of an
  image with more objects than there is room for, the largest are learned from.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np

from dinojax.core import errors
from dinojax.core import fields
from dinojax.data import map_crops
from dinojax.engine import optimizer
from dinojax.evals import box_pictures
from dinojax.evals import dense_training
from dinojax.evals import detection_heads
from dinojax.evals import detections
from dinojax.evals import protocol
from dinojax.evals import squares
from dinojax.evals.sets import objects as sets
from dinojax.features import stream
from dinojax.metrics import detection
from dinojax.probes import fit as fit_lib
from dinojax.probes import head as head_lib

TITLE = 'boxes of objects, AP'
COST = 'steps × batch of training crops, test images once for every view'
PIXELS = lambda settings: settings.crop_px
_WHAT = f'a set of images with boxes: {sets.EXAMPLE}'
TRAINS = True  # heads
ROLES = {'train': protocol.Role(
    opens=lambda spec: sets.opened(spec, 'train2017'), what=_WHAT),
         'test': protocol.Role(
             opens=lambda spec: sets.opened(spec, 'val2017'), what=_WHAT)}


@dataclasses.dataclass(frozen=True)
class Settings:
  """Boxes of objects, by queries that look at windows and the whole."""

  # Set of images with boxes that the head learns from, such as
  # boxes:FILE.csv or coco_boxes:FILE.json?images=DIR.
  train: str | None = None
  test: tuple[str, ...] = ()  # Sets that are measured on, each alone.
  hidden: fields.Positive = 256  # Width of the head, a multiple of 32.
  num_heads: fields.Positive = 8  # Heads of its attention.
  num_encoder_layers: fields.Positive = 6  # Layers between cells of the map.
  num_layers: fields.Positive = 6  # Layers of the queries.
  num_queries: fields.Positive = 300  # Queries that answer.
  # Queries of training beside them, of which several learn each object.
  num_extra: fields.Natural = 1500
  copies: fields.Positive = 6  # Queries of those that learn an object.
  dropout: fields.BelowOne = 0.1  # Share of values dropped in the encoder.
  # Side of a proposal of the finest map, in pixels of the square.
  box_px: fields.Above0 = 50.0
  # Windows along a side that the backbone sees beside the whole image.
  windows: fields.Natural = 0
  # Objects of an image that are learned from, at most.
  most_targets: fields.Positive = 100
  learning_rate: fields.Above0 = 2e-4  # Rate at its highest.
  weight_decay: fields.NonNegative = 0.05  # Of the matrices.
  steps: fields.Positive = 88_700  # Updates of the head.
  warmup_steps: fields.Natural = 1000  # Updates until the highest rate.
  batch_size: fields.Positive = 16  # Images of an update.
  # Side of the square that an image is brought to, in pixels: whole patches.
  crop_px: fields.Positive = 1024
  scales: tuple[float, float] = (0.6, 1.0)  # Least and greatest of training.
  # Least part of a side that is kept, in half of the images of training.
  part: fields.Unit = 0.6
  # Sides of the squares of other views in tests, which are averaged.
  views_px: tuple[int, ...] = ()
  flips: bool = False  # Adds the mirror image of every view in tests.
  images_at_once: fields.Positive = fields.free(8)  # Test images at a time.
  pictures: fields.Natural = fields.free(6)  # Test images that are drawn.

  @property
  def heads_at_once(self) -> int:
    """A single head learns."""
    return 1

  @property
  def views(self) -> tuple[tuple[int, bool], ...]:
    """Side, and whether it is mirrored, of every view."""
    return detections.views((self.crop_px, *self.views_px), self.flips)


def check(settings: Settings, config: Any):
  """Refuses backbones and sizes that do not fit.

  Raises:
    UserError: see detection_heads.check.
  """
  detection_heads.check('detection', settings, config)
  for side in settings.views_px:
    detection_heads.check_side('detection.views_px', side, config.side_px,
                               settings.windows, settings.num_queries)
  low, high = settings.scales
  if not 0 < low <= high <= 1:
    raise errors.UserError(
        f'detection.scales={low:g},{high:g} are no least and greatest scale up '
        'to 1, at which an image just fits: set detection.scales=(0.6,1.0)')


def passes(settings: Settings, sizes: Mapping[str, int]) -> int:
  """Crops and images that go through the backbone."""
  return settings.steps * settings.batch_size + (
      len(settings.views) * sizes['test'])


def run(job: protocol.Job, settings: Settings) -> list[protocol.Measured]:
  """AP and AR of a head that is trained.

  Raises:
    UserError: classes of tests that training does not have, boxes that do not
      fit their images.
    Stopped: a signal ended the training of the head, whose step is saved.
  """
  train, = job.sets['train']
  tests = [test.with_classes(train) for test in job.sets['test']]
  for each in (train, *tests):
    squares.looked_at(each, job)
  _tell(job, train, settings)
  task = detection_heads.task(settings, job.model, len(train.classes))
  heads = dense_training.train(
      job, task, train, map_crops.Boxed(
          settings.crop_px, settings.scales, settings.part,
          settings.most_targets), settings,
      sweep=fit_lib.Sweep((settings.learning_rate,),
                          (settings.weight_decay,)),
      rule=optimizer.adamw(beta2=detection_heads.BETA2),
      **detection_heads.learning(settings.steps, settings.warmup_steps))
  if heads['diverged'].all():
    raise errors.UserError(
        'the head diverged: set detection.learning_rate below '
        f'{settings.learning_rate:g}')
  kept = head_lib.of_stack(
      task, heads, 0, job.model, job.weights, train.classes, {
          'trained on': train.spec, 'steps': settings.steps,
          'lr': settings.learning_rate,
          'category ids': list(train.category_ids),
          'views': {'crop_px': settings.crop_px}})
  return [_measured(job, settings, test, kept) for test in tests]


def _tell(job: protocol.Job, train: sets.Set, settings: Settings):
  """Says what of the training set is not learned from."""
  if train.num_empty:
    job.say(f'{train.num_empty} of {len(train)} images of {train.spec} have no '
            'object: they teach where there is none')
  if train.dropped:
    job.say(f'{train.dropped} boxes of {train.spec} have no area: they are '
            'left out')
  if train.most > settings.most_targets:
    job.say(f'an image of {train.spec} has {train.most} objects: the largest '
            f'{settings.most_targets} are learned from; set '
            f'detection.most_targets={train.most} for all')


def _measured(job: protocol.Job, settings: Settings, test: sets.Set,
              kept: head_lib.Head) -> protocol.Measured:
  """Rows and pictures of a test set."""
  head = {'params': kept.params, 'stats': kept.stats}
  count, shown = len(test.classes), squares.shown(
      len(test), settings.pictures)
  parts, pictures = [], {}
  finder = detections.Finder(
      job, kept.task, settings.views, settings.images_at_once)
  for row, boxes in finder.of(test, head):
    parts.append(_matches(boxes, row['truth'], count) | {
        'index': np.array([row['index']])})
    if row['index'] in shown:
      picture, truth = test[row['index']].decoded()
      pictures[f'test{row["index"]}'] = box_pictures.panel(
          picture, truth, boxes, test.classes)
  nothing = _matches(detections.Detections(np.zeros((0, 4)), np.zeros(0, int),
                                      np.zeros(0)), sets.NOTHING, count)
  rows = stream.together(job.model.mesh, parts or [
      {name: x[:0] for name, x in (nothing | {
          'index': np.array([0])}).items()}])
  facts = {'lr': settings.learning_rate, 'queries': settings.num_queries,
           'AP by class': detection.by_class(rows, test.classes)}
  return protocol.Measured(
      test.spec, rows, detection.of_rows, facts, classes=test.classes,
      pictures=pictures, resamples=0, head=kept)


def _matches(boxes: detections.Detections, truth: sets.Truth,
             count: int) -> dict[str, np.ndarray]:
  """Columns [1, …] of the objects of an image."""
  return detection.columns(detection.matches(
      detection.box_overlaps(boxes.boxes, truth.boxes, truth.crowd),
      boxes.labels, boxes.scores, boxes.areas, truth.kinds, truth.areas,
      truth.crowd, count))
