"""`dinojax configs [--copy=NAME --out=mine.py]`.

Lists the configs and recipes that come with dinojax, or copies one to start
from: a file that works in any folder, given to --config by its path.
"""

import pathlib
import sys

from absl import app
from absl import flags

from dinojax import catalog
from dinojax import commandline
from dinojax.core import errors

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
      copy(_COPY.value, _OUT.value)
    elif _OUT.value:
      raise errors.UserError(
          f'--out={_OUT.value} needs --copy=NAME, the config to copy')
    else:
      print(listing())
  except errors.UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  return 0


def listing() -> str:
  """A line for each config and each recipe."""
  lines = []
  for flag, known in (('config', catalog.configs()),
                      ('recipe', catalog.recipes())):
    lines += [f'--{flag}=NAME', *(
        f'  {name:16}  {catalog.summary(path)}'
        for name, path in known.items()), '']
  return '\n'.join([
      *lines, 'NAME:smoke runs the same code in seconds. '
      '`dinojax configs --copy=NAME --out=mine.py`', 'writes one to start '
      'from, `dinojax train --help` says what its fields mean.'])


def copy(name: str, out: str | None):
  """Writes a config as a file of one's own.

  Raises:
    UserError: no such config, or the file is there or cannot be written.
  """
  flag = 'recipe' if name in catalog.recipes() else 'config'
  text = catalog.locate(name, flag).read_text()
  if not out:
    raise errors.UserError(
        f'--copy={name} needs --out=FILE, such as --out=mine.py')
  path = pathlib.Path(out).expanduser()
  if path.suffix != '.py':
    raise errors.UserError(f'--out={out} must end in .py')
  text = text.replace(f'--{flag}={name}', f'--{flag}={out}')
  try:
    with path.open('x') as file:
      file.write(text)
  except FileExistsError as error:
    raise errors.UserError(
        f'--out={out} exists: give another name, or remove it') from error
  except OSError as error:
    raise errors.UserError(
        f'--out={out} cannot be written: {error.strerror}') from error
  print(f'wrote {out}: dinojax train --{flag}={out} --workdir=runs/mine')


def entry():
  """The `configs` entry of the console command."""
  commandline.run(main, 'configs')


if __name__ == '__main__':
  entry()
