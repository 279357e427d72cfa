"""Depth: linear and DPT heads on patches.

Heads are trained on random crops; errors are those of every test image, at the
size of its depths, the mean of the image and its mirror image.

Source: depth heads of DINOv3 (one layer, and DPT) and DINOv2 (lin1, lin4, and
DPT).
Differs: nobody has published how DINOv3's DPT head was trained: rates are the
  paper's, the rest is that of its linear head.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import itertools
from typing import Any, Literal

import numpy as np

from dinojax.core import errors
from dinojax.core import fields
from dinojax.data import map_crops
from dinojax.data import parts
from dinojax.engine import optimizer
from dinojax.engine import schedules
from dinojax.evals import dense
from dinojax.evals import dense_pictures
from dinojax.evals import dense_training
from dinojax.evals import protocol
from dinojax.evals import views as views_lib
from dinojax.evals import windows
from dinojax.evals.sets import depths
from dinojax.features import backbone as backbone_lib
from dinojax.metrics import depth as metrics
from dinojax.models.dense import dpt
from dinojax.probes import fit as fit_lib
from dinojax.probes import head as head_lib
from dinojax.probes.tasks import dense as dense_task
from dinojax.probes.tasks import depth

TITLE = 'depth, errors in metres'
COST = 'steps × batch of training crops, test images and mirror images'
PIXELS = lambda settings: ''
_WHAT = ('a set of depths, such as depth:DIR with DIR/images and DIR/depth, '
         'or nyu:DIR')
TRAINS = True  # heads
ROLES = {'train': protocol.Role(opens=depths.train, what=_WHAT),
         'validation': protocol.Role(
             needed=False, opens=depths.test, what=_WHAT),
         'test': protocol.Role(opens=depths.test, what=_WHAT)}
NUM_BINS = 256
_PERCENT = ('a1', 'a2', 'a3')  # shares, told in per cent
# Median depths of a set beyond these parts of max_depth are of other units.
_LEAST, _MOST = 1 / 500, 2.0


@dataclasses.dataclass(frozen=True)
class Recipe:
  """Values of a published recipe."""

  num_layers: int
  learning_rate: float
  weight_decay: float
  beta2: float
  is_v2: bool
  is_dpt: bool = False
  is_relative: bool = False


RECIPES = {'v3': Recipe(1, 3e-4, 1e-4, 0.99, False),
           'lin1': Recipe(1, 1e-4, 0.01, 0.999, True),
           'lin4': Recipe(4, 1e-4, 0.01, 0.999, True),
           'dpt': Recipe(4, 1e-4, 0.01, 0.999, True, True),
           'dpt3': Recipe(4, 1e-3, 1e-4, 0.99, False, True),
           'relative': Recipe(4, 1e-4, 0.01, 0.999, False, True, True)}


@dataclasses.dataclass(frozen=True)
class Settings:
  """Depth by heads on patches."""

  # Set of images with depths that heads learn from, such as depth:DIR.
  train: str | None = None
  # Set by which a head is chosen, where there are several; None: every tenth
  # image of `train`.
  validation: str | None = None
  test: tuple[str, ...] = ()  # Sets that are measured on, each alone.
  # Source of images without depths that are drawn as well; None: none.
  show: str | None = fields.free(None)
  # Published recipe that the other values are of, where they are not given:
  # DINOv3's; DINOv2's of one layer or of four; the DPT of DINOv2 or DINOv3; or
  # inverse depth up to a scale and a shift, as Depth Anything's.
  recipe: Literal['v3', 'lin1', 'lin4', 'dpt', 'dpt3', 'relative'] = 'v3'
  # Channels of a DPT head; None: of the recipe, 256 and 512.
  channels: fields.Positive | None = None
  # Learning rates of the heads, at their highest; (): of the recipe.
  learning_rates: tuple[fields.Above0, ...] = ()
  # Weight decays, each with every learning rate; (): of the recipe.
  weight_decays: tuple[fields.NonNegative, ...] = ()
  steps: fields.Positive = 38_400  # Updates of the heads.
  warmup_steps: fields.Natural = 12_800  # Updates until the highest rate.
  batch_size: fields.Positive = 16  # Crops of an update.
  # Rows and columns of a crop in training.
  crop: tuple[fields.Positive, fields.Positive] = (416, 544)
  # Rows and columns that every test image is resized to, depths are not;
  # None: its own.
  size: tuple[fields.Positive, fields.Positive] | None = None
  degrees: fields.NonNegative = 2.5  # Greatest turn of a training image.
  min_depth: fields.Above0 = 1e-3  # Least depth that is told apart, metres.
  max_depth: fields.Above0 = 10.0  # Greatest depth, metres; KITTI's is 80.
  # Pixels that are measured: all, or the boxes of NYU and KITTI.
  box: Literal['full', 'nyu_eigen', 'kitti_garg'] = 'full'
  # Weight of the loss of gradients; DINOv2's recipe says 0.5, and had none.
  # None: 2 of relative depth, else 0.
  gradient_weight: fields.NonNegative | None = None
  # Share of the pixels of an image that relative depth does not learn from,
  # those of the largest errors: 0.1 where a head made the depths.
  ignored: fields.Unit = 0.0
  # Images that share a mean and a variance in the loss: 2, those of a device
  # of the references; None: the batch.
  group_images: fields.Positive | None = 2
  plain_steps: fields.Natural = 100  # First updates without the variance.
  # Adam's beta1: constant, or moved as DINOv3 does: 0 in the warm-up, then
  # from 0.85 to 0.95.
  beta1_schedule: Literal['constant', 'reference'] = 'constant'
  flips: bool = True  # Mirror images are averaged in tests.
  # The scale and shift that fit the depths of an image best are applied; those
  # of relative depth always.
  aligns: bool = False
  # Predictions of padded images are resized without cutting the padding off,
  # as the references do.
  reference_padding: bool = False
  # Heads that are trained side by side; more take more memory.
  heads_at_once: fields.Positive = fields.free(1)
  images_at_once: fields.Positive = fields.free(8)  # Test images at a time.
  pictures: fields.Natural = fields.free(6)  # Test images that are drawn.

  @property
  def rates(self) -> list[tuple[float, float]]:
    """Learning rate and weight decay of every head."""
    recipe = RECIPES[self.recipe]
    return list(itertools.product(
        self.learning_rates or (recipe.learning_rate,),
        self.weight_decays or (recipe.weight_decay,)))


def check(settings: Settings, config: Any):
  """Refuses more layers than a backbone has, and a range without depths.

  Raises:
    UserError: it has fewer, or none of one size; depths that are no range.
  """
  dense_training.check('depth', RECIPES[settings.recipe].num_layers, config)
  if RECIPES[settings.recipe].is_dpt and not config.has_attention:
    raise errors.UserError(
        f'depth.recipe={settings.recipe} reads four maps of one size, and the '
        'stages of a ConvNeXt differ: set depth.recipe=v3')
  if settings.min_depth >= settings.max_depth:
    raise errors.UserError(
        f'depth.min_depth={settings.min_depth:g} is not below depth.max_depth='
        f'{settings.max_depth:g}: set max_depth to the greatest depth in '
        'metres')


def passes(settings: Settings, sizes: Mapping[str, int]) -> int:
  """Crops and images that go through the backbone."""
  chosen = 0 if len(settings.rates) == 1 else (
      sizes['validation'] or sizes['train'] // parts.ONE_OF)
  return settings.steps * settings.batch_size + chosen + (
      1 + settings.flips) * sizes['test']


def run(job: protocol.Job, settings: Settings) -> list[protocol.Measured]:
  """Errors of depth of the head that is best.

  Raises:
    UserError: depths of other units, or of another size than their images.
    Stopped: a signal ended the training of the heads, whose step is saved.
  """
  train, validation, tests = dense_training.split(
      job, chooses=len(settings.rates) > 1)
  task = task_of(settings, job.model)
  shown = dense_training.opened_pictures(settings.show)
  measured = dense_training.sizes_of((train, *tests, validation), job)
  relative = RECIPES[settings.recipe].is_relative
  for source in tests if relative else (train, *tests):
    check_units(source, settings.max_depth)
  maps, base = (_maps(job, task, settings, flips)
                for flips in (settings.flips, False))
  maps.plan([size for test in tests for size in measured[test.spec]], 'depth')
  heads = _train(job, settings, task, train)
  best, facts = 0, {'heads': len(settings.rates)}
  if validation is not None:
    base.plan(measured[validation.spec], 'depth')
    rows = _rows(base, settings, validation, measured, heads)
    rmse = np.nanmean(rows['errors'][..., metrics.METRICS.index('rmse')], 0)
    rmse = np.where(heads['diverged'] | ~np.isfinite(rmse), np.inf, rmse)
    best = int(rmse.argmin())
    facts['validation rmse'] = float(rmse[best])
  lr, decay = settings.rates[best]
  kept = head_lib.of_stack(
      task, heads, best, job.model, job.weights, facts={
          'trained on': train.spec, 'recipe': settings.recipe,
          'steps': settings.steps, 'lr': lr, 'weight decay': decay,
          'views': {'size': settings.size, 'flips': settings.flips}})
  head, out = kept.stack, []
  facts |= {'lr': lr, 'weight decay': decay, 'box': settings.box,
            'aligned': settings.aligns or relative}
  for test in tests:
    rows = _rows(maps, settings, test, measured, head)
    dense_training.tell_flat(job, 'depth', test.spec, rows['spread'][:, 0])
    columns = {'index': rows['index']} | dict(zip(
        metrics.METRICS, rows['errors'][:, 0].T, strict=True))
    pictures = dense_pictures.of_test(
        maps, test, measured[test.spec], head, settings.pictures,
        limit=settings.max_depth, relative=relative)
    if test is tests[0] and shown is not None:
      pictures |= dense_pictures.of_others(
          maps, shown, head, settings.pictures, limit=settings.max_depth,
          relative=relative)
    without = int(np.isnan(columns['rmse']).sum()) + test.left_out
    out.append(protocol.Measured(
        test.spec, columns, score, facts | {'without depths': without},
        pictures=pictures, head=kept))
  return out


def score(rows: protocol.Rows) -> dict[str, float]:
  """Means over images of columns by METRICS; shares are in per cent."""
  return {name: (100.0 if name in _PERCENT else 1.0) * float(
      np.nanmean(rows[name])) for name in metrics.METRICS
          if np.isfinite(rows[name]).any()}


def check_units(source: Any, max_depth: float):
  """Refuses depths whose median is far outside of the range.

  Raises:
    UserError: they are not metres.
  """
  some = [source[i].decoded()[1] for i in range(min(len(source), 3))]
  known = np.concatenate([depth[depth > 0] for depth in some])
  if not known.size:
    raise errors.UserError(
        f'{source.spec}: no pixel of its first maps has a depth, which is '
        'above 0: check the files')
  median = float(np.median(known))
  if not _LEAST * max_depth <= median <= _MOST * max_depth:
    raise errors.UserError(
        f'{source.spec}: depths are {median:.3g} metres in the middle, far '
        f'from depth.max_depth={max_depth:g}: give the metres of a unit, such '
        'as depth:DIR?scale=0.001 for millimetres, or set depth.max_depth')


def task_of(settings: Settings, model: backbone_lib.Backbone) -> depth.Task:
  """The task of a recipe on a backbone."""
  recipe = RECIPES[settings.recipe]
  chosen, v2 = depth.read_layers(
      model.config.depth, recipe.num_layers), recipe.is_v2
  shared = dict(
      layers=chosen, place='raw' if v2 else 'normed', clamps=v2,
      min_depth=settings.min_depth, max_depth=settings.max_depth,
      weights=depth.weights(
          {'sig': 1.0, 'gradient_log': settings.gradient_weight or 0.0}),
      group=settings.group_images, plain_steps=settings.plain_steps,
      distorts=True, pixels=dense_task.Pixels(
          model.mean, model.std, model.config.side_px,
          settings.reference_padding))
  width = dense_training.width(model, chosen)
  if recipe.is_relative:
    weight = settings.gradient_weight
    return depth.RelativeDepth(
        head=dpt.of_depth_anything(width // dpt.LEVELS, settings.channels),
        gradient_weight=2.0 if weight is None else weight,
        ignored=settings.ignored, **shared)
  if recipe.is_dpt:
    head = dpt.of_dinov2 if v2 else dpt.of_dinov3
    return depth.DptDepth(
        head=head(width // dpt.LEVELS, settings.channels), **shared)
  return depth.Depth(
      num_outputs=NUM_BINS, cls=v2, norm=not v2, width=(1 + v2) * width,
      upsample=4 if v2 else 1, small=not v2, **shared)


def _maps(job: protocol.Job, task: depth.Task, settings: Settings,
          flips: bool) -> dense.Maps:
  return dense.Maps(
      job, task, views_lib.Views(
          windows.Windows(), size=settings.size, flips=flips,
          direct=not RECIPES[settings.recipe].is_v2),
      is_class=False, at_once=settings.images_at_once)


def _train(job: protocol.Job, settings: Settings, task: depth.Task,
           train: Any) -> dict:
  """Parameters and statistics of all heads, and which have diverged."""
  recipe, steps = RECIPES[settings.recipe], settings.steps
  if recipe.is_v2:
    curve = schedules.WarmupDecay(
        steps, settings.warmup_steps, 1e-3, 'cosine', 1e-8)
  else:
    curve = schedules.DepthOneCycle(steps, settings.warmup_steps)
  momentum = schedules.DepthMomentum(steps, settings.warmup_steps)
  moved = settings.beta1_schedule == 'reference'
  return dense_training.train(
      job, task, train, map_crops.Turned(settings.crop, settings.degrees),
      settings, sweep=fit_lib.Sweep(
          *(tuple(each) for each in zip(*settings.rates, strict=True))),
      rule=optimizer.adamw(beta2=recipe.beta2),
      schedule=lambda step: {'lr': curve(step)} | (
          {'beta1': momentum(step)} if moved else {}),
      clip_norm=35.0)


def _rows(maps: dense.Maps, settings: Settings, source: Any,
          measured: Mapping[str, Sequence], heads: Mapping[str, Any]
          ) -> protocol.Rows:
  """errors [r, s, METRICS], spread [r, s] and index of readable images."""
  stack = dense.replicated({name: heads[name] for name in (
      'params', 'stats')}, maps.job.model.mesh)
  reach = dict(min_depth=settings.min_depth, max_depth=settings.max_depth)
  relative = RECIPES[settings.recipe].is_relative
  index, errors_of, spreads = [], [], []
  for row, predicted in maps.of(source, measured[source.spec], stack):
    index.append(row['index'])
    valid = metrics.valid_pixels(row['truth'], crop=settings.box, **reach)
    values = []
    for each in predicted[..., 0]:
      kept, _ = metrics.prepared(
          each, row['truth'], valid, align=settings.aligns or relative,
          inverse=relative, **reach)
      values.append(list(metrics.metrics(kept, row['truth'], valid).values()))
    errors_of.append(values)
    spreads.append(dense_training.spread(predicted[..., 0]))
  return dense.columns(maps, [{
      'index': np.array(index, np.int64),
      'spread': np.array(spreads, np.float64).reshape(
          -1, dense.num_heads(heads)),
      'errors': np.array(errors_of, np.float64).reshape(
          -1, dense.num_heads(heads), len(metrics.METRICS))}])
