"""`dinojax crops --config=demo --out=crops.png`.

The first training batch after augmentation, as a picture: the quickest way to
see whether a config treats your images well.
"""

from absl import flags

from dinojax.commands import call
from dinojax.core import paths
from dinojax.runs import batch_picture
from dinojax.runs import pictures

REQUIRED = ('config',)


def define(values: flags.FlagValues, argv: list[str]):
  """Defines the flags of one call."""
  call.config_flag(
      'config', 'Config to draw: a name of `dinojax configs`, or a file.',
      values, argv)
  call.texts(values)('out', 'Picture to write.', 'crops.png')
  call.numbers(values)('count', 'Images shown.', 8)


def main(values: flags.FlagValues, words: list[str]) -> int:
  """Writes the picture."""
  del words
  out = paths.expand(values.out)
  pictures.check_out(out)
  batch_picture.draw(values.config, values.count).save(out)
  print(f'wrote {values.out}')
  return 0
