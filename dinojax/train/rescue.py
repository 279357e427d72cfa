"""Advice to engine.rescue when pretraining cannot go on."""

from collections.abc import Mapping, Sequence
import dataclasses
import re

from etils import epath

from dinojax.core import errors
from dinojax.data import shared_memory
from dinojax.engine import report
from dinojax.engine import rescue
from dinojax.train import sections
from dinojax.train import settings as settings_lib

# A peak learning rate of AdamW with which nothing diverges.
_SAFE_LR = 1e-3


@dataclasses.dataclass(frozen=True)
class Advice:
  """See engine.rescue.Advice.

  Attributes:
    settings: settings of the run.
    rows: number of rows of a batch that this process makes.
  """

  settings: settings_lib.Settings
  rows: int

  def batches(self, error: OSError | RuntimeError) -> errors.UserError | None:
    """The words of an error of the input pipeline."""
    return batches(error, self.settings, self.rows)

  def nonfinite(self, error: report.NonFinite, workdir: epath.Path,
                steps: Sequence[int]) -> errors.UserError:
    """The words of a stop for gradients that are not finite."""
    return nonfinite(error, workdir, steps, self.settings)


def batches(error: OSError | RuntimeError, settings: settings_lib.Settings,
            rows: int) -> errors.UserError | None:
  """Words for an error of the input pipeline; None: unknown, a fault of ours.

  Args:
    error: error as the pipeline raises it.
    settings: settings of the run.
    rows: number of rows of a batch that this process makes.
  """
  count = settings.data.num_workers
  died = re.search(r'exit code (-?\d+)', str(error))
  full = isinstance(error, OSError) and error.errno in rescue.FULL
  if count and (full or (died and int(died[1]) == shared_memory.SIGBUS)):
    what = shared_memory.worker_died(int(died[1])) if died else (
        f'a worker could not hand over its rows: {error.strerror}')
    need = shared_memory.need_gib(
        settings.made_crops, settings.model.num_channels, rows, count)
    return errors.UserError(
        f'{what}. {shared_memory.advice(need, shared_memory.free_gib())}')
  if died:
    return errors.UserError(shared_memory.worker_died(int(died[1])))
  if isinstance(error, OSError):
    return errors.UserError(
        f'the images of data.train cannot be read: {error}; see whether their '
        'disk is still there, and start the same command again')
  return None


def nonfinite(error: report.NonFinite, workdir: epath.Path,
              steps: Sequence[int],
              settings: settings_lib.Settings) -> errors.UserError:
  """The words of a stop for gradients that are not finite: a way on.

  The weights before the first bad step made it bad, so the way on starts from
  a checkpoint whose next step was finite.

  Args:
    error: the stop, with its first bad step.
    workdir: workdir of the run.
    steps: steps of its checkpoints.
    settings: settings of the run.
  """
  good = max((s for s in steps if s <= error.first - 2), default=None)
  lines = [f'{error}. The same command comes to the same step again.']
  flags = [f'--workdir={workdir}-again']
  if good is None:
    lines.append(
        f'No checkpoint is from before step {error.first - 1}, whose weights '
        'give such gradients: begin anew and more gently. The same command, '
        'but with')
  else:
    lines.append(
        f'Step {good} is the last checkpoint whose next step was finite. To '
        'go on from it, the same command, but with')
    for name in settings.each:
      alone = name == sections.ALONE
      source = str(workdir) if alone else f'{workdir}/{name}'
      prefix = '' if alone else f'students.{name}.'
      flags += [f'--config.{prefix}init.source={source}@{good}',
                f'--config.{prefix}init.part=both']
  rates = _lower(settings)
  flags += [f'--config.schedules.lr.{name}={value:g}'
            for name, value in rates.items()]
  lines += [f'  {flag}' for flag in flags]
  lines.append('or another cure in place of the lower rate: a smaller '
               'optimizer.clip_norm, a longer schedules.lr.warmup_steps.')
  if good is not None:
    lines.append(
        'That takes over the weights and their EMA; the moments of Adam, the '
        'schedules and train.total begin anew: shorten train.total if it is '
        'to end where this run would have.')
  return errors.UserError('\n'.join(lines))


def _lower(settings: settings_lib.Settings) -> Mapping[str, float]:
  """Half the learning rates, and none that is known to be too large."""
  lr = settings.schedules.lr
  rates = {name: getattr(lr, name) for name in ('start', 'peak', 'end')}
  return {name: min(value / 2, _SAFE_LR) for name, value in rates.items()
          if value}
