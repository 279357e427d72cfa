"""`dinojax evaluate --model=PATH --protocols=knn,linear [--test=folder:DIR]`.

Measures frozen features of a run, a checkpoint of it, or released weights.
The same command continues after a stop; nothing is measured twice.
"""

from absl import flags

from dinojax.commands import call
from dinojax.commands import reference
from dinojax.evals import registry
from dinojax.runs import assemble
from dinojax.runs import evaluation

REQUIRED = ('model',)
DEFAULTS = ('--config=defaults',)  # words of a call without --config
FIELDS = ('model', 'protocols', 'suite', 'config', 'train', 'validation',
          'test', 'sizes', 'cache', 'predictions', 'out')
settings = lambda: reference.Settings(registry.Settings, registry.meanings())
ADVICE = 'the same command continues'


def define(values: flags.FlagValues, argv: list[str]):
  """Defines the flags of one call."""
  text = call.texts(values)
  several = lambda name, default, help: flags.DEFINE_list(
      name, default, f'{help}, joined by commas.', flag_values=values)
  several('model', None, 'Weights as dinojax.load takes them: a run, RUN@STEP, '
          'a file; several make one table')
  flags.DEFINE_list('protocols', [], 'Names, joined by commas, of'
                    f'{registry.listed_protocols()}', flag_values=values)
  text('suite', f'Instead of names: all, or{registry.listed_suites()}')
  call.config_flag(
      'config', 'Values of all protocols: a name of `dinojax configs`, or a '
      'file; default: defaults. Any of them is a flag, --config.knn.k=(5,).',
      values, argv, kind='evaluation')
  text('train', 'Labelled images that heads and neighbours are taken from; '
       'default: those of the run that is evaluated.')
  text('validation', 'Labelled images by which heads are chosen; default: '
       'every tenth of --train.')
  several('test', [], 'Labelled images that are measured on (default: those of '
          'the run that is evaluated)')
  several('sizes', [], 'Sides of the square in the centre, in pixels: all is '
          'measured at each, with heads of its own')
  flags.DEFINE_bool('cache', False, 'Trains heads on features computed once, '
                    'without random crops, as --suite=quick does: faster, less '
                    'accurate.', flag_values=values)
  flags.DEFINE_bool('predictions', False, 'Writes predictions/, what was '
                    'measured of every image as CSV.', flag_values=values)
  text('out', 'Folder of the results; default: evaluation/ in the run or here.')
  call.cache_flag(values)


def main(values: flags.FlagValues, words: list[str]) -> int:
  """Prints the table; 0 when all is measured."""
  del words
  assemble.compile_cache(values.compile_cache)
  print(evaluation.evaluate(evaluation.Request(
      *(values[name].value for name in FIELDS))), end='')
  return 0
