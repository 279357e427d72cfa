"""One run, a chain of them, or a config that is chosen first."""

from collections.abc import Sequence
import dataclasses
import types
from typing import Any

import jax

from dinojax.core import errors
from dinojax.parallel import processes
from dinojax.runs import alignment
from dinojax.runs import assemble
from dinojax.runs import autoconfig
from dinojax.runs import stages


@dataclasses.dataclass(frozen=True)
class Request:
  """Request to train: exactly one of config, recipe and data is given.

  Attributes:
    workdir: folder of the run, local or gs://.
    config: ConfigDict of one run.
    recipe: ConfigDict of a chain of runs.
    data: folder or source of images, for which a config is chosen.
    validation: labelled images, with `data`.
    model: name of a model, with `data`.
    stages: names of the stages to run, with `recipe`; empty: all.
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


def train(request: Request) -> bool:
  """Trains or resumes; False after a signal.

  Raises:
    UserError: nothing or too much is asked for, or anything the user can mend.
  """
  what = _check(request)
  assemble.compile_cache(request.compile_cache)
  processes.initialize()
  if what == 'recipe':
    finished = stages.train(request.recipe, request.workdir, request.stages)
  else:
    config = request.config if what == 'config' else autoconfig.config_for(
        request.data, request.workdir, validation=request.validation,
        model=request.model, say=_say)
    finished = runner(config).train(config, request.workdir).finished
  # After an error jax does this at exit, where a process whose error the
  # others do not share waits for them: only after it has said what is wrong.
  if jax.distributed.is_initialized():
    jax.distributed.shutdown()
  return finished


def runner(config: Any) -> types.ModuleType:
  """The module that trains a config: pretraining, or text alignment."""
  return alignment if alignment.is_alignment(config) else assemble


def _check(request: Request) -> str:
  """Checks a request; returns which of config, recipe and data is given."""
  given = [name for name in ('config', 'recipe', 'data')
           if getattr(request, name) is not None]
  if len(given) != 1:
    text = (' and '.join(f'--{name}' for name in given) + ' each say'
            if given else 'no flag says')
    raise errors.UserError(
        f'{text} what to train: give one of --data=FOLDER (a config is '
        'chosen for it), --config=FILE (one run) and --recipe=FILE (a chain '
        'of runs)')
  for name, owner in (('stages', 'recipe'), ('validation', 'data'),
                      ('model', 'data')):
    value = getattr(request, name)
    if value and given != [owner]:
      value = value if isinstance(value, str) else ','.join(value)
      raise errors.UserError(
          f'--{name}={value} belongs to --{owner}, but --{given[0]} is '
          'given: leave it out')
  return given[0]


def _say(text: str):
  if processes.is_first():
    print(text, flush=True)
