"""Linear segmentation: heads on patches, trained on random crops.

Heads of all rates learn from the same crops; which of them is reported is
chosen on validation images, and the same one is measured on every test set by
sliding windows.

Source: segmentation heads of DINOv3 and DINOv2 (one layer, or four with
  test-time scales and flips).
Differs: without validation images of their own, every tenth training image
  chooses; the references choose on the test images, or not at all.
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
from dinojax.evals import mask_heads
from dinojax.evals import protocol
from dinojax.evals import views as views_lib
from dinojax.evals import windows
from dinojax.evals.sets import dense as sets
from dinojax.evals.sets import masks
from dinojax.metrics import segmentation as metrics
from dinojax.probes import fit as fit_lib
from dinojax.probes import head as head_lib
from dinojax.probes.tasks import dense as dense_task
from dinojax.probes.tasks import masks as masks_task
from dinojax.probes.tasks import segment

TITLE = 'linear segmentation, mIoU'
COST = 'steps × batch of training crops, test images by windows'
PIXELS = lambda settings: settings.resolved.short_px
_WHAT = ('a set of masks, such as masks:DIR with DIR/images and DIR/masks, or '
         'ade20k:DIR')
TRAINS = True  # heads
ROLES = {'train': protocol.Role(opens=masks.train, what=_WHAT),
         'validation': protocol.Role(
             needed=False, opens=masks.test, what=_WHAT),
         'test': protocol.Role(opens=masks.test, what=_WHAT)}
MOST_TARGETS = 64  # classes of a crop
Task = segment.Segment | masks_task.Queries
COLUMNS = ('intersection', 'union', 'predicted', 'labelled')


@dataclasses.dataclass(frozen=True)
class Recipe:
  """Values of a published recipe."""

  layers: int
  short_px: int
  stride_px: int | None  # of windows of short_px; None: evenly
  scales: tuple[float, float]
  learning_rates: tuple[float, ...]
  weight_decays: tuple[float, ...]
  dropout: float
  hue: float
  ratios: tuple[float, ...] = (1.0,)
  flips: bool = False


RECIPES = {
    'v3': Recipe(1, 512, 341, (0.5, 2.0), (1e-4, 3e-4, 1e-3), (1e-4, 1e-3),
                 0.1, 0.5),
    'lin': Recipe(1, 512, 341, (0.5, 2.0), (1e-3,), (1e-4,), 0.0, 0.1),
    'ms': Recipe(4, 640, 320, (1.0, 3.0), (1e-3,), (1e-4,), 0.0, 0.1,
                 (1.0, 1.32, 1.73, 2.28, 3.0), True),
    'masks': Recipe(mask_heads.NUM_LAYERS, 512, 256, (0.5, 2.0),
                    (mask_heads.RECIPES['masks'].learning_rate,),
                    (mask_heads.WEIGHT_DECAY,), 0.0, 18 / 360),
    'eomt': Recipe(1, 512, None, (0.5, 2.0),
                   (mask_heads.RECIPES['eomt'].learning_rate,),
                   (mask_heads.WEIGHT_DECAY,), 0.0, 18 / 360),
    'm2f': Recipe(mask_heads.NUM_LAYERS, 896, 596, (0.5, 2.0),
                  (mask_heads.RECIPES['m2f'].learning_rate,),
                  (mask_heads.WEIGHT_DECAY,), 0.0, 18 / 360)}


@dataclasses.dataclass(frozen=True)
class Settings:
  """Linear segmentation on patches."""

  # Set of images with masks that heads learn from, such as masks:DIR.
  train: str | None = None
  # Set by which a head is chosen; None: every tenth image of `train`.
  validation: str | None = None
  test: tuple[str, ...] = ()  # Sets that are measured on, each alone.
  # Source of images without masks that are drawn as well; None: none.
  show: str | None = fields.free(None)
  # Published recipe that the other values are of, where they are not given:
  # DINOv3's, or DINOv2's of one layer or of four with scales and flips; or
  # queries in blocks of their own on the features of four (PMT), or in copies
  # of the last blocks of the backbone (EoMT); or Mask2Former with an adapter
  # (DINOv3).
  recipe: Literal['v3', 'lin', 'ms', 'masks', 'eomt', 'm2f'] = 'v3'
  # Queries of the recipes masks, eomt and m2f.
  num_queries: fields.Positive = 100
  # Blocks or layers of the queries; None: 6 of the recipe masks, 3 to 5 of
  # eomt, 9 of m2f.
  num_blocks: fields.Positive | None = None
  hidden: fields.Positive = 256  # Width of the recipe m2f, a multiple of 32.
  # Layers of the recipe m2f in which maps attend to each other.
  num_pixel_layers: fields.Positive = 6
  # Points at which a mask is compared, in the recipes masks, eomt and m2f.
  num_points: fields.Positive = 12_544
  # Learning rates of the heads, at their highest; (): of the recipe.
  learning_rates: tuple[fields.Above0, ...] = ()
  # Weight decays, each with every learning rate; (): of the recipe.
  weight_decays: tuple[fields.NonNegative, ...] = ()
  # Number of last blocks that are joined; None: of the recipe.
  layers: fields.Positive | None = None
  steps: fields.Positive = 40_000  # Updates of the heads.
  warmup_steps: fields.Natural = 1500  # Updates until the highest rate.
  batch_size: fields.Positive = 16  # Crops of an update.
  # Length of the short side of an image, in pixels, when it is tested and at
  # a scale of 1 in training; None: of the recipe.
  short_px: fields.Positive | None = None
  # Side of a crop in training and of a window in tests; None: short_px.
  crop_px: fields.Positive | None = None
  # From window to window; None: two thirds of a window, half of it (ms, masks),
  # or as few windows as cover an image (eomt).
  stride_px: fields.Positive | None = None
  # Sizes that are averaged in tests, as factors; (): of the recipe.
  ratios: tuple[fields.Above0, ...] = ()
  # Mirrored images are averaged in tests as well; None: of the recipe.
  flips: bool | None = None
  # Sizes and mirror images are averaged after a softmax over the classes, as
  # the references do; False: their scores are, as Mask2Former does.
  softmax: bool = True
  # Predictions of padded windows are resized without cutting the padding off,
  # as the references do.
  reference_padding: bool = False
  # Heads that are trained side by side; more take more memory.
  heads_at_once: fields.Positive = fields.free(1)
  windows_at_once: fields.Positive = fields.free(16)  # Windows at a time.
  pictures: fields.Natural = fields.free(6)  # Test images that are drawn.

  @property
  def resolved(self) -> 'Settings':
    """The settings with the values of the recipe."""
    recipe = RECIPES[self.recipe]
    short = self.short_px or recipe.short_px
    crop = self.crop_px or short
    stride = self.stride_px or recipe.stride_px and max(
        round(crop * recipe.stride_px / recipe.short_px), 1)
    return dataclasses.replace(
        self, short_px=short, crop_px=crop, stride_px=stride,
        layers=self.layers or recipe.layers,
        learning_rates=self.learning_rates or recipe.learning_rates,
        weight_decays=self.weight_decays or recipe.weight_decays,
        ratios=self.ratios or recipe.ratios,
        flips=recipe.flips if self.flips is None else self.flips)

  @property
  def rates(self) -> list[tuple[float, float]]:
    """Learning rate and weight decay of every head."""
    values = self.resolved
    return list(itertools.product(
        values.learning_rates, values.weight_decays))


def check(settings: Settings, config: Any):
  """Refuses more layers than a backbone has, and crops below a patch.

  Raises:
    UserError: it has fewer, or no tokens; or a crop has no patch.
  """
  dense_training.check('segmentation', settings.resolved.layers, config)
  if settings.recipe in mask_heads.RECIPES:
    mask_heads.check('segmentation', settings.resolved, config)
  crop = settings.resolved.crop_px
  if crop < config.side_px:
    raise errors.UserError(
        f'segmentation.crop_px={crop} is smaller than a patch of '
        f'{config.side_px} pixels: set segmentation.crop_px={config.side_px} '
        'or more')


def passes(settings: Settings, sizes: Mapping[str, int]) -> int:
  """Crops and images that go through the backbone."""
  values = settings.resolved
  views = len(values.ratios) * (1 + values.flips)
  chosen = 0 if len(settings.rates) == 1 else (
      sizes['validation'] or sizes['train'] // parts.ONE_OF)
  return values.steps * values.batch_size + chosen + views * sizes['test']


def run(job: protocol.Job, settings: Settings) -> list[protocol.Measured]:
  """mIoU, mean accuracy and accuracy of pixels of the head that is best.

  Raises:
    UserError: sets of other classes, maps of other sizes, unknown ids.
    Stopped: a signal ended the training of the heads, whose step is saved.
  """
  values = settings.resolved
  train, validation, tests = dense_training.split(
      job, chooses=len(settings.rates) > 1)
  _check_classes(train, (*tests, *((validation,) if validation else ())))
  task = _task(job, values, len(train.classes))
  shown = dense_training.opened_pictures(values.show)
  measured = dense_training.sizes_of((train, *tests, validation), job)
  base = _maps(job, task, dataclasses.replace(values, ratios=(1.0,),
                                              flips=False))
  maps = _maps(job, task, values)
  maps.plan([size for test in tests for size in measured[test.spec]],
            'segmentation')
  heads = _train(job, values, settings.rates, task, train)
  best, facts = 0, {'heads': len(settings.rates), 'layers': values.layers}
  if validation is not None:
    base.plan(measured[validation.spec], 'segmentation')
    scores = _rows(base, validation, measured, heads, len(train.classes))
    miou = np.array([_scores_of(scores['areas'][:, i])['mIoU']
                     for i in range(len(settings.rates))])
    miou = np.where(heads['diverged'] | ~np.isfinite(miou), -1, miou)
    best = int(miou.argmax())
    facts['validation mIoU'] = float(miou[best])
  lr, decay = settings.rates[best]
  kept = head_lib.of_stack(
      task, heads, best, job.model, job.weights, train.classes, {
          'trained on': train.spec, 'recipe': settings.recipe,
          'steps': settings.steps, 'lr': lr, 'weight decay': decay,
          'views': {name: getattr(values, name) for name in (
              'short_px', 'crop_px', 'stride_px', 'ratios', 'flips',
              'softmax')}})
  head, out = kept.stack, []
  for test in tests:
    rows = _rows(maps, test, measured, head, len(train.classes))
    areas = rows['areas'][:, 0]
    columns = {'index': rows['index']} | {
        name: areas[:, i] for i, name in enumerate(COLUMNS)}
    iou = metrics.scores(areas.sum(0))['per_class_iou']
    pictures = dense_pictures.of_test(maps, test, measured[test.spec], head,
                                      values.pictures, train.classes)
    if test is tests[0] and shown is not None:
      pictures |= dense_pictures.of_others(
          maps, shown, head, values.pictures, train.classes)
    out.append(protocol.Measured(
        test.spec, columns, score, facts | {
            'lr': lr, 'weight decay': decay, 'IoU by class': {
                name: round(100 * float(x), 2) if np.isfinite(x) else None
                for name, x in zip(train.classes, iou, strict=True)}},
        classes=train.classes, pictures=pictures, head=kept))
  return out


def score(rows: protocol.Rows) -> dict[str, float]:
  """Scores of rows of areas [r, k], in per cent."""
  return _scores_of(np.stack([rows[name] for name in COLUMNS], axis=1))


def _scores_of(areas: np.ndarray) -> dict[str, float]:
  """Scores of areas [r, 4, k]."""
  values = metrics.scores(areas.sum(0, dtype=np.int64))
  return {'mIoU': 100 * values['mIoU'], 'mAcc': 100 * values['acc'],
          'aAcc': 100 * values['aAcc']}


def _check_classes(train: sets.Set, others: Sequence[sets.Set]):
  """Refuses sets whose classes are not those of training.

  Raises:
    UserError: they are others, or in another order.
  """
  for other in others:
    if tuple(other.classes) != tuple(train.classes):
      raise errors.UserError(
          f'{other.spec} has {len(other.classes)} classes '
          f'({", ".join(other.classes[:4])}, …) and {train.spec} '
          f'{len(train.classes)} ({", ".join(train.classes[:4])}, …): give '
          'both the same classes.txt')


def _task(job: protocol.Job, values: Settings, num_classes: int) -> Task:
  recipe, model = RECIPES[values.recipe], job.model
  pixels = dense_task.Pixels(
      model.mean, model.std, model.config.side_px, values.reference_padding)
  if values.recipe in mask_heads.RECIPES:
    return mask_heads.task(
        values, model, num_classes, num_layers=values.layers, pixels=pixels,
        most_targets=min(num_classes, MOST_TARGETS), distorts=True)
  return segment.Segment(
      num_outputs=num_classes, layers=values.layers,
      width=dense_training.width(model, values.layers), distorts=True,
      dropout=recipe.dropout, hue=recipe.hue, pixels=pixels)


def _maps(job: protocol.Job, task: Task,
          values: Settings) -> dense.Maps:
  return dense.Maps(
      job, task, views_lib.Views(
          windows.Windows(values.crop_px, values.stride_px), values.short_px,
          ratios=values.ratios, flips=values.flips, softmax=values.softmax),
      is_class=True, at_once=values.windows_at_once)


def _train(job: protocol.Job, values: Settings,
           rates: Sequence[tuple[float, float]], task: Task,
           train: Any) -> dict:
  """Parameters and statistics of all heads, and which have diverged."""
  recipe = RECIPES[values.recipe]
  crops = map_crops.Scaled(
      values.short_px, recipe.scales, values.crop_px, 0.75, sets.IGNORED)
  if values.recipe in mask_heads.RECIPES:
    learning = mask_heads.learning(task, values, values.warmup_steps)
  else:
    curve = (schedules.WarmupOneCycle(values.steps, values.warmup_steps)
             if values.recipe == 'v3' else schedules.WarmupDecay(
                 values.steps, values.warmup_steps, 1e-6))
    learning = {'schedule': lambda step: {'lr': curve(step)}}
  return dense_training.train(
      job, task, train, crops, values, sweep=fit_lib.Sweep(
          *(tuple(each) for each in zip(*rates, strict=True))),
      rule=optimizer.adamw(beta2=0.999), **learning)


def _rows(maps: dense.Maps, source: Any, measured: Mapping[str, list],
          heads: Mapping[str, Any], num_classes: int) -> protocol.Rows:
  """areas [r, s, 4, k] and index of every readable image."""
  stack = dense.replicated({name: heads[name] for name in (
      'params', 'stats')}, maps.job.model.mesh)
  index, areas = [], []
  for row, predicted in maps.of(source, measured[source.spec], stack):
    index.append(row['index'])
    areas.append([metrics.areas(each, row['truth'], num_classes)
                  for each in predicted])
  return dense.columns(maps, [{
      'index': np.array(index, np.int64),
      'areas': np.array(areas, np.int32).reshape(
          -1, dense.num_heads(heads), len(COLUMNS), num_classes)}])
