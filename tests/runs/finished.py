"""A run that has ended, with all that a run can leave; made once.

Processes of one call of pytest share it: the first that asks makes it, and
the others wait for it.
"""

import fcntl
import functools
import os
import pathlib

from tests.runs import test_run


@functools.cache
def run() -> tuple[pathlib.Path, str]:
  """Its folder, which no test changes, and what it printed.

  Six steps, each saved and measured, of which the best is kept.
  """
  root = pathlib.Path(os.environ['DINOJAX_TESTS_SHARED'])
  folder, printed = root / 'plankton', root / 'printed.txt'
  with open(root / 'lock', 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not printed.exists():
      code, text = test_run.run(
          folder, '--config.export.formats=hf, timm',
          '--config.checkpoint.keep_best=True', '--config.checkpoint.keep=1',
          '--config.checkpoint.every_steps=1', '--config.knn.every_steps=1',
          '--config.report.at_end=True', '--config.report.patch_images=2',
          '--config.crops.num_local=0')  # a quarter of what is compiled
      assert code == 0, text
      printed.write_text(text)
  return folder, printed.read_text()
