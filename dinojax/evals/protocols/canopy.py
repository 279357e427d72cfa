"""Canopy height: errors of heights in metres, of a DPT head on patches.

A head is given, published or of an earlier evaluation, or it is trained.

Source: the head of CHMv2, and measures of canopy height maps.
Differs: how CHMv2 was trained is not released: heads learn by the loss of its
  predecessor (arXiv 2304.07213), the scale-invariant one of depth, and by the
  mean absolute error, with the schedule of the depth heads; images are turned
  by up to 180°.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np

from dinojax.core import errors
from dinojax.core import fields
from dinojax.core import paths
from dinojax.data import map_crops
from dinojax.engine import optimizer
from dinojax.engine import schedules
from dinojax.evals import dense
from dinojax.evals import dense_pictures
from dinojax.evals import dense_training
from dinojax.evals import protocol
from dinojax.evals import published_heads
from dinojax.evals import stored_heads
from dinojax.evals import views as views_lib
from dinojax.evals import windows
from dinojax.evals.sets import heights as sets
from dinojax.features import backbone as backbone_lib
from dinojax.metrics import heights
from dinojax.models.dense import dpt
from dinojax.probes import fit as fit_lib
from dinojax.probes import head as head_lib
from dinojax.probes.tasks import dense as dense_task
from dinojax.probes.tasks import depth

TITLE = 'canopy height, errors in metres'
COST = 'steps × batch of training crops, test images once'
PIXELS = lambda settings: ''
_WHAT = f'a set of heights: {sets.EXAMPLE}'
TRAINS = True  # heads
FILES = ('head',)  # fields that name files
ROLES = {'train': protocol.Role(needed=False, opens=sets.opened, what=_WHAT),
         'test': protocol.Role(opens=sets.opened, what=_WHAT)}
_BETA2, _CLIP_NORM, _RISE, _PLAIN = 0.999, 35.0, 1 / 3, 100
_LOSSES = (('sig', 1.0), ('l1', 1.0))


@dataclasses.dataclass(frozen=True)
class Settings:
  """Canopy height by a DPT head."""

  # Head that is measured: a folder in heads/ of an evaluation, or a published
  # file, such as dinov3_vitl16_chmv2_dpt_head.pth; None: one is trained.
  head: str | None = None
  # Set of images with heights that a head learns from, where none is given.
  train: str | None = None
  test: tuple[str, ...] = ()  # Sets that are measured on, each alone.
  channels: fields.Positive = 256  # Channels of the head that is trained.
  num_bins: fields.Positive = 256  # Heights that are told apart.
  max_height: fields.Above0 = 96.0  # Greatest height, metres.
  learning_rate: fields.Above0 = 1e-4  # Rate at its highest.
  weight_decay: fields.NonNegative = 0.01  # Of all weights.
  steps: fields.Positive = 20_000  # Updates of the head.
  batch_size: fields.Positive = 16  # Crops of an update.
  # Rows and columns of a crop in training.
  crop: tuple[fields.Positive, fields.Positive] = (256, 256)
  degrees: fields.NonNegative = 180.0  # Greatest turn of a training image.
  block_m: fields.Above0 = heights.BLOCK_M  # Side of a block, metres.
  images_at_once: fields.Positive = fields.free(4)  # Test images at a time.
  pictures: fields.Natural = fields.free(6)  # Test images that are drawn.

  @property
  def heads_at_once(self) -> int:
    """A single head learns."""
    return 1


def check(settings: Settings, config: Any):
  """Refuses both a head and a training set, or none, and ConvNeXts.

  Raises:
    UserError: they are.
  """
  if not config.has_attention:
    raise errors.UserError(
        'canopy reads four maps of one size, and the stages of a ConvNeXt '
        'differ: give a ViT')
  if bool(settings.head) == bool(settings.train):
    state = 'both given' if settings.head else 'missing'
    raise errors.UserError(
        f'canopy.head and canopy.train are {state}: give a head that is '
        f'measured, or {_WHAT} that one learns from')


def passes(settings: Settings, sizes: Mapping[str, int]) -> int:
  """Crops and images that go through the backbone."""
  learned = 0 if settings.head else settings.steps * settings.batch_size
  return learned + sizes['test']


def run(job: protocol.Job, settings: Settings) -> list[protocol.Measured]:
  """Errors of heights of the head that is given, or trained.

  Raises:
    UserError: a head that does not fit, heights of another size than their
      images, or pixels of an unknown size.
    Stopped: a signal ended the training of the head, whose step is saved.
  """
  tests, train = job.sets['test'], job.sets.get('train', ())
  sizes = dense_training.sizes_of(((*train, *tests)[0], *tests), job)
  blocks = {test.spec: _blocks(test, settings.block_m) for test in tests}
  if settings.head:
    kept = _given(job, settings)
  else:
    kept = _trained(job, settings, train[0])
  maps = dense.Maps(
      job, kept.on(job.model).task, views_lib.Views(
          windows.Windows(), direct=True),
      is_class=False, at_once=settings.images_at_once)
  maps.plan([size for test in tests for size in sizes[test.spec]], 'canopy',
            'by cutting them into tiles')
  return [_measured(maps, settings, test, sizes[test.spec], kept,
                    blocks[test.spec]) for test in tests]


def _blocks(test: sets.Set, block_m: float) -> list[int]:
  """Side of a block of every image, in pixels.

  Raises:
    UserError: pixels of an unknown size.
  """
  return [max(round(block_m / test.metres(i)), 1) for i in range(len(test))]


def _given(job: protocol.Job, settings: Settings) -> head_lib.Head:
  """The head that is given.

  Raises:
    UserError: one that does not fit the backbone, or predicts no metres.
  """
  place = paths.expand(settings.head)
  head = stored_heads.load(place) if stored_heads.is_head(place) else (
      published_heads.read(place, job.model))
  warning = head.check(job.model, job.weights)
  if warning:
    job.say(warning)
  if not isinstance(head.task, depth.Task) or isinstance(
      head.task, depth.RelativeDepth):
    raise errors.UserError(
        f'canopy.head={settings.head} is of {head.kind}, and predicts no '
        'metres: give a head of canopy heights')
  return head


def task_of(settings: Settings,
            model: backbone_lib.Backbone) -> depth.DptDepth:
  """The task of a head that is trained, as CHMv2's is."""
  layers = depth.read_layers(model.config.depth, dpt.LEVELS)
  width = dense_training.width(model, layers) // dpt.LEVELS
  return depth.DptDepth(
      head=dpt.of_canopies(width, settings.channels, settings.num_bins),
      layers=layers, min_depth=sets.GROUND_M, max_depth=settings.max_height,
      spacing='mixed', normalize='mixed', weights=_LOSSES, distorts=True,
      plain_steps=min(_PLAIN, settings.steps // 20),
      pixels=dense_task.Pixels(
          model.mean, model.std, model.config.side_px))


def _trained(job: protocol.Job, settings: Settings,
             train: sets.Set) -> head_lib.Head:
  """A head that has learned.

  Raises:
    UserError: it diverged.
    Stopped: see `run`.
  """
  task = task_of(settings, job.model)
  curve = schedules.RiseFall(settings.steps, round(_RISE * settings.steps),
                             power=None)
  heads = dense_training.train(
      job, task, train, map_crops.Turned(settings.crop, settings.degrees),
      settings, sweep=fit_lib.Sweep(
          (settings.learning_rate,), (settings.weight_decay,)),
      rule=optimizer.adamw(beta2=_BETA2),
      schedule=lambda step: {'lr': curve(step)}, clip_norm=_CLIP_NORM)
  if heads['diverged'].all():
    raise errors.UserError(
        'the head diverged: set canopy.learning_rate below '
        f'{settings.learning_rate:g}')
  return head_lib.of_stack(
      task, heads, 0, job.model, job.weights, facts={
          'trained on': train.spec, 'steps': settings.steps,
          'lr': settings.learning_rate,
          'views': {'flips': False, 'native': True}})


def _measured(maps: dense.Maps, settings: Settings, test: sets.Set,
              sizes: list, kept: head_lib.Head,
              blocks: list[int]) -> protocol.Measured:
  """Rows and pictures of a test set."""
  stack = dense.replicated(kept.stack, maps.job.model.mesh)
  index, parts, spreads = [], [], []
  for row, predicted in maps.of(test, sizes, stack):
    truth = np.where(row['truth'] > 0, row['truth'], np.nan)
    index.append(row['index'])
    spreads.append(dense_training.spread(predicted[0, ..., 0]))
    parts.append(heights.sums(predicted[0, ..., 0], np.where(
        truth <= sets.GROUND_M, 0.0, truth), blocks[row['index']]))
  names = [start + name for start in ('', 'block_') for name in heights.SUMS]
  rows = dense.columns(maps, [{
      'index': np.array(index, np.int64), 'spread': np.array(spreads)} | {
          name: np.array([part[name] for part in parts], np.float64)
          for name in names}])
  dense_training.tell_flat(
      maps.job, 'canopy', test.spec, rows.pop('spread'))
  pictures = dense_pictures.of_test(
      maps, test, sizes, kept.stack, settings.pictures)
  return protocol.Measured(
      test.spec, rows, heights.scores, {
          'head': settings.head or 'trained', 'block': settings.block_m,
          'metres of a pixel': round(test.metres(0), 4)},
      pictures=pictures, head=None if settings.head else kept)
