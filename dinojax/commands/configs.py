"""`dinojax configs [--copy=NAME --out=mine.py]`.

Lists the configs and recipes that come with dinojax, or copies one to start
from: a file that works in any folder, given to --config by its path.
"""

from absl import flags

from dinojax.commands import call
from dinojax.core import errors
from dinojax.runs import catalog


def define(values: flags.FlagValues, argv: list[str]):
  """Defines the flags of one call."""
  del argv
  text = call.texts(values)
  text('copy', 'Name of the one to copy.')
  text('out', 'File that --copy writes, mine.py.')


def main(values: flags.FlagValues, words: list[str]) -> int:
  """Prints the list, or writes the copy."""
  del words
  if values.copy:
    print(catalog.copy(values.copy, values.out))
  elif values.out:
    raise errors.UserError(
        f'--out={values.out} needs --copy=NAME, the config to copy')
  else:
    print(catalog.listing())
  return 0
