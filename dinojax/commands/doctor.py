"""`dinojax doctor [--config=demo] [--workdir=runs/demo]`.

Looks at the machine, and at a config on it, before a run: what is wrong, what
is slow, and what to change. Exits with 1 where something would not work.
"""

import sys

from dinojax.core import paths
from dinojax.doctor import findings
from dinojax.doctor import versions


def main(argv: list[str]) -> int:
  """Prints the findings; 1 where there are errors, 2 for wrong usage."""
  from absl import app
  from absl import flags

  from dinojax.doctor import report
  from dinojax.runs import job
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  values = flags.FLAGS
  expand = lambda path: path and paths.expand(path)
  job.compile_cache(values.compile_cache)
  return report.report(values.config, report.Options(
      workdir=expand(values.workdir),
      compile_cache=expand(values.compile_cache), steps=values.steps,
      input_s=values.input_s), expand(values.json))


def _define():
  """Defines the flags."""
  from absl import flags

  from dinojax.commands import commandline
  from dinojax.runs import job
  commandline.config_flag(
      'config', 'Config to look at: a name of `dinojax configs`, or a '
      'file; without it, only the machine.')
  flags.DEFINE_string(
      'workdir', None, 'Folder of the planned run; nothing is written there.')
  flags.DEFINE_integer(
      'steps', 3, 'Training steps that are timed; 0: none, and nothing is '
      'compiled.', lower_bound=0)
  flags.DEFINE_float(
      'input_s', 10.0, 'Seconds for which the input pipeline is timed; 0: '
      'not.', lower_bound=0)
  flags.DEFINE_string('json', None, 'File that gets the same findings.')
  flags.DEFINE_string(
      'compile_cache', job.DEFAULT_COMPILE_CACHE, 'Folder of programs.')


def _broken() -> findings.Finding | None:
  """Why the rest of dinojax cannot be imported; None: it can.

  Packages that do not fit each other raise anything while they are imported.
  """
  try:
    from dinojax.doctor import report  # noqa: F401
  except Exception as error:
    return findings.error(
        'import', f'dinojax cannot be imported: {type(error).__name__}: '
        f'{error}', 'mend the versions above; in a new environment, '
        'pip install -e . in the folder of dinojax')
  return None


def entry():
  """The `doctor` entry of the console command."""
  broken = _broken()
  if broken:
    found = [*versions.look(), broken]
    print(findings.table('versions', found))
    print(findings.summary(found))
    sys.exit(1)
  from dinojax.commands import commandline
  from dinojax.commands import entry as entry_lib
  _define()
  commandline.run(entry_lib.guarded()(main), 'doctor')


if __name__ == '__main__':
  entry()
