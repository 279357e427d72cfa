"""`dinojax crops --config=demo --out=crops.png`.

The first training batch after augmentation, as a picture: the quickest way to
see whether a config treats your images well.
"""

import sys

from absl import flags
import jax
import numpy as np

from dinojax.commands import commandline
from dinojax.commands import entry as entry_lib
from dinojax.core import errors
from dinojax.core import paths
from dinojax.core import text
from dinojax.data import sources
from dinojax.runs import job
from dinojax.runs import pictures
from dinojax.train import recipe as recipe_lib
from dinojax.train import settings as settings_lib

_CONFIG = commandline.config_flag(
    'config', 'Config to draw: a name of `dinojax configs`, or a file.')
_OUT = flags.DEFINE_string('out', 'crops.png', 'Picture to write.')
_COUNT = flags.DEFINE_integer('count', 8, 'Images shown.', lower_bound=1)


@entry_lib.guarded()
def main(argv: list[str]) -> int:
  """Writes the picture."""
  del argv
  try:
    settings = recipe_lib.resolve(settings_lib.read(_CONFIG.value), 'cpu')
    training = [(sources.open_training(spec), weight)
                for spec, weight in settings.data.mixture]
    batch = next(job.batches(settings, training, [], 0))
  except errors.UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  for problem in batch['problems']:
    print(f'replaced: {text.printable(problem["name"])}: '
          f'{text.printable(problem["reason"])}')
  names = ('global', 'local', 'mask', 'row')
  batch = {k: v[:_COUNT.value] for k, v in batch.items() if k in names}
  seen = jax.jit(lambda b: recipe_lib.prepare(settings, b, 0))(batch)
  sheet = pictures.contact_sheet(
      jax.tree.map(np.asarray, seen), settings.augment.mean,
      settings.augment.std, _COUNT.value)
  sheet.save(paths.expand(_OUT.value))
  print(f'wrote {_OUT.value}')
  return 0


def entry():
  """The `crops` entry of the console command."""
  commandline.run(main, 'crops', required=['config'])


if __name__ == '__main__':
  entry()
