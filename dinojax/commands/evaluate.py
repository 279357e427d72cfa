"""`dinojax evaluate --model=PATH --protocols=knn,linear [--test=folder:DIR]`.

Measures frozen features of a run, of a checkpoint of it, or of released
weights. The same command continues after a stop; what was measured is not
measured again. Several models, joined by commas, make one table.
"""

from absl import flags

from dinojax.commands import call
from dinojax.commands import reference
from dinojax.evals import registry
from dinojax.runs import assemble
from dinojax.runs import evaluation

REQUIRED = ('model',)
DEFAULTS = ('--config=defaults',)  # words of a call without --config
settings = lambda: reference.Settings(registry.Settings, registry.meanings())
ADVICE = 'the same command continues'


def define(values: flags.FlagValues, argv: list[str]):
  """Defines the flags of one call."""
  text = call.texts(values)
  flags.DEFINE_list(
      'model', None, 'Weights as dinojax.load takes them: a run, RUN@STEP, a '
      'file; several make one table.', flag_values=values)
  flags.DEFINE_list('protocols', [], 'Names, joined by commas: ' + '; '.join(
      f'{name}, {module.TITLE} ({module.COST})' for name, module in
      registry.PROTOCOLS.items()) + '.', flag_values=values)
  text('suite', 'Instead of names: ' + '; '.join(
      f'{name} is {", ".join(protocols)}'
      for name, protocols in registry.SUITES.items()) + '.')
  call.config_flag(
      'config', 'Values of all protocols: a name of `dinojax configs`, or a '
      'file; default: defaults. Any of them is a flag, --config.knn.k=(5,).',
      values, argv,
      kind='evaluation')
  text('train', 'Labelled images that heads and neighbours are taken from; '
       'default: those of the run that is evaluated.')
  text('validation', 'Labelled images by which heads are chosen; default: '
       'every tenth of --train.')
  flags.DEFINE_list(
      'test', [], 'Labelled images that are measured on, sources joined by '
      'commas; default: those of the run that is evaluated.',
      flag_values=values)
  text('out', 'Folder of the results; default: evaluation/ in the run, or '
       'here.')
  call.cache_flag(values)


def main(values: flags.FlagValues, words: list[str]) -> int:
  """Prints the table; 0 when all is measured."""
  del words
  assemble.compile_cache(values.compile_cache)
  print(evaluation.evaluate(evaluation.Request(
      models=values.model, **{name: values[name].value for name in (
          'protocols', 'suite', 'config', 'train', 'validation', 'test',
          'out')})), end='')
  return 0
