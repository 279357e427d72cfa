"""`dinojax curate --config=NAME --workdir=DIR`.

Turns a pile of images into a training set: filters, copies, clusters, a
balanced sample. The same command continues after a stop; a changed option
makes anew what depends on it, and nothing else.
"""

from absl import flags

from dinojax.commands import call
from dinojax.commands import reference
from dinojax.curate import recipe
from dinojax.runs import curation

REQUIRED = ('config',)
ADVICE = 'the same command continues'
settings = lambda: reference.Settings(recipe.Settings, recipe.meanings())


def define(values: flags.FlagValues, argv: list[str]):
  """Defines the flags of one call."""
  text, number = call.texts(values), call.numbers(values)
  call.config_flag(
      'config', 'Stages and their values: a name of `dinojax configs`, or a '
      'file. Any of them is a flag, --config.dedup.threshold=0.65.', values,
      argv, kind='curation')
  text('workdir', 'Folder of the stages, on a disk that all machines share.')
  text('stage', 'Last stage that is run; default: all of the config.')
  text('plan', 'Number of images, such as 17e9: prints what they need, and '
       'runs nothing; what it assumes is in --config.plan.')
  text('machine', 'Machine of --plan: cpu:96, v5e:16x16, H100-SXM:64.',
       'cpu:64')
  number('inspect', 'With --stage=retrieve: draws sheets of so many queries '
         'with what they find, by which N and M are chosen.', least=1)
  flags.DEFINE_enum(
      'engine', curation.ENGINES[0], curation.ENGINES, 'What runs the tasks: '
      'processes of this machine; of an array of jobs the part that --index '
      'names; a cluster of Ray.', flag_values=values)
  number('workers', 'Processes; default: as many as there are cores.')
  number('index', 'Number of this member of an array, from 0.', least=0)
  number('count', 'Number of members of an array.')
  text('address', 'Cluster of Ray: HOST:PORT, or auto.', 'auto')
  flags.DEFINE_list('resources', [], 'Accelerators of a task that uses a whole '
                    'machine of Ray, such as TPU=4.', flag_values=values)
  call.cache_flag(values)


def main(values: flags.FlagValues, words: list[str]) -> int:
  """Prints what each stage did, and where the result is; or a plan."""
  del words
  print(curation.curate(curation.Request(
      config=values.config, workdir=values.workdir, engine=values.engine,
      workers=values.workers, index=values.index, count=values['count'].value,
      address=values.address, resources=values.resources,
      until=values.stage, inspect=values.inspect, plan=values.plan,
      machine=values.machine, compile_cache=values.compile_cache)))
  return 0
