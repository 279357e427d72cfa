"""Libraries that are loaded when they are first needed."""

import logging
import types

from dinojax.curate.engines import threads


def faiss() -> types.ModuleType:
  """faiss, without its lines about what it loads, with the task's threads."""
  logging.getLogger('faiss.loader').setLevel(logging.WARNING)
  import faiss as module  # a second, which reading a config need not wait for
  threads.again()
  return module
