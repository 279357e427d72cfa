"""Memory of a training step, before it is compiled, and what would fit."""

from collections.abc import Callable, Iterator
import dataclasses
import math

import jax

from dinojax.core import errors
from dinojax.engine import program
from dinojax.planning import liveness
from dinojax.train import method as method_lib
from dinojax.train import pretraining
from dinojax.train import settings as settings_lib

_GIB = 2**30
# Estimates are right to a quarter; compilers and allocators need some room.
REFUSED, DOUBTFUL = 1.2, 0.8
# What compilers take above what the equations need, copies and gaps: 6 to 14 %
# on CPU, 8 to 21 % on a GPU (tests/planning/test_memory.py).
_MORE = 1.1
_MOST_MICRO_BATCHES = 64
_OTHERS = 'configs/photos.py is made for small machines'


@dataclasses.dataclass(frozen=True)
class Estimate:
  """GiB of one device, by shapes alone.

  Attributes:
    state: parameters, EMA, moments, teachers.
    batch: crops and masks as the step gets them.
    gradients: gradients of the largest student's parameters.
    activations: the rest at its highest: what the backward pass finds stored,
      logits, targets, and what a block computes with.
  """

  state: float
  batch: float
  gradients: float
  activations: float

  @property
  def peak(self) -> float:
    """GiB of everything together."""
    return self.state + self.batch + self.gradients + self.activations

  def describe(self) -> str:
    """The GiB of each, in words."""
    return (f'state {self.state:.3g}, gradients {self.gradients:.3g}, batch '
            f'{self.batch:.3g}, activations and logits '
            f'{self.activations:.3g}')


def estimate(trainable: program.Trainable,
             mesh: jax.sharding.Mesh) -> Estimate:
  """Estimates the heaviest step of a run: traces it, compiles nothing.

  Args:
    trainable: training to plan, of any kind.
    mesh: the active mesh.
  """
  step = program.planned(trainable, mesh)
  temporaries = _MORE * liveness.temporaries(step.traced.jaxpr) / _GIB
  # Gradients are of one entry at a time.
  gradients = max(map(gib, trainable.evaluated(step.state).values()))
  return Estimate(gib(step.state), gib(step.rows), min(gradients, temporaries),
                  max(temporaries - gradients, 0.0))


def of_pretraining(method: method_lib.Method,
                   mesh: jax.sharding.Mesh) -> Estimate:
  """Estimates the heaviest step of pretraining."""
  return estimate(pretraining.Pretraining(method, mesh), mesh)


def gib(arrays) -> float:
  """GiB of one device's share of arrays, or of their shapes."""
  return sum(map(liveness.size_of, jax.tree.leaves(arrays))) / _GIB


def with_train(method: method_lib.Method, **changes) -> method_lib.Method:
  """A method with other values of its section `train`, shapes apart."""
  change = lambda s: dataclasses.replace(
      s, train=dataclasses.replace(s.train, **changes))
  return dataclasses.replace(
      method, settings=change(method.settings), students={
          name: dataclasses.replace(student, settings=change(student.settings))
          for name, student in method.students.items()})


def check(method: method_lib.Method, mesh: jax.sharding.Mesh,
          free_gib: float, say: Callable[[str], None]):
  """Stops before work starts where the step cannot fit.

  Args:
    method: the method to train.
    mesh: the active mesh.
    free_gib: free memory of one device in GiB.
    say: gets a warning where it fits only just.

  Raises:
    UserError: it cannot fit; the message has values that would.
  """
  need = of_pretraining(method, mesh)
  text = sentence(need, free_gib)
  if need.peak > REFUSED * free_gib:
    raise errors.UserError(
        f'{text}: it does not fit; {advice(method, mesh, free_gib, need)}; '
        'train.check_memory=False tries it all the same')
  if need.peak > DOUBTFUL * free_gib:
    say(f'{text}: it may not fit; fewer images at a time '
        '(train.num_micro_batches, train.batch_size) or model.remat=blocks '
        'need less')


def check_evaluation(trainable: program.Trainable, name: str, state_gib: float,
                     mesh: jax.sharding.Mesh, free_gib: float,
                     say: Callable[[str], None]):
  """Stops before work starts where heads do not fit beside a run's state.

  Args:
    trainable: the heads, whose state holds the backbone.
    name: section of the config that asks for them.
    state_gib: GiB that the state of the run takes of a device.
    mesh: the active mesh.
    free_gib: free memory of one device in GiB.
    say: gets a warning where they fit only just.

  Raises:
    UserError: they cannot fit.
  """
  need = estimate(trainable, mesh)
  whole = state_gib + need.peak
  text = (f'{name} is estimated to take {need.peak:.3g} GiB of a device beside '
          f"the run's state of {state_gib:.3g}, and {free_gib:.3g} are free")
  if whole > REFUSED * free_gib:
    raise errors.UserError(
        f'{text}: it does not fit; give it fewer heads or smaller batches, or '
        'measure it by `dinojax evaluate` after the run; '
        'train.check_memory=False tries it all the same')
  if whole > DOUBTFUL * free_gib:
    say(f'{text}: it may not fit; fewer heads or smaller batches need less')


def sentence(need: Estimate, free_gib: float) -> str:
  """Says in words what a step needs and what a device has free."""
  return (f'a step is estimated to take {need.peak:.3g} GiB of a device '
          f'({need.describe()}), which has {free_gib:.3g} GiB free')


def advice(method: method_lib.Method, mesh: jax.sharding.Mesh,
           free_gib: float, need: Estimate) -> str:
  """Values that would fit, in words."""
  ways = []
  count = fitting_micro_batches(method, mesh, free_gib, need)
  if count:
    ways.append(f'set train.num_micro_batches={count}, which accumulates '
                'gradients and changes no result but by rounding')
  batch = fitting_batch(method, mesh, free_gib, need)
  if batch:
    ways.append(f'set train.batch_size={batch}')
  if not ways:
    ways.append('no batch of this model fits: use more devices with '
                'mesh.fsdp above 1')
  return f'{", or ".join(ways)}, or use a smaller config ({_OTHERS})'


def fitting_micro_batches(method: method_lib.Method, mesh: jax.sharding.Mesh,
                  free_gib: float, need: Estimate) -> int | None:
  """The fewest micro-batches with which a step fits safely; None: none do."""
  now = method.settings.train.num_micro_batches
  for count in _micro_batches(method.settings, mesh.size):
    least = need.peak - need.activations * (1 - now / count)
    if least > DOUBTFUL * free_gib:
      continue  # not to be traced
    smaller = with_train(method, num_micro_batches=count)
    if of_pretraining(smaller, mesh).peak <= DOUBTFUL * free_gib:
      return count
  return None


def _micro_batches(s: settings_lib.Settings,
                      num_devices: int) -> Iterator[int]:
  """More micro-batches than now that batch and groups allow, doubling."""
  unit = math.lcm(s.train.group_images, s.images_together)
  rows = s.train.batch_size // num_devices
  least = 2 * s.train.num_micro_batches
  for count in range(least, min(rows, _MOST_MICRO_BATCHES) + 1):
    if rows % count == 0 and rows // count % unit == 0 and count >= least:
      least = 2 * count
      yield count


def fitting_batch(method: method_lib.Method, mesh: jax.sharding.Mesh,
                  free_gib: float, need: Estimate | None = None
                  ) -> int | None:
  """The largest batch that fits safely, of whole groups; None: none does.

  Memory is nearly linear in the batch: two estimates draw the line.
  """
  train = method.settings.train
  unit = batch_unit(method.settings, mesh.size)
  need = need or of_pretraining(method, mesh)
  least = of_pretraining(with_train(method, batch_size=unit), mesh)
  limit = DOUBTFUL * free_gib
  if least.peak > limit:
    return None
  if train.batch_size <= unit:
    return unit
  slope = (need.peak - least.peak) / (train.batch_size - unit)
  largest = unit + (limit - least.peak) / max(slope, 1e-12)
  return max(int(largest // unit), 1) * unit


def batch_unit(s: settings_lib.Settings, num_devices: int) -> int:
  """Number of images that a batch must be a multiple of."""
  together, micro = s.images_together, s.train.num_micro_batches
  if micro > 1:
    together *= num_devices * micro
  return math.lcm(s.train.group_images * num_devices * micro, together)
