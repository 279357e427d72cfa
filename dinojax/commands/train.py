"""`dinojax train --config=demo --workdir=runs/demo`.

Trains from the config; the same command resumes. `--recipe=FILE` instead of
`--config` is a chain of such runs; with `--data=DIR` a config is chosen for
your images and this machine.
"""

from absl import flags

from dinojax.commands import call
from dinojax.commands import reference
from dinojax.runs import training

REQUIRED = ('workdir',)
settings = reference.of_training
ADVICE = 'no step was under way, so nothing is lost; the same command continues'


def define(values: flags.FlagValues, argv: list[str]):
  """Defines the flags of one call."""
  call.config_flag(
      'config', 'Config to train: a name of `dinojax configs`, such as vits or '
      'vits:smoke, or a file.', values, argv)
  call.config_flag(
      'recipe', 'Instead of --config: stages one after the other, such as '
      'dinov3 or dinov3:smoke, or a file.', values, argv)
  text = call.texts(values)
  text('data', 'Instead of --config: a folder of images, or a source such as '
       'tfds:NAME/SPLIT. A config is chosen for it and for this machine, and '
       'written to WORKDIR/config.py.')
  text('validation', 'With --data: labelled images on which k-NN is measured; '
       'without, those of val/ or test/ below --data, or every tenth.')
  text('model', 'With --data: vitti16, vits14, vits16, vitb14, vitb16, vitl14 '
       'or vitl16; without, what suits the device.')
  flags.DEFINE_list(
      'stages', [], 'Only these stages of --recipe, such as gram,highres.',
      flag_values=values)
  text('workdir', 'Folder of the run, local or gs://; the same command with '
       'the same folder resumes.')
  call.cache_flag(values)
  flags.DEFINE_integer(
      'stopped_exit_code', 0, 'Exit code when a signal ended the run before '
      'its last step; schedulers that start only failed jobs again need '
      'another than 0, such as 143.', flag_values=values)


def stopped_exit_code(values: flags.FlagValues) -> int:
  """The exit code after a signal."""
  return values.stopped_exit_code


def main(values: flags.FlagValues, words: list[str]) -> int:
  """Runs training; 0 when it ended, --stopped_exit_code after a signal."""
  del words
  finished = training.train(training.Request(**{
      name: values[name].value for name in (
          'config', 'recipe', 'data', 'validation', 'model', 'stages',
          'workdir', 'compile_cache')}))
  return 0 if finished else values.stopped_exit_code
