"""Everything a run is: a config as settings, and what must agree in it.

A config (configs/*.py) has the sections of `Settings`; keys are field names.
`read` builds and checks them, and reports all mistakes at once.
"""

import dataclasses
import math
from typing import Any
import warnings

from dinojax.augment import photometric
from dinojax.core import config as config_lib
from dinojax.core import errors
from dinojax.data import crops
from dinojax.data import masking
from dinojax.kernels import attention
from dinojax.models import layers
from dinojax.models import vit
from dinojax.train import sections

free = config_lib.free


@dataclasses.dataclass(frozen=True)
class Settings:
  """A whole config."""

  model: vit.ViTConfig
  data: sections.Data
  crops: crops.Crops
  masks: masking.Masks
  augment: photometric.Photometric
  dino: sections.Dino
  ibot: sections.Ibot
  koleo: sections.Koleo
  teacher: sections.Teacher
  optimizer: sections.Optimizer
  schedules: sections.Schedules
  train: sections.Train
  mesh: sections.Mesh = free(sections.Mesh())
  checkpoint: sections.Checkpoint = free(sections.Checkpoint())
  log: sections.Log = free(sections.Log())
  knn: sections.Knn = free(sections.Knn())
  gram: sections.Gram = sections.Gram()
  init: sections.Init = sections.Init()
  seed: int = 0

  @property
  def num_patches(self) -> int:
    """Patches of a global crop."""
    rows, columns = self.model.grid((self.crops.global_px,) * 2)
    return rows * columns


def read(config: Any) -> Settings:
  """Builds and checks a config.

  Args:
    config: ConfigDict or nested dict with the sections of `Settings`.

  Raises:
    UserError: every mistake, each with its key, value and fix.
  """
  problems = config_lib.Errors()
  settings = config_lib.section(
      Settings, config_lib.plain(config), path='', problems=problems)
  problems.raise_any()
  _check_model(settings, problems)
  _check_batch(settings, problems)
  _check_choices(settings, problems)
  _check_gram(settings, problems)
  _check_init(settings, problems)
  problems.raise_any()
  return settings


def _check_model(s: Settings, problems: config_lib.Errors):
  model, patch = s.model, s.model.patch_px
  problems.check(
      model.embed_dim % max(model.num_heads, 1) == 0,
      f'model.embed_dim={model.embed_dim} is not divisible by '
      f'model.num_heads={model.num_heads}')
  for key in ('global_px', 'local_px'):
    size = getattr(s.crops, key)
    if key == 'local_px' and s.crops.num_local == 0:
      continue
    problems.check(
        size % patch == 0,
        f'crops.{key}={size} is not divisible by model.patch_px={patch}: '
        f'set it to {max(size // patch, 1) * patch} or '
        f'{(size // patch + 1) * patch}')
  problems.check(
      0 <= model.drop_path_rate < 1,
      f'model.drop_path_rate={model.drop_path_rate} is not in [0, 1)')


def _check_batch(s: Settings, problems: config_lib.Errors):
  t = s.train
  if min(t.batch_size, t.group_images, t.num_micro_batches) < 1:
    problems.add(
        f'train.batch_size={t.batch_size}, train.group_images='
        f'{t.group_images} and train.num_micro_batches='
        f'{t.num_micro_batches} must be at least 1')
    return
  unit = t.group_images * t.num_micro_batches
  problems.check(
      t.batch_size % unit == 0,
      f'train.batch_size={t.batch_size} is not divisible by '
      f'train.group_images × train.num_micro_batches = {unit}: set it to '
      f'{max(t.batch_size // unit, 1) * unit}')
  if s.koleo.loss_weight:
    group = s.koleo.group_images
    problems.check(
        group >= 2, f'koleo.group_images={group}: a row needs a neighbour, '
        'set it to 2 or more, or koleo.loss_weight to 0')
    problems.check(
        group < 1 or t.batch_size % group == 0,
        f'train.batch_size={t.batch_size} is not divisible by '
        f'koleo.group_images={group}')
    problems.check(
        s.koleo.topk < group,
        f'koleo.topk={s.koleo.topk} needs more neighbours than '
        f'koleo.group_images={group} has')
  if t.epoch_steps is not None:
    problems.check(t.epoch_steps > 0, 'train.epoch_steps must be positive')


def _check_choices(s: Settings, problems: config_lib.Errors):
  choices = [
      ('teacher.centering', s.teacher.centering, ('sinkhorn_knopp', 'softmax')),
      ('schedules.style', s.schedules.style, ('v2', 'v3')),
      ('schedules.lr_rule', s.schedules.lr_rule,
       ('none', 'sqrt_1024', 'sqrt_1024_x4', 'linear_256')),
      ('model.position', s.model.position, ('learned', 'rope')),
      ('model.norm', s.model.norm, ('layernorm', 'rmsnorm')),
      ('model.ffn', s.model.ffn, ('mlp', 'swiglu')),
      ('model.remat', s.model.remat, layers.REMAT),
      ('model.dtype', s.model.dtype, ('auto', 'float32', 'bfloat16')),
      ('model.packing', s.model.packing, ('auto', 'tuple', 'stream')),
      ('model.attention', s.model.attention,
       ('auto', *attention.IMPLEMENTATIONS)),
      ('gram.teacher', s.gram.teacher, ('frozen', 'ema')),
      ('gram.tokens', s.gram.tokens, ('all', 'masked', 'unmasked')),
      ('masks.counts', s.masks.counts, ('exact', 'undershooting')),
      ('augment.blur', s.augment.blur,
       tuple(photometric.BLUR_PROBABILITIES)),
  ]
  for key, value, known in choices:
    problems.check(
        value in known,
        f'{key}={value!r} is not known: use one of {", ".join(known)}')
  problems.check(
      s.dino.loss_weight > 0 or s.ibot.loss_weight > 0,
      'dino.loss_weight and ibot.loss_weight are both 0: nothing to learn')
  if s.ibot.loss_weight and not s.ibot.separate_head:
    problems.check(
        s.dino.loss_weight > 0,
        'ibot.separate_head=False shares the head of dino, but '
        'dino.loss_weight is 0: set ibot.separate_head=True')
  problems.check(
      0 < s.data.max_bad_fraction <= 1,
      f'data.max_bad_fraction={s.data.max_bad_fraction} is not in (0, 1]')


def _check_gram(s: Settings, problems: config_lib.Errors):
  gram = s.gram
  problems.check(
      not (gram.remove_negative and gram.remove_only_teacher_negative),
      'gram.remove_negative and gram.remove_only_teacher_negative exclude '
      'each other: set one to False')
  problems.check(
      gram.tokens == 'all' or not gram.per_image,
      f'gram.tokens={gram.tokens!r} compares tokens of several images: set '
      'gram.per_image=False, or gram.tokens=all')
  problems.check(
      gram.teacher == 'frozen' or gram.refresh_every is None,
      'gram.refresh_every renews a teacher of its own, but gram.teacher is '
      'ema: leave it unset')


def _check_init(s: Settings, problems: config_lib.Errors):
  init, has_knn = s.init, bool(s.knn.validation or s.data.validation)
  problems.check(
      init.source is not None or not (
          init.freeze_backbone.value or init.max_knn_drop is not None),
      'init.freeze_backbone and init.max_knn_drop guard weights that were '
      'given, but init.source is not set: set it, or leave them out')
  problems.check(
      init.max_knn_drop is None or (has_knn and s.knn.every is not None),
      f'init.max_knn_drop={init.max_knn_drop} needs k-NN while training: set '
      'data.validation and knn.every_steps')


def check_devices(settings: Settings, num_devices: int):
  """Whether batch and groups fit the devices.

  Raises:
    UserError: with the batch size or device count that would work.

  Warns when stochastic depth rounds the kept fraction of a group by more
  than 0.05.
  """
  t, group = settings.train, settings.train.group_images
  unit = num_devices * t.num_micro_batches
  if t.batch_size % unit:
    better = max(round(t.batch_size / unit), 1) * unit
    raise errors.UserError(
        f'train.batch_size={t.batch_size} is not divisible by {num_devices} '
        f'devices × {t.num_micro_batches} micro-batches: set '
        f'train.batch_size to {better}')
  rows = t.batch_size // unit
  if rows % group:
    fits = [n for n in range(num_devices, 0, -1)
            if t.batch_size % (n * t.num_micro_batches * group) == 0]
    raise errors.UserError(
        f'train.group_images={group} does not divide the {rows} images that '
        f'a device takes at a time: set train.batch_size to '
        f'{max(math.ceil(rows / group), 1) * group * unit}, or run on '
        f'{fits[0] if fits else 1} devices')
  spread = settings.koleo.group_images
  if settings.koleo.loss_weight and t.num_micro_batches > 1 and rows % spread:
    raise errors.UserError(
        f'koleo.group_images={spread} does not divide the {rows} images that '
        f'a device takes at a time; with train.num_micro_batches > 1 a group '
        f'must: set koleo.group_images to {math.gcd(rows, spread)}')
  _warn_rounding(settings)


def _warn_rounding(settings: Settings):
  rate = settings.model.drop_path_rate
  if not rate:
    return
  for kind in ('global', 'local'):
    views = getattr(settings.crops, f'num_{kind}')
    rows = settings.train.group_images * views
    if not rows:
      continue
    kept = max(int(rows * (1 - rate)), 1) / rows
    if abs(kept - (1 - rate)) > 0.05:
      warnings.warn(
          f'model.drop_path_rate={rate} keeps {kept:.2f} of the {rows} '
          f'{kind} rows of a group instead of {1 - rate:.2f}: a larger '
          'train.group_images rounds less', stacklevel=2)
