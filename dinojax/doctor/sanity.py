"""Checks for configs that would run, but could not learn well.

`settings.read` refuses what cannot run at all. Here each check is a function
of settings and numbers, and each threshold has its source beside it.
"""

from collections.abc import Callable
import dataclasses
import math
import warnings

from dinojax.core import errors
from dinojax.doctor import findings
from dinojax.engine import schedules
from dinojax.train import method as method_lib
from dinojax.train import sections
from dinojax.train import settings as settings_lib

Settings = settings_lib.Settings
Findings = list[findings.Finding]

# DINOv2's ViT-g was trained with KoLeo over 12 images, all others with more.
_LEAST_KOLEO, _USUAL_KOLEO = 8, 64
# Few samples cannot balance many prototypes: configs/common.py takes at most
# 4 a sample up to this batch. The published runs, of 2048 images and more,
# have 32 to 64.
_SMALL_BATCH = 512
# DINOv2 and DINOv3 on ImageNet-1k: 4e-3 and 1e-3, after their rules.
_HIGHEST_LR = 5.66e-3


@dataclasses.dataclass(frozen=True)
class Scale:
  """Devices and images that a config meets.

  Attributes:
    num_devices: devices of all processes.
    num_images: images to train on; None: unknown.
  """

  num_devices: int
  num_images: int | None

  def epoch_steps(self, s: Settings) -> int:
    """Steps of an epoch, as training counts them."""
    return s.train.epoch_steps or max(
        (self.num_images or 0) // s.train.batch_size, 1)

  def steps(self, s: Settings, length: sections.Duration) -> int:
    """A length in steps."""
    return length.steps(batch_size=s.train.batch_size,
                        epoch_steps=self.epoch_steps(s))

  def total_steps(self, s: Settings) -> int:
    """Steps of the whole training."""
    return method_lib.total_steps(s, self.epoch_steps(s))


def findings_of(s: Settings, scale: Scale) -> Findings:
  """Every check of this file."""
  timed: tuple[Callable[[Settings, Scale], Findings], ...] = (
      length, warmups, learning_rate, teacher, gram)
  rest = groups, koleo, prototypes
  if s.train.epoch_steps or scale.num_images:
    return [finding for check in (*timed, *rest) for finding in check(s, scale)]
  return [findings.skip('length', 'epochs are counted in images, and the data '
                        'cannot be opened')] + [
      finding for check in rest for finding in check(s, scale)]


def length(s: Settings, scale: Scale) -> Findings:
  """Is there anything to train, and is it saved on the way?"""
  total, save = scale.total_steps(s), scale.steps(s, s.checkpoint.every)
  text = f'{total} steps of {s.train.batch_size} images'
  if total < 1:
    return [findings.error('length', text, 'set train.total_steps')]
  length_findings = [findings.ok('length', text)]
  if save > total:
    length_findings.append(findings.warn(
        'checkpoints', f'one every {save} steps, of {total}: a run that is '
        'killed starts again from nothing',
        f'set checkpoint.every_steps to {max(total // 4, 1)} or so'))
  return length_findings


def warmups(s: Settings, scale: Scale) -> Findings:
  """Does every warm-up end before training does?"""
  total, problems = scale.total_steps(s), []
  for name in ('lr', 'weight_decay', 'momentum', 'teacher_temperature'):
    curve = getattr(s.schedules, name)
    steps = scale.steps(s, curve.warmup)
    if steps >= total and curve.start != curve.peak:
      problems.append(findings.warn(
          f'{name} warm-up', f'{steps} steps of {total}: '
          f'schedules.{name}.peak={curve.peak:g} is never reached',
          f'set schedules.{name}.warmup_steps to {total // 10} or so'))
  frozen = scale.steps(s, s.schedules.freeze_last_layer)
  if frozen >= total:
    problems.append(findings.warn(
        'frozen prototypes', f'for {frozen} steps, of {total}: they never '
        'learn', 'shorten schedules.freeze_last_layer_steps'))
  return problems or [findings.ok('warm-ups', 'end before training does')]


def learning_rate(s: Settings, scale: Scale) -> Findings:
  """Is the rate, after the batch rule, one that ever worked?"""
  peak = method_lib.peak_lr(s, scale.epoch_steps(s))
  plan = s.schedules
  text = (f'{peak:.3g} at its highest (schedules.lr.peak={plan.lr.peak:g} by '
          f'rule {plan.lr_rule})')
  if peak <= 0:
    return [findings.error('learning rate', f'{text}: nothing is learned',
                           'set schedules.lr.peak')]
  if peak > 1.1 * _HIGHEST_LR:
    scale = schedules.scale_lr(1.0, s.train.batch_size, plan.lr_rule)
    return [findings.warn(
        'learning rate', f'{text}: above {_HIGHEST_LR:g}, the highest '
        'published', f'set schedules.lr.peak to {_HIGHEST_LR / scale:.2g} '
        'or less')]
  return [findings.ok('learning rate', text)]


def teacher(s: Settings, scale: Scale) -> Findings:
  """Does the teacher move, and is it surer than the student?"""
  teacher_findings, total = [], scale.total_steps(s)
  momentum = s.schedules.momentum.peak
  memory = 1 / max(1 - momentum, 1e-9)
  text = f'momentum {momentum:g}: an average of about {memory:.0f} steps'
  if 2 * memory > total:
    teacher_findings.append(findings.warn(
        'teacher', f'{text}, of {total}: it hardly leaves its start',
        'train longer, or set schedules.momentum.peak to '
        f'{max(1 - 10 / max(total, 1), 0.5):.2g} or so'))
  else:
    teacher_findings.append(findings.ok('teacher', text))
  warm = s.schedules.teacher_temperature
  hottest = max(warm.start, warm.peak, warm.end)
  for name in ('dino', 'ibot'):
    head = getattr(s, name)
    if head.loss_weight and hottest >= head.student_temperature:
      teacher_findings.append(findings.warn(
          'temperatures', f"the teacher's reaches {hottest:g}, "
          f'{name}.student_temperature is {head.student_temperature:g}: '
          'targets vaguer than predictions teach nothing',
          'keep schedules.teacher_temperature at 0.07 or less'))
  return teacher_findings


def groups(s: Settings, scale: Scale) -> Findings:
  """Do batch and groups divide among the devices; what drop path keeps."""
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    try:
      settings_lib.check_devices(s, scale.num_devices)
    except errors.UserError as wrong:
      return [findings.error('batch on devices', str(wrong))]
  rounded = [findings.warn('drop path', *_halves(str(w.message)))
             for w in caught]
  rows = s.train.batch_size // scale.num_devices // s.train.num_micro_batches
  return [findings.ok(
      'batch on devices', f'{rows} images at a time on each of '
      f'{scale.num_devices}, in groups of {s.train.group_images}'), *rounded]


def _halves(message: str) -> tuple[str, str]:
  """Splits a warning into what is wrong and what to do."""
  text, _, fix = message.partition(': ')
  return text, fix


def koleo(s: Settings, scale: Scale) -> Findings:
  """Are there enough neighbours to be pushed away from?"""
  if not s.koleo.loss_weight:
    return []
  group, micro = s.koleo.group_images, s.train.num_micro_batches
  text = f'groups of {group} images'
  if group >= _LEAST_KOLEO:
    return [findings.ok('KoLeo', text)]
  # With micro-batches a group cannot span devices.
  rows = s.train.batch_size // (scale.num_devices * micro if micro > 1 else 1)
  better = math.gcd(max(rows, 1), _USUAL_KOLEO)
  return [findings.warn(
      'KoLeo', f'{text}: a feature keeps away from the nearest of only '
      f'{group - 1}', f'set koleo.group_images to {better}'
      if better >= _LEAST_KOLEO else
      f'set train.batch_size to a multiple of {2 * _LEAST_KOLEO}, and '
      'koleo.group_images to that')]


def prototypes(s: Settings, scale: Scale) -> Findings:
  """Can the images of a step be spread over the prototypes?"""
  del scale
  batch, prototype_findings = s.train.batch_size, []
  most = max(1024, 4 * batch) if batch <= _SMALL_BATCH else 64 * batch
  heads = ('dino', 'ibot') if s.ibot.separate_head else ('dino',)
  for name in heads:
    head = getattr(s, name)
    if not head.loss_weight:
      continue
    text = f'{head.num_prototypes} for {batch} images a step'
    if (s.teacher.centering == 'sinkhorn_knopp'
        and head.num_prototypes > most):
      prototype_findings.append(findings.warn(
          f'{name} prototypes', f'{text}: too many to be used alike, which '
          'is what Sinkhorn asks for',
          f'set {name}.num_prototypes to {most} or less, or '
          'teacher.centering to softmax'))
    else:
      prototype_findings.append(findings.ok(
          f'{name} prototypes', f'{text}; the first loss is '
          f'{math.log(head.num_prototypes):.2f}'
          + (', of masked patches half of it' if name == 'ibot' else '')))
  return prototype_findings


def gram(s: Settings, scale: Scale) -> Findings:
  """Does anchoring begin, and is its teacher renewed, before the end?"""
  if not s.gram.loss_weight:
    return []
  total, problems = scale.total_steps(s), []
  whole = s.gram.start, s.gram.refresh_start
  names = ['gram.start', 'gram.refresh_start']
  for name, length in zip(names, whole, strict=True):
    steps = scale.steps(s, length)
    if steps >= total and length.value:
      problems.append(findings.warn(
          'Gram teacher', f'{name} is step {steps}, of {total}: it never '
          'comes', f'set {name}_steps to less'))
  if s.gram.has_backbone and s.gram_px < s.crops.global_px:
    problems.append(findings.warn(
        'Gram teacher', f'crops.gram_px={s.gram_px} is less than '
        f'crops.global_px={s.crops.global_px}: it would anchor to coarser '
        'features', f'set crops.gram_px to {2 * s.crops.global_px} or so'))
  return problems or [findings.ok(
      'Gram teacher', 'the EMA' if not s.gram.has_backbone else
      f'{s.gram.source or "the EMA of its first step"}, from step '
      f'{scale.steps(s, s.gram.start)}')]
