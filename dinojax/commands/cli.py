"""The `dinojax` command: one word for each entry point.

  dinojax train --config=demo --workdir=runs/demo
  dinojax crops --config=demo --out=crops.png
  dinojax convert records --source=folder:DIR --out=DIR
"""

import difflib
import os
import sys

from dinojax import commands
from dinojax.core import signals


def main():
  """Runs a subcommand; its flags follow."""
  # To the very end, which a failed process of several waits for.
  signals.watch('nothing was begun yet; the same command begins again',
                signals.stopped_exit_code(sys.argv)
                if sys.argv[1:2] == ['train'] else None)
  # `python -m` looks in the current folder; so does the installed command,
  # for what a config of one's own imports.
  sys.path.insert(0, os.getcwd())
  words = sys.argv[1:]
  if not words or words[0] in ('-h', '--help', 'help'):
    print(_usage())
    sys.exit(0)
  if words[0] not in commands.COMMANDS:
    near = difflib.get_close_matches(words[0], commands.COMMANDS, 2, 0.5)
    hint = f': did you mean {" or ".join(near)}?' if near else ''
    print(f'error: dinojax {words[0]} is not a command{hint}\n{_usage()}',
          file=sys.stderr)
    sys.exit(2)
  # What a worker process or a message takes for the program's name.
  sys.argv = [f'dinojax.commands.{words[0]}', *words[1:]]
  sys.exit(commands.run(words[0], words[1:]))


def _usage() -> str:
  width = max(map(len, commands.COMMANDS))
  lines = [f'  {name:{width}}  {text}'
           for name, text in commands.COMMANDS.items()]
  return '\n'.join([
      'usage: dinojax COMMAND [--flags]', *lines,
      '`dinojax COMMAND --help` lists the flags.'])
