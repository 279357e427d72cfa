"""`dinojax configs [--copy=NAME --out=mine.py]`.

Lists the configs and recipes that come with dinojax, or copies one to start
from: a file that works in any folder, given to --config by its path.
"""

import sys

from absl import app
from absl import flags

from dinojax.commands import commandline
from dinojax.core import errors
from dinojax.runs import catalog

_COPY = flags.DEFINE_string('copy', None, 'Name of the one to copy.')
_OUT = flags.DEFINE_string('out', None, 'File that --copy writes, mine.py.')


def main(argv: list[str]) -> int:
  """Prints the list, or writes the copy."""
  if len(argv) > 1:
    raise app.UsageError(
        f'unexpected arguments {argv[1:]}: `dinojax configs` lists all, '
        '--copy=NAME --out=FILE copies one')
  try:
    if _COPY.value:
      print(catalog.copy(_COPY.value, _OUT.value))
    elif _OUT.value:
      raise errors.UserError(
          f'--out={_OUT.value} needs --copy=NAME, the config to copy')
    else:
      print(catalog.listing())
  except errors.UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  return 0


def entry():
  """The `configs` entry of the console command."""
  commandline.run(main, 'configs')


if __name__ == '__main__':
  entry()
