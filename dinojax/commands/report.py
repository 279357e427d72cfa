"""`dinojax report --workdir=runs/demo [--compare=OTHER,…]`.

One HTML file that tells a run: what was trained, curves, pictures, events,
config and versions. It opens without a network; send it to a colleague. A run
that still trains, or was killed, has a report of what it has logged.
"""

from absl import flags

from dinojax.commands import call
from dinojax.runs import assemble
from dinojax.runs.report import page

REQUIRED = ('workdir',)


def define(values: flags.FlagValues, argv: list[str]):
  """Defines the flags of one call."""
  del argv
  text = call.texts(values)
  text('workdir', 'Folder of the run, or of a chain of runs.')
  text('out', 'File to write; default: report.html in the workdir.')
  flags.DEFINE_list(
      'compare', [], 'Other runs, whose curves are drawn beside.',
      flag_values=values)
  call.cache_flag(values)


def main(values: flags.FlagValues, words: list[str]) -> int:
  """Writes the report."""
  del words
  assemble.compile_cache(values.compile_cache)
  path = page.write(values.workdir, values.out, compare=values.compare)
  print(f'wrote {path}')
  return 0
