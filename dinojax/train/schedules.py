"""Functions of the step: Python and numpy in float64, traced in float32."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np


def _library(step):
  return jnp if isinstance(step, jax.Array) else np


@dataclasses.dataclass(frozen=True)
class Cosine:
  """Linear warm-up reaching the base value, cosine, then the final value."""

  base: float
  final: float
  total_steps: int
  warmup_steps: int = 0
  start_warmup: float = 0.0
  freeze_steps: int = 0
  trunc_extra: float = 0.0

  def __call__(self, step):
    """The value at a step (int, array or traced)."""
    xp = _library(step)
    index = step - self.freeze_steps
    ramp = max(self.warmup_steps - 1, 1)
    slope = (self.base - self.start_warmup) / ramp
    warm = self.start_warmup + slope * index
    if self.warmup_steps == 1:
      warm = xp.full_like(index, self.start_warmup, dtype=float)
    length = self.total_steps - self.warmup_steps - self.freeze_steps
    cosine = self.final + (self.base - self.final) * self._fall(
        xp, index - self.warmup_steps, length)
    value = xp.where(index < self.warmup_steps, warm, cosine)
    value = xp.where(step >= self.total_steps, self.final, value)
    return xp.where(step < self.freeze_steps, 0.0, value)

  def _fall(self, xp, index, length: int):
    """From 1 at index 0 towards 0."""
    if not self.trunc_extra:
      return 0.5 * (1 + xp.cos(math.pi * index / max(length, 1)))
    points = int((1 + self.trunc_extra) * length)
    at = lambda i: 0.5 * (1 + np.cos(math.pi * i / max(points - 1, 1)))
    last = at(length - 1)
    value = 0.5 * (1 + xp.cos(math.pi * index / max(points - 1, 1)))
    return (value - last) / (1 - last)


def cosine(base: float, final: float, *, total_steps: int,
           warmup_steps: int = 0, start_warmup: float = 0.0,
           freeze_steps: int = 0, trunc_extra: float = 0.0) -> Cosine:
  """DINOv2's CosineScheduler; the warm-up includes the base value."""
  return Cosine(base, final, total_steps, warmup_steps, start_warmup,
                freeze_steps, trunc_extra)


@dataclasses.dataclass(frozen=True)
class WarmupCosine:
  """Linear from start to peak, cosine to end, then end."""

  start: float
  peak: float
  end: float
  warmup_steps: int
  total_steps: int
  cosine_steps: int

  def __call__(self, step):
    """The value at a step (int, array or traced)."""
    xp = _library(step)
    warm = self.start + (self.peak - self.start) * (
        step / max(self.warmup_steps, 1))
    index = step - self.warmup_steps
    fall = 0.5 * (1 + xp.cos(
        math.pi * index / max(self.cosine_steps - 1, 1)))
    value = self.end + (self.peak - self.end) * fall
    value = xp.where(index >= self.cosine_steps, self.end, value)
    return xp.where(step < self.warmup_steps, warm, value)


def linear_warmup_cosine_decay(
    start: float, peak: float, end: float, *, warmup_steps: int,
    total_steps: int, cosine_steps: int | None = None) -> WarmupCosine:
  """DINOv3's schedule; the warm-up excludes the peak, the cosine has both."""
  if cosine_steps is None:
    cosine_steps = total_steps - warmup_steps
  return WarmupCosine(
      start, peak, end, warmup_steps, total_steps, cosine_steps)


@dataclasses.dataclass(frozen=True)
class Table:
  """Given values; the last one for ever."""

  values: tuple[float, ...]

  def __call__(self, step):
    """The value at a step (int, array or traced)."""
    xp = _library(step)
    table = xp.asarray(self.values)
    return table[xp.minimum(step, len(self.values) - 1)]


@dataclasses.dataclass(frozen=True)
class FrozenUntil:
  """0 before a step, another schedule from then on."""

  schedule: object
  first_step: int

  def __call__(self, step):
    """The value at a step (int, array or traced)."""
    xp = _library(step)
    return xp.where(step < self.first_step, 0.0, self.schedule(step))


def frozen_until(schedule, first_step: int) -> FrozenUntil:
  """`schedule`, but 0 for the first `first_step` steps."""
  return FrozenUntil(schedule, first_step)


def table(values) -> Table:
  """A schedule of explicit values."""
  return Table(tuple(float(v) for v in values))


def scale_lr(lr: float, batch_size: int, rule: str) -> float:
  """The learning rate for a batch size.

  Args:
    lr: of the config.
    batch_size: global images per step.
    rule: 'sqrt_1024' (DINOv2), 'sqrt_1024_x4' (DINOv3), 'linear_256', 'none'.
  """
  factors = {'sqrt_1024': math.sqrt(batch_size / 1024),
             'sqrt_1024_x4': 4 * math.sqrt(batch_size / 1024),
             'linear_256': batch_size / 256, 'none': 1.0}
  return lr * factors[rule]
