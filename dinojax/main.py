"""`python -m dinojax.main --config=… --workdir=…`, which is `dinojax train`."""

import sys

from dinojax.core import signals

if __name__ == '__main__':  # before imports that take seconds
  signals.watch('nothing was begun yet; the same command begins again',
                signals.stopped_exit_code(sys.argv))

from dinojax import commands


def entry():
  """Runs `train` with the words of this program."""
  sys.exit(commands.run('train', sys.argv[1:]))


if __name__ == '__main__':
  entry()
