"""Functions of the step: Python and numpy in float64, traced in float32.

A schedule is a frozen dataclass, so it is hashable, printable and static
under jit; `schedule(step)` takes an int, an array or a traced step.

Cosines are squared sines, measured from the smaller of their two ends: with
½(1 + cos) in float32 a value that falls from 1 to 1e-6 ends 5 % off.
"""

from collections.abc import Iterable
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

LR_RULES = ('none', 'sqrt_1024', 'sqrt_1024_x4', 'linear_256')


def _number(step):
  """The step as float32 (traced) or float64, and its library."""
  if isinstance(step, jax.Array):
    return jnp.asarray(step, jnp.float32), jnp
  return np.asarray(step, np.float64), np


def _ease(xp, start: float, end: float, index, length: int, cut: int = 0):
  """Half a cosine from `start` at index 0 to `end` at index `length`.

  With `cut`, half a cosine of length + cut, without its last `cut` steps and
  stretched to reach `end` all the same.
  """
  half = math.pi / 2 / (length + cut)
  whole = math.sin(half * length) ** 2
  if abs(start) < abs(end):
    return start + (end - start) * xp.sin(half * index) ** 2 / whole
  left = length - index
  # sin²(a) − sin²(b) = sin(a − b) sin(a + b)
  fall = xp.sin(half * left) * xp.sin(half * (left + 2 * cut))
  return end + (start - end) * fall / whole


@dataclasses.dataclass(frozen=True)
class Constant:
  """The same value for ever."""

  value: float

  def __call__(self, step):
    """The value at a step (int, array or traced)."""
    step, xp = _number(step)
    return xp.full_like(step, self.value)


def constant(value: float) -> Constant:
  """A schedule that does not change."""
  return Constant(float(value))


@dataclasses.dataclass(frozen=True)
class Cosine:
  """0 while frozen, linear warm-up, cosine, then the final value.

  The warm-up reaches the base value at its last step and the cosine starts
  with it once more; the final value comes only after the last step, unless
  `trunc_extra` stretches the cosine and cuts it there.
  """

  base: float
  final: float
  total_steps: int
  warmup_steps: int = 0
  start_warmup: float = 0.0
  freeze_steps: int = 0
  trunc_extra: float = 0.0

  def __call__(self, step):
    """The value at a step (int, array or traced)."""
    step, xp = _number(step)
    index = step - self.freeze_steps
    slope = (self.base - self.start_warmup) / max(self.warmup_steps - 1, 1)
    warm = self.start_warmup + slope * index
    value = self._fall(xp, index - self.warmup_steps)
    value = xp.where(index < self.warmup_steps, warm, value)
    value = xp.where(step >= self.total_steps, self.final, value)
    return xp.where(step < self.freeze_steps, 0.0, value)

  def _fall(self, xp, index):
    """From base at index 0 towards final."""
    length = self.total_steps - self.warmup_steps - self.freeze_steps
    if not self.trunc_extra or length < 2:
      return _ease(xp, self.base, self.final, index, max(length, 1))
    cut = int((1 + self.trunc_extra) * length) - length
    return _ease(xp, self.base, self.final, index, length - 1, cut)


def cosine(base: float, final: float, *, total_steps: int,
           warmup_steps: int = 0, start_warmup: float = 0.0,
           freeze_steps: int = 0, trunc_extra: float = 0.0) -> Cosine:
  """DINOv2's CosineScheduler, and DINOv3's without a `schedules` section."""
  return Cosine(base, final, total_steps, warmup_steps, start_warmup,
                freeze_steps, trunc_extra)


@dataclasses.dataclass(frozen=True)
class WarmupCosine:
  """Linear from start to peak, cosine to end, then end.

  The warm-up stops one step short of the peak; the cosine has both ends.
  """

  start: float
  peak: float
  end: float
  warmup_steps: int
  cosine_steps: int

  def __call__(self, step):
    """The value at a step (int, array or traced)."""
    step, xp = _number(step)
    slope = (self.peak - self.start) / max(self.warmup_steps, 1)
    warm = self.start + slope * step
    index = step - self.warmup_steps
    value = _ease(
        xp, self.peak, self.end, index, max(self.cosine_steps - 1, 1))
    value = xp.where(index >= self.cosine_steps, self.end, value)
    return xp.where(step < self.warmup_steps, warm, value)


def linear_warmup_cosine_decay(
    start: float, peak: float, end: float, *, warmup_steps: int,
    total_steps: int, cosine_steps: int | None = None) -> WarmupCosine:
  """DINOv3's schedule; the cosine takes the rest unless its steps are given.

  Differs: `end` for ever after the last step, where DINOv3 raises.
  """
  if cosine_steps is None:
    cosine_steps = max(total_steps - warmup_steps, 0)
  return WarmupCosine(start, peak, end, warmup_steps, cosine_steps)


@dataclasses.dataclass(frozen=True)
class OneCycle:
  """Half a cosine from start to peak, another to end at the last step.

  Source: torch.optim.lr_scheduler.OneCycleLR, whose two phases end at whole
    steps less one; beyond the last step it turns back, as this does.
  """

  start: float
  peak: float
  end: float
  total_steps: int
  rise: float = 0.3  # part of the steps that leads to the peak

  def __call__(self, step):
    """The value at a step (int, array or traced)."""
    step, xp = _number(step)
    top = self.rise * self.total_steps - 1
    last = self.total_steps - 1
    half = lambda part: xp.sin(math.pi / 2 * part) ** 2
    up = self.start + (self.peak - self.start) * half(step / max(top, 1e-9))
    down = self.peak + (self.end - self.peak) * half(
        (step - top) / max(last - top, 1e-9))
    return xp.where(step <= top, up, down)


@dataclasses.dataclass(frozen=True)
class WarmupOneCycle:
  """Rise from a ratio of a falling line, then half a cosine from 1 to 0.

  Source: DINOv3's schedule of segmentation heads, whose clock does not move
    after the first step. It is not continuous where the warm-up ends.
  """

  total_steps: int
  warmup_steps: int
  ratio: float = 1e-6

  def __call__(self, step):
    """The factor at a step (int, array or traced)."""
    step, xp = _number(step)
    tick = xp.maximum(step - 1, 0)
    warm = (1 - (1 - tick / max(self.warmup_steps, 1)) * (1 - self.ratio)) * (
        1 - tick / self.total_steps)
    fall = xp.sin(math.pi / 2 * (
        1 - (tick + 1) / self.total_steps)) ** 2
    return xp.where(tick < self.warmup_steps, warm, fall)


@dataclasses.dataclass(frozen=True)
class DepthOneCycle:
  """Rise under a falling cosine, then that cosine from 1 to nearly 0.

  Source: DINOv3's schedule of depth heads. Its cosine falls from the first
    step, so that the peak is never reached, and is one step ahead after the
    warm-up.
  """

  total_steps: int
  warmup_steps: int
  ratio: float = 1e-3  # of the peak, where the rise begins
  final: float = 1 / 25e3  # of the peak, at the end

  def __call__(self, step):
    """The factor at a step (int, array or traced)."""
    step, xp = _number(step)
    left = lambda at: xp.sin(math.pi / 2 * (1 - at / self.total_steps)) ** 2
    warm = self.ratio + left(step) * step / max(self.warmup_steps, 1)
    fall = self.final + (1 - self.final) * left(step + 1)
    return xp.where(step < self.warmup_steps, warm, fall)


@dataclasses.dataclass(frozen=True)
class DepthMomentum:
  """0 in the warm-up, then half a cosine from low to high.

  Source: DINOv3's schedule of depth heads, which overwrites Adam's beta1.
  """

  total_steps: int
  warmup_steps: int
  low: float = 0.85
  high: float = 0.95

  def __call__(self, step):
    """The value at a step (int, array or traced)."""
    step, xp = _number(step)
    part = (step - self.warmup_steps) / max(
        self.total_steps - self.warmup_steps, 1)
    rise = self.low + (self.high - self.low) * xp.sin(
        math.pi / 2 * part) ** 2
    return xp.where(step < self.warmup_steps, 0.0, rise)


@dataclasses.dataclass(frozen=True)
class WarmupDecay:
  """Rise from a ratio to 1, multiplied with a fall from 1 at step 0.

  Source: mmcv's 'poly' of power 1 and 'CosineAnnealing' with their linear
    warm-up, as DINOv2 trains its dense heads.
  """

  total_steps: int
  warmup_steps: int
  ratio: float
  shape: str = 'linear'  # of the fall; or 'cosine'
  final: float = 0.0

  def __call__(self, step):
    """The factor at a step (int, array or traced)."""
    step, xp = _number(step)
    part = step / self.total_steps
    left = 1 - part if self.shape == 'linear' else (
        xp.sin(math.pi / 2 * (1 - part)) ** 2)
    fall = self.final + (1 - self.final) * left
    rise = 1 - (1 - step / max(self.warmup_steps, 1)) * (1 - self.ratio)
    return fall * xp.where(step < self.warmup_steps, rise, 1.0)


@dataclasses.dataclass(frozen=True)
class RiseFall:
  """Zero while others learn, a rise to 1, and a fall from its end on.

  Attributes:
    total_steps: steps of the run.
    rise_steps: length of the rise.
    wait_steps: steps before it.
    power: exponent of the fall to 0; None: half a cosine to `final`.
    final: value at the end of the cosine.

  Source: the two-stage warm-up of EoMT, and that of PMT.
  """

  total_steps: int
  rise_steps: int
  wait_steps: int = 0
  power: float | None = 0.9
  final: float = 0.0

  def __call__(self, step):
    """The factor at a step (int, array or traced)."""
    step, xp = _number(step)
    begun = self.wait_steps + self.rise_steps
    rise = xp.clip((step - self.wait_steps) / max(self.rise_steps, 1), 0, 1)
    left = xp.clip((self.total_steps - step) / max(
        self.total_steps - begun, 1), 0, 1)
    if self.power is None:
      fall = self.final + (1 - self.final) * xp.sin(math.pi / 2 * left) ** 2
    else:
      fall = left ** self.power
    return xp.where(step < begun, rise, fall)


@dataclasses.dataclass(frozen=True)
class Stepped:
  """A linear rise to 1, and a fall to a part of it at one step.

  Attributes:
    rise_steps: length of the rise.
    drop_step: first step of the lower value.
    factor: lower value.

  Source: training of DETR and of those after it.
  """

  rise_steps: int
  drop_step: int
  factor: float = 0.1

  def __call__(self, step):
    """The factor at a step (int, array or traced)."""
    step, xp = _number(step)
    rise = xp.clip(step / max(self.rise_steps, 1), 0, 1)
    rise = xp.where(step < self.rise_steps, rise, 1.0)
    return xp.where(step < self.drop_step, rise, rise * self.factor)


@dataclasses.dataclass(frozen=True)
class Annealed:
  """From 1 before a step to 0 from another one on.

  Source: the probabilities of masked attention in EoMT.
  """

  start: int
  end: int
  power: float = 0.9

  def __call__(self, step):
    """The value at a step (int, array or traced)."""
    step, xp = _number(step)
    left = (self.end - step) / max(self.end - self.start, 1)
    return xp.clip(left, 0, 1) ** self.power


@dataclasses.dataclass(frozen=True)
class Table:
  """Given values, one a step; the last one for ever."""

  values: tuple[float, ...]

  def __call__(self, step):
    """The value at a step (int, array or traced)."""
    xp = jnp if isinstance(step, jax.Array) else np
    values = xp.asarray(self.values, jnp.float32 if xp is jnp else float)
    return values[xp.clip(step, 0, len(self.values) - 1)]


def table(values: Iterable[float]) -> Table:
  """A schedule of explicit values.

  Raises:
    ValueError: there are none.
  """
  values = tuple(float(v) for v in values)
  if not values:
    raise ValueError('a table schedule needs at least one value: got none')
  return Table(values)


@dataclasses.dataclass(frozen=True)
class FrozenUntil:
  """0 before a step, another schedule from then on."""

  schedule: object
  first_step: int

  def __call__(self, step):
    """The value at a step (int, array or traced)."""
    number, xp = _number(step)
    return xp.where(number < self.first_step, 0.0, self.schedule(step))


def frozen_until(schedule, first_step: int) -> FrozenUntil:
  """`schedule`, but 0 for the first `first_step` steps: the last layer's."""
  return FrozenUntil(schedule, first_step)


def scale_lr(lr: float, batch_size: int, rule: str) -> float:
  """The learning rate for a batch size.

  Args:
    lr: learning rate of the config.
    batch_size: global images per step.
    rule: 'sqrt_1024' (DINOv2's sqrt_wrt_1024), 'sqrt_1024_x4' (DINOv3's:
      four times that), 'linear_256' or 'none'.

  Raises:
    ValueError: another rule.
  """
  root = math.sqrt(batch_size / 1024)
  factors = dict(zip(
      LR_RULES, (1.0, root, 4 * root, batch_size / 256), strict=True))
  if rule not in factors:
    raise ValueError(
        f'learning-rate rule {rule!r} is not known: use one of '
        f'{", ".join(LR_RULES)}')
  return lr * factors[rule]
