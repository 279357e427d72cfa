"""`dinojax doctor [--config=demo] [--workdir=runs/demo]`.

Looks at the machine, and at a config on it, before a run: what is wrong, what
is slow, and what to change. Exits with 1 where something would not work.
"""

from absl import flags

from dinojax.core import paths
from dinojax.doctor import findings
from dinojax.doctor import versions


def early() -> int | None:
  """Prints findings and returns 1 if dinojax cannot be imported; else None.

  Packages whose versions do not match may raise any exception on import.
  """
  try:
    from dinojax.commands import call  # noqa: F401
    from dinojax.doctor import report  # noqa: F401
  except Exception as error:
    version_findings = [*versions.look(), findings.error(
        'import', f'dinojax cannot be imported: {type(error).__name__}: '
        f'{error}', 'mend the versions above; in a new environment, '
        'pip install -e . in the folder of dinojax')]
    print(findings.table('versions', version_findings))
    print(findings.summary(version_findings))
    return 1
  return None


def define(values: flags.FlagValues, argv: list[str]):
  """Defines the flags of one call."""
  from dinojax.commands import call
  call.config_flag(
      'config', 'Config to look at: a name of `dinojax configs`, or a '
      'file; without it, only the machine.', values, argv)
  text = call.texts(values)
  text('workdir', 'Folder of the planned run; nothing is written there.')
  call.numbers(values)('steps', 'Training steps that are timed; 0: none, and '
                       'nothing is compiled.', 3, least=0)
  flags.DEFINE_float(
      'input_s', 10.0, 'Seconds for which the input pipeline is timed; 0: '
      'not.', lower_bound=0, flag_values=values)
  text('json', 'File that gets the same findings.')
  call.cache_flag(values)


def main(values: flags.FlagValues, words: list[str]) -> int:
  """Prints the findings; 1 where there are errors, 2 for wrong usage."""
  from dinojax.doctor import report
  from dinojax.runs import assemble
  del words
  workdir, cache, json = (path and paths.expand(path) for path in (
      values.workdir, values.compile_cache, values.json))
  assemble.compile_cache(cache)
  return report.report(values.config, report.Options(
      workdir=workdir, compile_cache=cache, steps=values.steps,
      input_s=values.input_s), json)
