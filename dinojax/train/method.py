"""Methods: the networks, schedules and loss terms that a step runs.

Pretraining of either generation is a value of `Method`; later stages add
entries to its targets and terms, never another step.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import jax
import numpy as np

from dinojax.augment import photometric
from dinojax.core import errors
from dinojax.engine import optimizer
from dinojax.engine import schedules
from dinojax.models import families
from dinojax.models import network
from dinojax.models import randomness
from dinojax.parallel import mesh as mesh_lib
from dinojax.train import frozen_teacher as frozen_teacher_lib
from dinojax.train import multipliers
from dinojax.train import sections
from dinojax.train import settings as settings_lib

_MOST_STEPS = 2**31 - 2  # the step is an int32



@dataclasses.dataclass(frozen=True)
class Method:
  """The fixed parts of a training step.

  Attributes:
    settings: the checked config, platform choices resolved.
    student: network with stochastic depth and RoPE augmentation; None: there
      are several.
    teacher: network that makes the targets: the student's without these, or a
      frozen one.
    schedules: named functions of the step.
    optimizer: how gradients move the student's parameters; None: there are
      several.
    factors: factors of every parameter's rates; None: there are several.
    has_frozen_teacher: True if the teacher is given and stays as it is; then
      the student's EMA is kept beside it.
    gram: the backbone of the Gram teacher, if it has one of its own.
    gram_start: the first step with Gram anchoring.
    gram_refresh: when the Gram teacher is renewed; None: never.
    students: methods by name, when several learn from one frozen teacher.
  """

  settings: settings_lib.Settings
  student: network.Functional | None
  teacher: network.Functional
  schedules: dict[str, Any]
  optimizer: optimizer.Optimizer | None
  factors: multipliers.Factors | None
  has_frozen_teacher: bool = False
  gram: network.Functional | None = None
  gram_start: int = 0
  gram_refresh: 'Refresh | None' = None
  students: Mapping[str, 'Method'] = dataclasses.field(default_factory=dict)

  @property
  def each(self) -> Mapping[str, 'Method']:
    """The students by name; one alone is sections.ALONE."""
    return self.students or {sections.ALONE: self}

  def draw(self, key: jax.Array, num_groups: int) -> randomness.Draws:
    """Kept rows and RoPE factors that the student draws in one step."""
    s = self.settings
    group = s.train.group_images
    rows = {'global': group * s.crops.num_global}
    if s.crops.num_local:
      rows['local'] = group * s.crops.num_local
    return randomness.draw(key, s.model, num_groups=num_groups, rows=rows)


@dataclasses.dataclass(frozen=True)
class Same:
  """A method that is equal to itself alone: for what is kept beside it."""

  method: Method

  def __hash__(self):
    return id(self.method)

  def __eq__(self, other):
    return isinstance(other, Same) and self.method is other.method


@dataclasses.dataclass(frozen=True)
class Refresh:
  """After every `every` steps from `start` on, at most `limit` times."""

  start: int
  every: int
  limit: int | None


def prepare(settings: settings_lib.Settings, batch: dict,
            step: jax.Array) -> dict:
  """A batch of uint8 crops with photometric augmentation, normalised.

  The Gram teacher's crops are only normalised.
  """
  key = jax.random.fold_in(jax.random.key(settings.seed), 1)
  dtype = settings.model.compute_dtype
  out = dict(batch)
  for kind in ('global', 'local'):
    if kind in batch:
      out[kind] = photometric.augment(
          batch[kind], key, step, batch['row'], kind=kind,
          spec=settings.augment, dtype=dtype)
  if 'gram' in batch:
    spec = settings.augment
    out['gram'] = photometric.normalize(
        batch['gram'], spec.mean, spec.std, dtype)
  return out


def build(settings: settings_lib.Settings, mesh: jax.sharding.Mesh,
          epoch_steps: int,
          frozen_teacher: network.NetworkConfig | None = None) -> Method:
  """Resolves platform choices and builds networks, schedules, optimizer.

  Args:
    settings: from `settings.read`.
    mesh: decides 'auto' values by its platform.
    epoch_steps: steps of one epoch, for durations given in epochs.
    frozen_teacher: network that is distilled; None: that of
      distillation.model, or else the EMA of the student teaches.

  Raises:
    UserError: teacher and student do not fit each other.
  """
  platform = mesh_lib.platform(mesh)
  settings = resolve(settings, platform)
  frozen_teacher = frozen_teacher or frozen_teacher_lib.from_settings(settings)
  make = lambda config: network.functional(network.Network, config, mesh)
  teacher = None
  if frozen_teacher:
    frozen_teacher = frozen_teacher_lib.fitted(frozen_teacher, settings)
    teacher = make(dataclasses.replace(
        frozen_teacher,
        backbone=frozen_teacher.backbone.inference().for_platform(platform)))
  if settings.students:
    students = {
        name: _of_student(student, mesh, epoch_steps, make, teacher,
                   crops_token_px=settings.model.token_px)
        for name, student in settings.students.items()}
    return Method(
        settings=settings, student=None, teacher=teacher,
        has_frozen_teacher=True, optimizer=None, factors=None,
        students=students,
        schedules=make_schedules(settings, epoch_steps))
  return _of_student(settings, mesh, epoch_steps, make, teacher)


def _of_student(settings: settings_lib.Settings, mesh: jax.sharding.Mesh,
         epoch_steps: int, make: Callable, frozen: network.Functional | None,
         crops_token_px: int | None = None) -> Method:
  """The method of one student."""
  settings = resolve(settings, mesh_lib.platform(mesh))
  config = dataclasses.replace(
      network_config(settings), crops_token_px=crops_token_px)
  quiet = config.backbone.inference()
  student = make(config)
  gram = None
  if settings.gram.has_backbone:
    gram = network.functional(families.make, quiet, mesh)
  return Method(
      settings=settings, student=student,
      teacher=frozen or make(dataclasses.replace(config, backbone=quiet)),
      has_frozen_teacher=frozen is not None,
      gram=gram, gram_start=_steps(settings, settings.gram.start, epoch_steps),
      gram_refresh=_refresh(settings, epoch_steps),
      schedules=make_schedules(settings, epoch_steps),
      optimizer=make_optimizer(settings),
      factors=make_factors(settings, student.shapes))


def _refresh(s: settings_lib.Settings, epoch_steps: int) -> Refresh | None:
  every = s.gram.refresh_every
  if not s.gram.has_backbone or every is None or not every.value:
    return None
  start = _steps(s, s.gram.refresh_start, epoch_steps)
  return Refresh(
      start, max(_steps(s, every, epoch_steps), 1), s.gram.max_refreshes)


def _steps(s: settings_lib.Settings, length: sections.Duration,
           epoch_steps: int) -> int:
  return length.steps(
      batch_size=s.train.batch_size, epoch_steps=epoch_steps)


def resolve(settings: settings_lib.Settings,
            platform: str) -> settings_lib.Settings:
  """Replaces 'auto' by what suits 'cpu', 'gpu' or 'tpu'."""
  return dataclasses.replace(
      settings, model=settings.model.for_platform(platform))


def student_network(s: settings_lib.Settings,
                    mesh: jax.sharding.Mesh) -> network.Functional:
  """The student's network alone, as it runs on a mesh."""
  config = network_config(resolve(s, mesh_lib.platform(mesh)))
  return network.functional(network.Network, config, mesh)


def network_config(s: settings_lib.Settings) -> network.NetworkConfig:
  """The student's network; a head without a loss is left out."""
  return network.NetworkConfig(
      backbone=s.model,
      dino_head=s.dino.head if s.dino.loss_weight else None,
      ibot_head=s.ibot.head if s.ibot.loss_weight else None,
      shared_head=not s.ibot.separate_head)


def make_optimizer(s: settings_lib.Settings) -> optimizer.Optimizer:
  """AdamW with the constants of a config."""
  o = s.optimizer
  return optimizer.adamw(beta1=o.beta1, beta2=o.beta2, epsilon=o.epsilon)


def make_factors(s: settings_lib.Settings, shapes) -> multipliers.Factors:
  """Factors of the rates of every parameter of `shapes`."""
  return multipliers.multipliers(
      shapes, depth=s.model.depth,
      layerwise_decay=s.optimizer.layerwise_decay,
      patch_embed_lr_mult=s.optimizer.patch_embed_lr_factor)


def total_steps(s: settings_lib.Settings, epoch_steps: int) -> int:
  """Length of training in steps.

  Raises:
    UserError: more than a counter of 32 bits holds.
  """
  total = _steps(s, s.train.total, epoch_steps)
  if total > _MOST_STEPS:
    length = s.train.total
    raise errors.UserError(
        f'train.total_{length.unit}={length.value:g} is {total:.3g} steps, and '
        f'a run has at most {_MOST_STEPS}: set train.total_{length.unit} lower')
  return total


def peak_lr(s: settings_lib.Settings, epoch_steps: int) -> float:
  """The largest learning rate, after the batch-size rule.

  Looked for at 100,000 steps at most, between which a schedule of more steps
  moves by less than 1e-4 of its peak.
  """
  total = total_steps(s, epoch_steps)
  steps = np.linspace(0, total, min(total, 100_000) + 1).astype(np.int64)
  return float(np.max(make_schedules(s, epoch_steps)['lr'](steps)))


def make_schedules(s: settings_lib.Settings, epoch_steps: int) -> dict:
  """Named functions of the step."""
  total = total_steps(s, epoch_steps)
  steps = lambda length: _steps(s, length, epoch_steps)

  def curve(c: sections.Curve, factor=1.0, end_factor=1.0):
    peak, end = c.peak * factor, c.end * end_factor
    if s.schedules.style == 'v2':
      return schedules.cosine(
          peak, end, total_steps=total, warmup_steps=steps(c.warmup),
          start_warmup=c.start, trunc_extra=s.schedules.trunc_extra)
    return schedules.linear_warmup_cosine_decay(
        c.start, peak, end, warmup_steps=steps(c.warmup), total_steps=total,
        cosine_steps=None if c.cosine is None else steps(c.cosine))

  plan = s.schedules
  scale = schedules.scale_lr(
      1.0, s.train.batch_size * s.train.share, plan.lr_rule)
  # The published schedules: v2 leaves the final rate unscaled, v3 scales it.
  lr = curve(plan.lr, scale, scale if plan.style == 'v3' else 1.0)
  frozen = steps(s.init.freeze_backbone)
  waits = {'backbone_trains': schedules.frozen_until(
      curve(sections.Curve(1.0, 1.0, 1.0)), frozen)} if frozen else {}
  return waits | {
      'lr': lr,
      'last_layer_lr': schedules.frozen_until(
          lr, steps(plan.freeze_last_layer)),
      'weight_decay': curve(plan.weight_decay),
      'momentum': curve(plan.momentum),
      'teacher_temperature': curve(plan.teacher_temperature),
      'dino_local_weight': curve(plan.dino_local_weight),
      'gram_weight': curve(plan.gram_weight),
  }
