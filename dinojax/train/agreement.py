"""What must agree in a config, each mistake with its key, value and fix."""

from __future__ import annotations

import dataclasses
import re
import typing

from dinojax.augment import photometric
from dinojax.core import config as config_lib
from dinojax.kernels import attention
from dinojax.models import layers
from dinojax.models import vit
from dinojax.models import zoo

if typing.TYPE_CHECKING:
  from dinojax.train import settings as settings_lib
  Settings = settings_lib.Settings

Errors = config_lib.Errors


def check(s: Settings, problems: Errors):
  """Notes every mistake of the settings and of each student's."""
  _check_sizes(s, problems)
  _check_batch(s, problems)
  _check_choices(s, problems)
  _check_gram(s, problems)
  _check_distillation(s, problems)
  for name in s.students:
    problems.check(
        re.fullmatch(r'\w+', name) is not None,
        f'students.{name!r}: a name is letters, digits and _')
  for name, student in s.each.items():
    with problems.inside(f'students.{name}' if name else ''):
      _check_model(student, problems)
      _check_losses(student, problems)
      _check_init(student, problems)
      if name or not s.students:
        _check_convnext(student, problems)
      if name:
        _check_student(student, s, problems)


def _check_model(s: Settings, problems: Errors):
  model = s.model
  problems.check(
      model.remat in layers.REMAT,
      f'model.remat={model.remat!r} is not known: use one of '
      f'{", ".join(layers.REMAT)}')
  problems.check(
      model.dtype in ('auto', 'float32', 'bfloat16'),
      f'model.dtype={model.dtype!r} is not known: use one of auto, float32, '
      'bfloat16')
  if not isinstance(model, vit.ViTConfig):
    return
  problems.check(
      model.embed_dim % max(model.num_heads, 1) == 0,
      f'model.embed_dim={model.embed_dim} is not divisible by '
      f'model.num_heads={model.num_heads}')
  problems.check(
      0 <= model.drop_path_rate < 1,
      f'model.drop_path_rate={model.drop_path_rate} is not in [0, 1)')
  for key, known in (
      ('position', ('learned', 'rope')), ('norm', ('layernorm', 'rmsnorm')),
      ('ffn', ('mlp', 'swiglu')), ('packing', ('auto', 'tuple', 'stream')),
      ('attention', ('auto', *attention.IMPLEMENTATIONS))):
    value = getattr(model, key)
    problems.check(
        value in known,
        f'model.{key}={value!r} is not known: use one of {", ".join(known)}')


def _check_sizes(s: Settings, problems: Errors):
  """Every size of a crop is whole patches."""
  crops, side = s.crops, s.model.token_px
  named = 'patch_px' if isinstance(s.model, vit.ViTConfig) else 'token_px'
  sizes = {'crops.global_px': crops.global_px}
  if crops.num_local:
    sizes['crops.local_px'] = crops.local_px
  if crops.gram_px is not None:
    sizes['crops.gram_px'] = crops.gram_px
    problems.check(
        s.gram.has_backbone,
        f'crops.gram_px={crops.gram_px}, but there is no Gram teacher to see '
        'such crops: set gram.loss_weight above 0 and gram.teacher=frozen, or '
        'leave it unset')
  for i, entry in enumerate(crops.sizes):
    if not _is_size(entry):
      problems.add(
          f'crops.sizes[{i}]={entry}: give (global_px, local_px, gram_px or '
          'None, probability)')
      return
    problems.check(
        entry[2] is None or s.gram.has_backbone,
        f'crops.sizes[{i}] has crops of {entry[2]} pixels for a Gram teacher, '
        'but there is none: give None there, or set gram.loss_weight')
    names = ('global', 'local', 'gram')
    sizes |= {f'crops.sizes[{i}] {kind}': px
              for kind, px in zip(names, entry[:3], strict=True)
              if px is not None}
  total = sum(entry[3] for entry in crops.sizes)
  problems.check(
      not crops.sizes or abs(total - 1) < 1e-6,
      f'the probabilities of crops.sizes add up to {total:g}: they must to 1')
  for key, size in sizes.items():
    problems.check(
        size % side == 0,
        f'{key}={size} is not divisible by model.{named}={side}: '
        f'set it to {max(size // side, 1) * side} or '
        f'{(size // side + 1) * side}')


def _is_size(entry: tuple) -> bool:
  """Whether it is (global_px, local_px, gram_px or None, probability)."""
  if len(entry) != 4:
    return False
  *sides, probability = entry
  sides = [px for i, px in enumerate(sides) if i != 2 or px is not None]
  return all(isinstance(px, int) and px > 0 for px in sides) and isinstance(
      probability, int | float) and 0 <= probability <= 1


def _check_batch(s: Settings, problems: Errors):
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
  if t.epoch_steps is not None:
    problems.check(t.epoch_steps > 0, 'train.epoch_steps must be positive')


def _check_choices(s: Settings, problems: Errors):
  choices = [
      ('teacher.centering', s.teacher.centering, ('sinkhorn_knopp', 'softmax')),
      ('gram.teacher', s.gram.teacher, ('frozen', 'ema')),
      ('gram.tokens', s.gram.tokens, ('all', 'masked', 'unmasked')),
      ('init.part', s.init.part, ('ema', 'student', 'both')),
      ('distillation.patches', s.distillation.patches, ('masked', 'all')),
      ('masks.counts', s.masks.counts, ('exact', 'undershooting')),
      ('augment.blur', s.augment.blur,
       tuple(photometric.BLUR_PROBABILITIES)),
  ]
  for key, value, known in choices:
    problems.check(
        value in known,
        f'{key}={value!r} is not known: use one of {", ".join(known)}')
  problems.check(
      0 < s.data.max_bad_fraction <= 1,
      f'data.max_bad_fraction={s.data.max_bad_fraction} is not in (0, 1]')


def _check_losses(s: Settings, problems: Errors):
  for key, value, known in (
      ('schedules.style', s.schedules.style, ('v2', 'v3')),
      ('schedules.lr_rule', s.schedules.lr_rule,
       ('none', 'sqrt_1024', 'sqrt_1024_x4', 'linear_256'))):
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
  extra = s.schedules.trunc_extra
  problems.check(
      not extra or (s.schedules.style == 'v2' and extra > 0),
      f'schedules.trunc_extra={extra} stretches the cosines of '
      f'schedules.style=v2, and this is {s.schedules.style}: set it to 0, or '
      'give curves a cosine of their own (schedules.lr.cosine_epochs)')
  batch = round(s.train.batch_size * s.train.share)
  if s.koleo.loss_weight:
    group = s.koleo.group_images
    problems.check(
        group >= 2, f'koleo.group_images={group}: a row needs a neighbour, '
        'set it to 2 or more, or koleo.loss_weight to 0')
    problems.check(
        group < 1 or batch % group == 0,
        f'{batch} images a step (train.batch_size × train.share) are not '
        f'divisible by koleo.group_images={group}')
    problems.check(
        s.koleo.topk < group,
        f'koleo.topk={s.koleo.topk} needs more neighbours than '
        f'koleo.group_images={group} has')


def _check_gram(s: Settings, problems: Errors):
  gram = s.gram
  problems.check(
      not (gram.remove_negative and gram.remove_only_teacher_negative),
      'gram.remove_negative and gram.remove_only_teacher_negative exclude '
      'each other: set one to False')
  problems.check(
      gram.tokens == 'all' or not gram.per_image,
      f'gram.tokens={gram.tokens!r} compares tokens of several images: set '
      'gram.per_image=False, or gram.tokens=all')
  begins = gram.source or gram.start.value or s.init.source
  problems.check(
      not gram.has_backbone or bool(begins),
      'the Gram teacher has no weights to start from: set gram.source to a '
      'run or weights, gram.start_steps to the step whose EMA it is, or '
      'init.source; or gram.teacher=ema')
  problems.check(
      s.ibot.loss_weight > 0 or (
          gram.tokens == 'all' and not gram.log_masked),
      f'gram.tokens={gram.tokens} and gram.log_masked={gram.log_masked} need '
      'the masks of iBOT, but ibot.loss_weight is 0: set gram.tokens=all and '
      'gram.log_masked=False')
  problems.check(
      gram.teacher == 'frozen' or gram.source is None,
      f'gram.source={gram.source} is for a teacher of its own, but '
      'gram.teacher is ema: set gram.teacher=frozen, or leave it unset')
  problems.check(
      gram.teacher == 'frozen' or gram.refresh_every is None,
      'gram.refresh_every renews a teacher of its own, but gram.teacher is '
      'ema: leave it unset')


def _check_convnext(s: Settings, problems: Errors):
  """What would do nothing to a backbone without mask token and blocks."""
  if isinstance(s.model, vit.ViTConfig):
    return
  problems.check(
      s.distillation.is_on or not s.ibot.loss_weight,
      'a ConvNeXt has no mask token, so that iBOT has nothing to predict '
      'without a frozen teacher: set ibot.loss_weight=0, or '
      'distillation.source')
  problems.check(
      not s.distillation.hide_masked,
      'distillation.hide_masked cannot hide patches from a ConvNeXt, which '
      'has no mask token: set it to False')
  problems.check(
      s.optimizer.layerwise_decay == 1.0,
      f'optimizer.layerwise_decay={s.optimizer.layerwise_decay} does nothing '
      'to a ConvNeXt, whose layers are not told apart: set it to 1.0')


def _check_init(s: Settings, problems: Errors):
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


def _check_distillation(s: Settings, problems: Errors):
  problems.check(
      bool(s.students) or s.train.share == 1,
      f'train.share={s.train.share} is of one of several students, and here is '
      'one alone: set train.share=1, or train.batch_size')
  problems.check(
      not s.students or s.distillation.is_on,
      'students have no teacher: set distillation.source')
  if not s.distillation.is_on:
    return
  known = (*zoo.names(), *zoo.convnext_names())
  problems.check(
      s.distillation.model is None or s.distillation.model in known,
      f'distillation.model={s.distillation.model!r} is not known: use one of '
      f'{", ".join(known)}')
  problems.check(
      s.ibot.separate_head or not s.ibot.loss_weight,
      'distillation needs a head for patches: set ibot.separate_head=True')
  problems.check(
      s.teacher.centering == 'sinkhorn_knopp',
      'distillation needs teacher.centering=sinkhorn_knopp: a centre is that '
      'of a teacher that learns')
  problems.check(
      not (s.students and s.gram.loss_weight),
      'several students have no Gram teacher: set gram.loss_weight=0')
  problems.check(
      not s.gram.loss_weight or s.gram.has_backbone,
      'gram.teacher=ema anchors to the network that makes the targets, which '
      'is the frozen one here: set gram.teacher=frozen, or gram.loss_weight=0')
  hides = s.distillation.hide_masked
  problems.check(
      not (hides and s.distillation.patches == 'all'),
      'distillation.hide_masked hides all patches with '
      'distillation.patches=all: set hide_masked=False, or patches=masked')
  unused = [key for key in ('source', 'freeze_backbone', 'max_knn_drop')
            if s.students and getattr(s.init, key) != getattr(
                type(s.init)(), key) and all(
                    getattr(one.init, key) != getattr(s.init, key)
                    for one in s.students.values())]
  for key in unused:
    problems.add(f'init.{key} is of no student: set students.NAME.init.{key}')


def _check_student(s: Settings, base: Settings, problems: Errors):
  """What one of several students has of its own."""
  for name in ('dino', 'ibot'):
    own, shared = getattr(s, name), getattr(base, name)
    problems.check(
        not own.loss_weight or shared.loss_weight > 0,
        f'{name}.loss_weight={own.loss_weight}, but {name}.loss_weight of all '
        'is 0, so that the teacher makes no targets for it: set that too')
    problems.check(
        own.num_prototypes == shared.num_prototypes,
        f'{name}.num_prototypes={own.num_prototypes} is not that of the '
        f'teacher, {shared.num_prototypes}: leave it out')
  largest = base.model.token_px
  problems.check(
      s.model.token_px <= largest,
      f'model: patches of {s.model.token_px} pixels, and the crops are made '
      f'for patches of {largest}: give the config the model of the student '
      'with the largest patches')
  mine = dataclasses.replace(
      s.train, total=base.train.total, share=base.train.share)
  for field in dataclasses.fields(mine):
    own, shared = (getattr(x, field.name) for x in (mine, base.train))
    problems.check(
        own == shared,
        f'train.{field.name}={own} is {shared} for all students: leave it out')
  problems.check(
      0 < s.train.share <= 1,
      f'train.share={s.train.share} is not in (0, 1]')
  for name in ('teacher_temperature', 'gram_weight'):
    problems.check(
        getattr(s.schedules, name) == getattr(base.schedules, name),
        f'schedules.{name} is of the teacher, the same for all students: set '
        'it outside of students')
