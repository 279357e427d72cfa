"""A run that has ended, with all that a run can leave; made once a process."""

import atexit
import functools
import pathlib
import shutil
import tempfile

from tests.runs import test_run


@functools.cache
def run() -> tuple[pathlib.Path, str]:
  """Its folder, which no test changes, and what it printed.

  Six steps, each saved and measured, of which the best is kept.
  """
  root = tempfile.mkdtemp()
  atexit.register(shutil.rmtree, root, ignore_errors=True)
  folder = pathlib.Path(root) / 'plankton'
  code, text = test_run.run(
      folder, '--config.export.formats=hf, timm',
      '--config.checkpoint.keep_best=True', '--config.checkpoint.keep=1',
      '--config.checkpoint.every_steps=1', '--config.knn.every_steps=1',
      '--config.report.at_end=True', '--config.report.patch_images=2',
      '--config.crops.num_local=0')  # a quarter of what is compiled
  assert code == 0, text
  return folder, text
