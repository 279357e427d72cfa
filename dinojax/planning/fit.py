"""The largest number of images a device that fits its memory.

Memory is nearly linear in the images of a device: two compiles draw the line,
a third confirms what it foretells. A compile of a large model takes minutes.
"""

from collections.abc import Callable
import copy
import dataclasses
from typing import Any

from dinojax.core import errors
from dinojax.parallel import topologies
from dinojax.planning import plan
from dinojax.train import settings as settings_lib

MARGIN = 0.05  # of the memory, left for what the plan does not see
_MOST_TRIALS = 6
_MOST_GROWTH = 8  # from the first trial to the second
_MOST_GROUPS = 4096


@dataclasses.dataclass(frozen=True)
class Trial:
  """One compile: images and GiB of a device; `numbers` is None if it failed."""

  images: int
  peak_gib: float
  numbers: dict | None


def largest(config: Any, topology: str, say: Callable[[str], None], *,
            compiled: Callable[[Any, str], dict] = plan.compiled) -> dict:
  """Searches for the largest batch that fits, from the config's own on.

  Args:
    config: ConfigDict, see train.settings; all but train.batch_size is kept.
    topology: name of a TPU slice, such as v5e:2x4.
    say: gets a line before and after each compile.
    compiled: see plan.compiled.

  Returns:
    Numbers of `plan.compiled`, and fit: images_per_device, margin, trials.

  Raises:
    UserError: config or topology is wrong, or not even the least batch fits.
  """
  memory = plan.hbm_gib(topology)
  if memory is None:
    raise errors.UserError(
        f'--fit needs a memory to fill, --topology={topology} has none: use '
        'a TPU slice such as v5e:2x4')
  limit, devices = memory * (1 - MARGIN), len(topologies.devices(topology))
  sizes = _sizes(config, devices)
  trials: list[Trial] = []
  images = _at_most(sizes, config['train']['batch_size'] / devices)
  while images is not None and len(trials) < _MOST_TRIALS:
    say(f'trial {len(trials) + 1}: {images} images a device, batch '
        f'{images * devices}; this compiles for minutes')
    trials.append(_trial(config, topology, images, devices, compiled))
    say(f'  {trials[-1].peak_gib:.2f} GiB of {limit:.2f} '
        f'({memory:.0f} less {100 * MARGIN:.0f} %)')
    images = _next(trials, sizes, limit)
  fitting = [x for x in trials if x.numbers and x.peak_gib <= limit]
  if not fitting:
    raise errors.UserError(
        f'not even {min(x.images for x in trials)} images a device fit '
        f'{limit:.2f} GiB: set mesh.fsdp to more devices, train.group_images '
        'to fewer, or model.remat=blocks')
  best = max(fitting, key=lambda x: x.images)
  return best.numbers | {'fit': {
      'images_per_device': best.images, 'margin': MARGIN, 'trials': [
          {'images_per_device': x.images, 'peak_gib': x.peak_gib}
          for x in trials]}}


def _trial(config, topology: str, images: int, devices: int,
           compiled) -> Trial:
  try:
    numbers = compiled(_with_batch(config, images * devices), topology)
    return Trial(images, numbers['peak_gib'], numbers)
  except plan.DoesNotFit as error:
    return Trial(images, error.needed_gib, None)


def _with_batch(config: Any, batch: int) -> Any:
  config = copy.deepcopy(config)
  config['train']['batch_size'] = batch
  return config


def _sizes(config: Any, devices: int) -> list[int]:
  """Images a device that the config's groups allow, ascending."""
  settings = settings_lib.read(config)
  unit = settings.train.group_images * settings.train.num_micro_batches
  spread = settings.images_together
  micro = settings.train.num_micro_batches
  return [
      n for n in range(unit, unit * _MOST_GROUPS + 1, unit)
      if n * devices % spread == 0 and (micro == 1 or n // micro % spread == 0)]


def _at_most(sizes: list[int], wanted: float) -> int:
  return max((n for n in sizes if n <= wanted), default=sizes[0])


def _next(trials: list[Trial], sizes: list[int],
          limit: float) -> int | None:
  """Images to try next, None when the largest is known."""
  tried = {x.images: x.peak_gib for x in trials}
  fitting = [n for n, peak in tried.items() if peak <= limit]
  failing = [n for n, peak in tried.items() if peak > limit]
  open_sizes = [n for n in sizes if n > max(fitting, default=0)
                and n < min(failing, default=sizes[-1] + 1)]
  if not open_sizes:
    return None
  if len(tried) == 1:
    (images, peak), = tried.items()
    # Some memory is of the state, so this does not overshoot.
    larger = images * min(limit / peak, _MOST_GROWTH)
    return _at_most(open_sizes, larger if fitting else images / 2)
  foretold = _foretold(tried, limit)
  if foretold < open_sizes[0]:
    # What the line forbids is not tried, unless nothing fits yet.
    return None if fitting else open_sizes[0]
  return _at_most(open_sizes, foretold)


def _foretold(tried: dict[int, float], limit: float) -> float:
  """Images at the limit, on the line through the two nearest trials."""
  near = sorted(sorted(tried, key=lambda n: abs(tried[n] - limit))[:2])
  slope = (tried[near[1]] - tried[near[0]]) / (near[1] - near[0])
  if slope <= 0:
    return float(near[1])
  return near[1] + (limit - tried[near[1]]) / slope
