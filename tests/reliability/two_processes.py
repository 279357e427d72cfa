"""One of two processes that save, hold and restore together.

  python -m tests.reliability.two_processes DIR save|restore
"""

import pathlib
import sys

import jax

jax.config.update('jax_num_cpu_devices', 2)

from etils import epath

from dinojax.core import errors
from dinojax.engine import checkpoint
from dinojax.parallel import holder
from dinojax.parallel import processes
from tests.reliability import test_checkpoints


def main(folder: str, what: str):
  processes.initialize()
  wanted = test_checkpoints.shapes(test_checkpoints.split(6))
  if what == 'save':
    with holder.Holder(epath.Path(folder)):
      saved = checkpoint.Checkpoints(folder, keep=3, writes=True)
      for step in (4, 6):
        saved.save(step, test_checkpoints.split(step))
      saved.close()
    print(test_checkpoints.SAID, 'saved', flush=True)
  else:
    # What one process reads is damaged: for the other, all is well.
    if what == 'damaged' and jax.process_index() == 1:
      real = checkpoint.Checkpoints._read
      checkpoint.Checkpoints._read = lambda self, step, parts: (
          (None, 'bytes') if step == 6 else real(self, step, parts))
    saved = checkpoint.Checkpoints(folder, writes=True)
    try:
      saved.restore(wanted, 6)
      print(test_checkpoints.SAID, 'whole', flush=True)
    except checkpoint.Damaged:
      place = saved.set_aside(6)
      saved.restore(wanted, 4)
      print(test_checkpoints.SAID, 'damaged', saved.steps(), place.exists(),
            flush=True)
    saved.close()
    try:
      with holder.Holder(epath.Path(folder)):
        print(test_checkpoints.SAID, 'held', flush=True)
    except errors.UserError as error:
      print(test_checkpoints.SAID, 'in use' if 'is in use' in str(error)
            else error, flush=True)
  jax.distributed.shutdown()


if __name__ == '__main__':
  main(str(pathlib.Path(sys.argv[1]).absolute()), sys.argv[2])
