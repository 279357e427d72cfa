"""Checks of a whole config: every mistake with its key, value and fix."""

import dataclasses
import re

from dinojax.core import config as config_lib
from dinojax.models import layers
from dinojax.models import zoo
from dinojax.train import sections

Errors = config_lib.Errors
Settings = sections.Settings


def check(s: Settings, problems: Errors):
  """Notes every mistake of the settings and of each student's."""
  _check_sizes(s, problems)
  _check_batch(s, problems)
  _check_ranges(s, problems)
  for text in s.gram.mistakes(s):
    problems.add(text)
  _check_distillation(s, problems)
  for name in s.students:
    problems.check(
        re.fullmatch(r'\w+', name) is not None,
        f'students.{name!r}: a name is letters, digits and _')
    problems.check(
        name not in (sections.ALONE, 'export'),
        f'students.{name}: a student that is alone, and the folder of weights '
        'for others, are called student and export: give it another name')
  for name, student in s.each.items():
    with problems.inside(f'students.{name}' if s.students else ''):
      _check_model(student, problems)
      _check_losses(student, problems)
      _check_init(student, problems)
      _check_family(student, problems)
      if s.students:
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
  for text in model.mistakes():
    problems.check(False, text)


def _check_sizes(s: Settings, problems: Errors):
  """Every size of a crop is whole patches."""
  crops, side = s.crops, s.model.token_px
  named = 'patch_px' if s.model.unit_px == side else 'token_px'
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


def _check_batch(s: Settings, problems: Errors):
  t = s.train
  unit = t.group_images * t.num_micro_batches
  problems.check(
      t.batch_size % unit == 0,
      f'train.batch_size={t.batch_size} is not divisible by '
      f'train.group_images × train.num_micro_batches = '
      f'{t.group_images} × {t.num_micro_batches}: set it to '
      f'{max(t.batch_size // unit, 1) * unit}')
  # Axes of length 1 lose how they are split over devices.
  problems.check(
      t.batch_size >= 2 * t.num_micro_batches,
      f'train.batch_size={t.batch_size} with train.num_micro_batches='
      f'{t.num_micro_batches} is less than two images at a time: set '
      f'train.batch_size to {2 * t.num_micro_batches} or more'
      + (', or train.num_micro_batches to less'
         if t.num_micro_batches > 1 else ''))


def _check_ranges(s: Settings, problems: Errors):
  """Pairs whose first is the smaller, and what only some numbers can be."""
  for key, (low, high) in (
      ('crops.global_scale', s.crops.global_scale),
      ('crops.local_scale', s.crops.local_scale),
      ('crops.ratio', s.crops.ratio), ('masks.ratio', s.masks.ratio),
      ('augment.blur_sigma', s.augment.blur_sigma)):
    problems.check(low <= high, f'{key}={(low, high)} has its largest first: '
                   f'set it to {(high, low)}')
  problems.check(
      s.crops.num_global >= 2,
      f'crops.num_global={s.crops.num_global}: each global crop learns from '
      'another one of its image; set it to 2')
  problems.check(
      s.augment.blur_taps % 2 == 1,
      f'augment.blur_taps={s.augment.blur_taps} has no middle: set it to '
      f'{s.augment.blur_taps + 1}')
  for name, size in (('data', s.mesh.data), ('fsdp', s.mesh.fsdp)):
    problems.check(size != 0, f'mesh.{name}=0 leaves no device: set it to -1 '
                   'for all that there are')
  problems.check(
      max(s.mesh.data, s.mesh.fsdp) > 0,
      'mesh.data and mesh.fsdp are both -1: set mesh.fsdp to 1')
  for key, specs in (('data.train', [spec for spec, _ in s.data.mixture]),
                     ('data.homogeneous', [
                         spec for spec, _ in s.data.whole_batches])):
    problems.check(
        all(specs) and (bool(specs) or key != 'data.train'),
        f'{key} names no images: set it to a source such as folder:DIR')
  for name in ('start', 'peak', 'end'):
    value = getattr(s.schedules.momentum, name)
    problems.check(value <= 1, f'schedules.momentum.{name}={value} is not in '
                   '[0, 1]')
    value = getattr(s.schedules.teacher_temperature, name)
    problems.check(value > 0, f'schedules.teacher_temperature.{name}={value} '
                   'is not above 0')
  value_range = s.data.value_range
  problems.check(
      not value_range or len(value_range) == 2
      and value_range[0] != value_range[1],
      f'data.value_range={value_range} is not (black, white): two different '
      'numbers, such as (0, 4095), or ()')
  problems.check(
      s.knn.crop_px <= s.knn.resize_px,
      f'knn.crop_px={s.knn.crop_px} is larger than knn.resize_px='
      f'{s.knn.resize_px}: set knn.resize_px to {s.knn.crop_px} or more')
  odds = sum(probability for _, probability in s.data.whole_batches)
  problems.check(
      odds <= 1, f'the probabilities of data.homogeneous add up to {odds:g}: '
      'they must to 1 or less')


def _check_losses(s: Settings, problems: Errors):
  """Checks the terms of a student's loss, and that one of them suffices."""
  terms = [getattr(s, name) for name in s.terms() if name in s.own_sections()]
  enough = [f'{x.NAME}.loss_weight' for x in terms if x.SUFFICES]
  problems.check(
      any(x.is_on and x.SUFFICES for x in terms),
      f'{" and ".join(enough)} are {"both" if len(enough) == 2 else "all"} 0: '
      'nothing to learn')
  for term in terms:
    for text in term.mistakes(s):
      problems.add(text)
  extra = s.schedules.trunc_extra
  problems.check(
      not extra or (s.schedules.style == 'v2' and extra > 0),
      f'schedules.trunc_extra={extra} stretches the cosines of '
      f'schedules.style=v2, and this is {s.schedules.style}: set it to 0, or '
      'give curves a cosine of their own (schedules.lr.cosine_epochs)')


def _check_family(s: Settings, problems: Errors):
  """Refuses options that do nothing to this family of backbones."""
  problems.check(
      s.model.hides_patches or s.distillation.is_on or not s.ibot.loss_weight,
      'a ConvNeXt has no mask token, so that iBOT has nothing to predict '
      'without a frozen teacher: set ibot.loss_weight=0, or '
      'distillation.source')
  problems.check(
      s.model.hides_patches or not s.distillation.hide_masked,
      'distillation.hide_masked cannot hide patches from a ConvNeXt, which '
      'has no mask token: set it to False')
  problems.check(
      s.model.slows_layers or s.optimizer.layerwise_decay == 1.0,
      f'optimizer.layerwise_decay={s.optimizer.layerwise_decay} does nothing '
      'to a ConvNeXt, whose layers are not told apart: set it to 1.0')


def _check_init(s: Settings, problems: Errors):
  init, has_knn = s.init, bool(s.knn.validation or s.data.validation)
  frozen = init.freeze_backbone
  for key, value in ((f'freeze_backbone_{frozen.unit}', frozen.value),
                     ('max_knn_drop', init.max_knn_drop)):
    problems.check(
        init.source is not None or not value,
        f'init.{key}={value} guards weights that were given, but init.source '
        'is not set: set it, or leave this out')
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
  known = zoo.published()
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
                    getattr(student.init, key) != getattr(s.init, key)
                    for student in s.students.values())]
  for key in unused:
    problems.add(f'init.{key} is of no student: set students.NAME.init.{key}')


def _check_student(s: Settings, base: Settings, problems: Errors):
  """Checks the sections that one of several students has of its own."""
  for name in ('dino', 'ibot'):
    value, shared = getattr(s, name), getattr(base, name)
    problems.check(
        not value.loss_weight or shared.loss_weight > 0,
        f'{name}.loss_weight={value.loss_weight}, but {name}.loss_weight of '
        'all is 0, so that the teacher makes no targets for it: set that too')
    problems.check(
        value.num_prototypes == shared.num_prototypes,
        f'{name}.num_prototypes={value.num_prototypes} is not that of the '
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
    value, shared = (getattr(x, field.name) for x in (mine, base.train))
    problems.check(
        value == shared,
        f'train.{field.name}={value} is {shared} for all students: leave it '
        'out')
  problems.check(
      0 < s.train.share <= 1,
      f'train.share={s.train.share} is not in (0, 1]')
  rows = round(base.train.batch_size * s.train.share)
  problems.check(
      rows >= 2 * base.train.num_micro_batches,
      f'train.share={s.train.share} is {rows} of the '
      f'{base.train.batch_size} images of a step, less than two at a time: '
      'set it, or train.batch_size, to more')
  for name in ('teacher_temperature', 'gram_weight'):
    problems.check(
        getattr(s.schedules, name) == getattr(base.schedules, name),
        f'schedules.{name} is of the teacher, the same for all students: set '
        'it outside of students')
