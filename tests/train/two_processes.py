"""Runs the tiny recipe in one of two processes of two CPU devices each.

  python -m tests.train.two_processes OUT DIR:0:2 …   parts of it, saved
"""

import os
import pathlib
import pickle
import sys

import jax
from jax._src import distributed

jax.config.update('jax_num_cpu_devices', 2)
jax.config.update('jax_default_matmul_precision', 'highest')
jax.config.update('jax_compilation_cache_dir', os.environ['CACHE'])

from dinojax.parallel import processes
from tests.train import resumed


def part(text: str):
  workdir, start, end = text.rsplit(':', 2)
  return resumed.steps(pathlib.Path(workdir), (2, 2), int(start), int(end))


def main(out: str, *parts: str):
  processes.initialize()
  resumed.program((2, 2))
  # The first collective gives up after 30 s, and one process may compile
  # what the other finds compiled.
  distributed.global_state.client.wait_at_barrier('compiled', 600_000)
  result = [part(text) for text in parts]
  if jax.process_index() == 0:
    with open(out, 'wb') as f:
      pickle.dump(result, f)
  jax.distributed.shutdown()


if __name__ == '__main__':
  main(*sys.argv[1:])
