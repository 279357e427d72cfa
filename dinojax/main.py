"""`dinojax train --config=demo --workdir=runs/demo`.

Trains from the config; the same command resumes. Everything else happens in
dinojax.train: settings → recipe → loop → step. `--recipe=FILE` instead of
`--config` is a chain of such runs, see dinojax.stages.
"""

import sys

from dinojax.core import signals

if __name__ == '__main__':  # before imports that take seconds
  signals.watch('nothing was begun yet; the same command begins again',
                signals.stopped_exit_code(sys.argv))

from absl import app
from absl import flags
import jax

from dinojax import commandline
from dinojax import entry as entry_lib
from dinojax import job
from dinojax import stages
from dinojax.core import errors
from dinojax.parallel import processes

_CONFIG = commandline.config_flag(
    'config', 'What is trained: a name of `dinojax configs`, such as vits or '
    'vits:smoke, or a file.')
_RECIPE = commandline.config_flag(
    'recipe', 'Instead of --config: stages one after the other, such as '
    'dinov3 or dinov3:smoke, or a file.')
_STAGES = flags.DEFINE_list(
    'stages', [], 'Only these stages of --recipe, such as gram,highres.')
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Folder of the run, local or gs://; the same command '
    'with the same folder resumes.')
_CACHE = flags.DEFINE_string(
    'compile_cache', job.DEFAULT_COMPILE_CACHE,
    'Folder of compiled programs, so that a second start is quick; empty: '
    'none.')
_STOPPED = flags.DEFINE_integer(
    'stopped_exit_code', 0,
    'Exit code when a signal ended the run before its last step; schedulers '
    'that start only failed jobs again need another than 0, such as 143.')


@entry_lib.guarded(
    'no step was under way, so nothing is lost; the same command continues',
    lambda: _STOPPED.value)
def main(argv: list[str]) -> int:
  """Runs training; 0 when it ended, --stopped_exit_code after a signal."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  job.compile_cache(_CACHE.value)
  processes.initialize()
  finished = _train()
  # After an error jax does this at exit, where a process whose error the
  # others do not share waits for them: only after it has said what is wrong.
  if jax.distributed.is_initialized():
    jax.distributed.shutdown()
  return 0 if finished else _STOPPED.value


def _train() -> bool:
  """One run or a chain of them; False after a signal."""
  config, recipe = (flags.FLAGS[name].present for name in ('config', 'recipe'))
  if bool(config) == bool(recipe):
    given = 'both --config and' if config else 'neither --config nor'
    raise errors.UserError(
        f'{given} --recipe are given: --config=FILE is one run, --recipe=FILE '
        'a chain of them; give one of the two')
  if recipe:
    return stages.train(_RECIPE.value, _WORKDIR.value, _STAGES.value)
  if _STAGES.value:
    raise errors.UserError(
        f'--stages={",".join(_STAGES.value)} chooses among the stages of '
        '--recipe, but --config is one run: leave it out')
  return job.train(_CONFIG.value, _WORKDIR.value).finished


def entry():
  """The `train` entry of the console command."""
  commandline.run(main, 'train', required=['workdir'])


if __name__ == '__main__':
  entry()
