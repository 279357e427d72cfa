"""Runs the tiny recipe in one of two processes of four CPU devices each."""

import os
import pickle
import sys

import jax

jax.config.update('jax_num_cpu_devices', 4)
jax.config.update('jax_default_matmul_precision', 'highest')
jax.config.update('jax_compilation_cache_dir', os.environ['CACHE'])

from dinojax.parallel import processes
from tests.train import tiny


def main():
  processes.initialize()
  result = tiny.run((2, 4))
  if jax.process_index() == 0:
    with open(sys.argv[1], 'wb') as f:
      pickle.dump(result, f)
  jax.distributed.shutdown()


if __name__ == '__main__':
  main()
