"""`dinojax train --config=demo --workdir=runs/demo`.

Trains from the config; the same command resumes. Everything else happens in
dinojax.train: settings → recipe → loop → step. `--recipe=FILE` instead of
`--config` is a chain of such runs, see dinojax.runs.stages.
"""

from absl import app
from absl import flags
import jax

from dinojax.commands import commandline
from dinojax.commands import entry as entry_lib
from dinojax.core import errors
from dinojax.parallel import processes
from dinojax.runs import autoconfig
from dinojax.runs import job
from dinojax.runs import stages

_CONFIG = commandline.config_flag(
    'config', 'Config to train: a name of `dinojax configs`, such as vits or '
    'vits:smoke, or a file.')
_RECIPE = commandline.config_flag(
    'recipe', 'Instead of --config: stages one after the other, such as '
    'dinov3 or dinov3:smoke, or a file.')
_DATA = flags.DEFINE_string(
    'data', None, 'Instead of --config: a folder of images, or a source such '
    'as tfds:NAME/SPLIT. A config is chosen for it and for this machine, and '
    'written to WORKDIR/config.py.')
_VALIDATION = flags.DEFINE_string(
    'validation', None, 'With --data: labelled images on which k-NN is '
    'measured; without, those of val/ or test/ below --data, or every tenth.')
_MODEL = flags.DEFINE_string(
    'model', None, 'With --data: vitti16, vits14, vits16, vitb14, vitb16, '
    'vitl14 or vitl16; without, what suits the device.')
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
  given = [name for name in ('config', 'recipe', 'data')
           if flags.FLAGS[name].present]
  if len(given) != 1:
    text = (' and '.join(f'--{name}' for name in given) + ' each say'
            if given else 'no flag says')
    raise errors.UserError(
        f'{text} what to train: give one of --data=FOLDER (a config is '
        'chosen for it), --config=FILE (one run) and --recipe=FILE (a chain '
        'of runs)')
  for flag, owner in ((_STAGES, 'recipe'), (_VALIDATION, 'data'),
                      (_MODEL, 'data')):
    if flag.value and given != [owner]:
      value = ','.join(flag.value) if flag is _STAGES else flag.value
      raise errors.UserError(
          f'--{flag.name}={value} belongs to --{owner}, but --{given[0]} is '
          'given: leave it out')
  if given == ['recipe']:
    return stages.train(_RECIPE.value, _WORKDIR.value, _STAGES.value)
  config = _CONFIG.value if given == ['config'] else autoconfig.config_for(
      _DATA.value, _VALIDATION.value, _MODEL.value, _WORKDIR.value, _say)
  return job.train(config, _WORKDIR.value).finished


def _say(text: str):
  if processes.is_first():
    print(text, flush=True)


def entry():
  """The `train` entry of the console command."""
  commandline.run(main, 'train', required=['workdir'])


if __name__ == '__main__':
  entry()
