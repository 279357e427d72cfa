"""The `dinojax` command: one word for each entry point.

  dinojax train --config=configs/demo.py --workdir=runs/demo
  dinojax crops --config=configs/demo.py --out=crops.png
  dinojax convert records --source=folder:DIR --out=DIR
"""

import importlib
import os
import sys

from dinojax.core import text

COMMANDS = {
    'train': ('dinojax.main', 'train or resume a run'),
    'crops': ('dinojax.crops', 'draw the first training batch as a picture'),
    'embed': ('dinojax.embed', 'features of a folder of images, as a file'),
    'pca': ('dinojax.pca', 'draw patch features of images in colour'),
    'compile': ('dinojax.compile', 'what a config needs on a machine'),
    'doctor': ('dinojax.doctor', 'what is wrong, or slow, before a run'),
    'convert': ('dinojax.convert', 'images to records, weights in and out'),
}


def main():
  """Runs a subcommand; its flags follow."""
  # `python -m` looks in the current folder; so does the installed command,
  # which finds configs/ there.
  sys.path.insert(0, os.getcwd())
  text.let_everything_print()
  words = sys.argv[1:]
  if not words or words[0] not in COMMANDS:
    width = max(map(len, COMMANDS))
    lines = [f'  {name:{width}}  {text}'
             for name, (_, text) in COMMANDS.items()]
    asked = bool(words) and words[0] not in ('-h', '--help', 'help')
    print('usage: dinojax COMMAND [--flags]\n' + '\n'.join(lines)
          + '\n`dinojax COMMAND --help` lists the flags.',
          file=sys.stderr if asked else sys.stdout)
    sys.exit(2 if asked else 0)
  name = COMMANDS[words[0]][0]
  module = importlib.import_module(name)
  # --help shows the flags of the module that argv names, under its docstring.
  sys.argv = [name, *words[1:]]
  sys.modules['__main__'].__doc__ = module.__doc__
  module.entry()
