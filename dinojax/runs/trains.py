"""One run, a chain of them, or a config that is chosen first."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax

from dinojax.core import errors
from dinojax.parallel import processes
from dinojax.runs import autoconfig
from dinojax.runs import job
from dinojax.runs import stages


@dataclasses.dataclass(frozen=True)
class Wanted:
  """What is to be trained; one of config, recipe and data is given.

  Attributes:
    workdir: folder of the run, local or gs://.
    config: ConfigDict of one run.
    recipe: ConfigDict of a chain of runs.
    data: folder or source of images, for which a config is chosen.
    validation: labelled images, with `data`.
    model: name of a model, with `data`.
    stages: only these, with `recipe`.
    compile_cache: folder of compiled programs; empty: none.
  """

  workdir: str
  config: Any = None
  recipe: Any = None
  data: str | None = None
  validation: str | None = None
  model: str | None = None
  stages: Sequence[str] = ()
  compile_cache: str = ''


def train(wanted: Wanted) -> bool:
  """Trains or resumes; False after a signal.

  Raises:
    UserError: nothing or too much is wanted, or anything the user can mend.
  """
  what = _check(wanted)
  job.compile_cache(wanted.compile_cache)
  processes.initialize()
  finished = _train(wanted, what)
  # After an error jax does this at exit, where a process whose error the
  # others do not share waits for them: only after it has said what is wrong.
  if jax.distributed.is_initialized():
    jax.distributed.shutdown()
  return finished


def _check(wanted: Wanted) -> str:
  """Which of config, recipe and data is given."""
  given = [name for name in ('config', 'recipe', 'data')
           if getattr(wanted, name) is not None]
  if len(given) != 1:
    text = (' and '.join(f'--{name}' for name in given) + ' each say'
            if given else 'no flag says')
    raise errors.UserError(
        f'{text} what to train: give one of --data=FOLDER (a config is '
        'chosen for it), --config=FILE (one run) and --recipe=FILE (a chain '
        'of runs)')
  for name, owner in (('stages', 'recipe'), ('validation', 'data'),
                      ('model', 'data')):
    value = getattr(wanted, name)
    if value and given != [owner]:
      value = value if isinstance(value, str) else ','.join(value)
      raise errors.UserError(
          f'--{name}={value} belongs to --{owner}, but --{given[0]} is '
          'given: leave it out')
  return given[0]


def _train(wanted: Wanted, what: str) -> bool:
  if what == 'recipe':
    return stages.train(wanted.recipe, wanted.workdir, wanted.stages)
  config = wanted.config if what == 'config' else autoconfig.config_for(
      wanted.data, wanted.validation, wanted.model, wanted.workdir, _say)
  return job.train(config, wanted.workdir).finished


def _say(text: str):
  if processes.is_first():
    print(text, flush=True)
