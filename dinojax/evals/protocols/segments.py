"""Segments by queries: panoptic quality, or average precision of objects.

What is measured follows from the sets: of coco_panoptic every pixel gets a
segment, of coco_instances objects get masks and scores.

Source: PMT and EoMT: one recipe of training for both, images in squares.
Differs: of a crop with more segments than there is room for, the largest are
  learned from.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, Literal

import numpy as np

from dinojax.core import errors
from dinojax.core import fields
from dinojax.data import map_crops
from dinojax.engine import optimizer
from dinojax.evals import dense_training
from dinojax.evals import mask_heads
from dinojax.evals import protocol
from dinojax.evals import segment_pictures
from dinojax.evals import segments
from dinojax.evals import squares
from dinojax.evals.sets import segments as sets
from dinojax.features import stream
from dinojax.metrics import detection
from dinojax.metrics import panoptic
from dinojax.probes import fit as fit_lib
from dinojax.probes import head as head_lib
from dinojax.probes.tasks import dense as dense_task
from dinojax.probes.tasks import masks as masks_task

TITLE = 'panoptic segments, PQ; or instances, mask AP'
COST = 'steps × batch of training crops, test images once'
PIXELS = lambda settings: settings.crop_px
_WHAT = f'a set of segments: {sets.EXAMPLE}'
TRAINS = True  # heads
ROLES = {'train': protocol.Role(
    opens=lambda spec: sets.opened(spec, 'train2017'), what=_WHAT),
         'test': protocol.Role(
             opens=lambda spec: sets.opened(spec, 'val2017'), what=_WHAT)}


@dataclasses.dataclass(frozen=True)
class Settings:
  """Panoptic segments, or objects with masks, by queries."""

  # Set of images with segments that the head learns from, such as
  # coco_panoptic:DIR or coco_instances:FILE.json?images=DIR.
  train: str | None = None
  test: tuple[str, ...] = ()  # Sets that are measured on, each alone.
  # Head: queries in blocks of their own on the features of four (PMT), or in
  # copies of the last blocks of the backbone (EoMT), or Mask2Former with an
  # adapter (DINOv3).
  recipe: Literal['masks', 'eomt', 'm2f'] = 'masks'
  num_queries: fields.Positive = 200  # Queries.
  # Blocks or layers of the queries; None: 6 of the recipe masks, 3 to 5 of
  # eomt, 9 of m2f.
  num_blocks: fields.Positive | None = None
  hidden: fields.Positive = 256  # Width of the recipe m2f, a multiple of 32.
  # Layers of the recipe m2f in which maps attend to each other.
  num_pixel_layers: fields.Positive = 6
  num_points: fields.Positive = 12_544  # Points at which a mask is compared.
  # Segments of a crop that are learned from, at most.
  most_targets: fields.Positive = 100
  # Rate at its highest; None: of the recipe.
  learning_rate: fields.Above0 | None = None
  weight_decay: fields.NonNegative = mask_heads.WEIGHT_DECAY  # Of all weights.
  steps: fields.Positive = 88_700  # Updates of the head.
  # Updates until the highest rate; None: of the recipe, 6000 of masks.
  warmup_steps: fields.Natural | None = None
  batch_size: fields.Positive = 16  # Crops of an update.
  # Side of a crop in training and of a square in tests, in pixels: whole
  # patches.
  crop_px: fields.Positive = 640
  scales: tuple[float, float] = (0.1, 2.0)  # Least and greatest of training.
  # Share of its class that a query needs to be a panoptic segment.
  threshold: fields.Unit = segments.THRESHOLD
  # Part of its mask that a panoptic segment needs to keep from others.
  overlap: fields.Unit = segments.OVERLAP
  images_at_once: fields.Positive = fields.free(8)  # Test images at a time.
  pictures: fields.Natural = fields.free(6)  # Test images that are drawn.

  @property
  def heads_at_once(self) -> int:
    """A single head learns."""
    return 1

  @property
  def resolved(self) -> 'Settings':
    """The settings with the values of the recipe."""
    recipe = mask_heads.RECIPES[self.recipe]
    return dataclasses.replace(
        self, learning_rate=self.learning_rate or recipe.learning_rate,
        warmup_steps=recipe.warmup_steps if self.warmup_steps is None
        else self.warmup_steps)


def check(settings: Settings, config: Any):
  """Refuses backbones without tokens, and crops that are no whole patches.

  Raises:
    UserError: such a backbone or crop.
  """
  mask_heads.check('segments', settings, config)
  rest = settings.crop_px % config.side_px
  if rest or settings.crop_px < config.side_px:
    whole = max(round(settings.crop_px / config.side_px), 1) * config.side_px
    raise errors.UserError(
        f'segments.crop_px={settings.crop_px} is no whole number of patches '
        f'of {config.side_px} pixels: set segments.crop_px={whole}')
  low, high = settings.scales
  if not 0 < low <= high:
    raise errors.UserError(
        f'segments.scales={low:g},{high:g} are no least and greatest scale: '
        'set segments.scales=(0.1,2.0)')


def passes(settings: Settings, sizes: Mapping[str, int]) -> int:
  """Crops and images that go through the backbone."""
  return settings.steps * settings.batch_size + sizes['test']


def run(job: protocol.Job, settings: Settings) -> list[protocol.Measured]:
  """PQ, SQ and RQ, or AP and AR, of a head that is trained.

  Raises:
    UserError: sets of other classes or of both kinds, segments that do not
      fit their images.
    Stopped: a signal ended the training of the head, whose step is saved.
  """
  settings = settings.resolved
  train, = job.sets['train']
  tests = job.sets['test']
  for test in tests:
    _check_same(train, test)
  for each in (train, *tests):
    squares.looked_at(each, job)
  task = mask_heads.task(
      settings, job.model, len(train.classes), pixels=dense_task.Pixels(
          job.model.mean, job.model.std, job.model.config.side_px),
      most_targets=settings.most_targets, stuff=train.stuff,
      answers='panoptic' if train.is_panoptic else 'instances')
  heads = _train(job, settings, task, train)
  if heads['diverged'].all():
    raise errors.UserError(
        'the head diverged: set segments.learning_rate below '
        f'{settings.learning_rate:g}')
  kept = head_lib.of_stack(
      task, heads, 0, job.model, job.weights, train.classes, {
          'trained on': train.spec, 'recipe': settings.recipe,
          'steps': settings.steps, 'lr': settings.learning_rate,
          'category ids': list(train.category_ids),
          'threshold': settings.threshold, 'overlap': settings.overlap,
          'views': {'short_px': settings.crop_px, 'crop_px': settings.crop_px,
                    'stride_px': settings.crop_px // 2}})
  return [_measured(job, settings, test, kept) for test in tests]


def _check_same(train: sets.Set, test: sets.Set):
  """Refuses a test that is not of the kind or classes of training.

  Raises:
    UserError: it is not.
  """
  if test.is_panoptic != train.is_panoptic:
    raise errors.UserError(
        f'{train.spec} and {test.spec} are of different kinds: give '
        f'{" or ".join(sets.SCHEMES)} for both')
  if (test.classes, test.stuff) != (train.classes, train.stuff):
    raise errors.UserError(
        f'{test.spec} has other categories than {train.spec} '
        f'({len(test.classes)} and {len(train.classes)}): give both the same '
        'list of categories')


def _train(job: protocol.Job, settings: Settings, task: masks_task.Queries,
           train: sets.Set) -> dict:
  """Parameters and statistics as a stack of one, and whether it diverged."""
  return dense_training.train(
      job, task, train, map_crops.Jittered(
          settings.crop_px, settings.scales, settings.most_targets), settings,
      sweep=fit_lib.Sweep((settings.learning_rate,),
                          (settings.weight_decay,)),
      rule=optimizer.adamw(beta2=0.999),
      **mask_heads.learning(task, settings, settings.warmup_steps))


def _measured(job: protocol.Job, settings: Settings, test: sets.Set,
              kept: head_lib.Head) -> protocol.Measured:
  """Rows and pictures of a test set."""
  work = squares.Squares(job, kept.task, settings.crop_px,
                         settings.images_at_once)
  head = {'params': kept.params, 'stats': kept.stats}
  count = len(test.classes)
  shown = squares.shown(len(test), settings.pictures)
  parts, pictures = [], {}
  for row, queries, square in work.of(test, head):
    answer, truth = squares.Answer(
        queries.classes, queries.masks, square), row['truth']
    if test.is_panoptic:
      predicted = answer.panoptic(
          test.stuff, settings.threshold, settings.overlap)
      columns = _quality(predicted, truth, count)
    else:
      predicted = answer.instances()
      columns = _matches(predicted, truth, count)
    parts.append(columns | {'index': np.array([row['index']])})
    if row['index'] in shown:
      picture, _ = test[row['index']].decoded()
      pictures[f'test{row["index"]}'] = segment_pictures.panel(
          picture, truth, predicted, test.classes)
  rows = stream.together(job.model.mesh, parts or [_empty(test, count)])
  facts = {'lr': settings.learning_rate, 'queries': settings.num_queries}
  if test.is_panoptic:
    facts['PQ by class'] = _by_class(rows, test.classes)
    return protocol.Measured(test.spec, rows, quality, facts,
                             classes=test.classes, pictures=pictures, head=kept)
  return protocol.Measured(
      test.spec, rows, detection.of_rows, facts, classes=test.classes,
      pictures=pictures, head=kept, resamples=0)


def _empty(test: sets.Set, count: int) -> dict[str, np.ndarray]:
  """Columns of no image, of a process that has none."""
  nothing = sets.Segments(np.zeros((1, 1, 1), np.int32), np.zeros(
      0, np.int32), np.zeros(0, bool))
  columns = _quality(nothing.panoptic(count), nothing, count) if (
      test.is_panoptic) else _matches([], nothing, count)
  return {name: x[:0] for name, x in (columns | {
      'index': np.array([0])}).items()}


def _quality(predicted: np.ndarray, truth: sets.Segments, count: int
             ) -> dict[str, np.ndarray]:
  """Columns [1, k] of the segments of an image."""
  values = panoptic.counts(predicted, truth.panoptic(count), count,
                           np.flatnonzero(truth.crowd))
  return {name: values[i][None] for i, name in enumerate(panoptic.COLUMNS)}


def quality(rows: protocol.Rows) -> dict[str, float]:
  """PQ, SQ and RQ of rows, in per cent."""
  return panoptic.scores(np.stack([
      rows[name].sum(0) for name in panoptic.COLUMNS]))


def _by_class(rows: protocol.Rows, classes: tuple[str, ...]
              ) -> dict[str, float | None]:
  """PQ of every class that occurs, in per cent."""
  total = np.stack([rows[name].sum(0) for name in panoptic.COLUMNS])
  values = [panoptic.scores(total[:, i:i + 1])['PQ']
            for i in range(len(classes))]
  return {name: round(value, 2) if np.isfinite(value) else None
          for name, value in zip(classes, values, strict=True)}


def _matches(predicted: list[segments.Instance], truth: sets.Segments,
             count: int) -> dict[str, np.ndarray]:
  """Columns [1, …] of the objects of an image, filled up to TOP of them."""
  theirs = truth.masks
  ours = np.stack([each.mask for each in predicted]) if predicted else (
      np.zeros((0, *theirs.shape[1:]), bool))
  each = detection.matches(
      detection.mask_overlaps(ours, theirs, truth.crowd),
      np.array([x.label for x in predicted], np.int64),
      np.array([x.score for x in predicted]), ours.sum((1, 2)).astype(float),
      truth.kinds, theirs.sum((1, 2)).astype(float), truth.crowd, count)
  return detection.columns(each, segments.TOP)
