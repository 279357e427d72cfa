"""`dinojax doctor [--config=configs/demo.py] [--workdir=runs/demo]`.

Looks at the machine, and at a config on it, before a run: what is wrong, what
is slow, and what to change. Exits with 1 where something would not work.
"""

import sys

from absl import app
from absl import flags
from ml_collections import config_flags

from dinojax import entry as entry_lib
from dinojax import job
from dinojax.checks import report
from dinojax.core import paths

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'What would be trained; without it, only the machine.',
    lock_config=True)
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Where it would be trained; nothing is written there.')
_STEPS = flags.DEFINE_integer(
    'steps', 3, 'Training steps that are timed; 0: none, and nothing is '
    'compiled.', lower_bound=0)
_INPUT_S = flags.DEFINE_float(
    'input_s', 10.0, 'Seconds for which the input pipeline is timed; 0: not.',
    lower_bound=0)
_JSON = flags.DEFINE_string('json', None, 'File that gets the same findings.')
_CACHE = flags.DEFINE_string(
    'compile_cache', job.DEFAULT_COMPILE_CACHE, 'Folder of programs.')


@entry_lib.guarded()
def main(argv: list[str]) -> int:
  """Prints the findings; 1 where there are errors, 2 for wrong usage."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}', exitcode=2)
  job.compile_cache(_CACHE.value)
  expand = lambda path: path and paths.expand(path)
  return report.report(_CONFIG.value, report.Options(
      workdir=expand(_WORKDIR.value), compile_cache=expand(_CACHE.value),
      steps=_STEPS.value, input_s=_INPUT_S.value), expand(_JSON.value))


def _parse(argv: list[str]) -> list[str]:
  """The arguments that are no flags."""
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)


def entry():
  """The `doctor` entry of the console command."""
  app.run(main, flags_parser=_parse)


if __name__ == '__main__':
  entry()
