"""Sources that a user writes: `python:MODULE:CLASS[:TEXT]`."""

import importlib
import sys

from dinojax.core import errors
from dinojax.data import record as record_lib

_MEMBERS = ('spec', 'classes', '__len__', '__getitem__')


def make(rest: str) -> record_lib.Source:
  """The source that CLASS() or CLASS(TEXT) of a module is.

  Args:
    rest: 'MODULE:CLASS' or 'MODULE:CLASS:TEXT'; the module is looked for in
      the current folder too. It must be importable in worker processes.

  Raises:
    UserError: no such module or class, or one that is no source.
  """
  spec = f'python:{rest}'
  module, _, name = rest.partition(':')
  name, _, text = name.partition(':')
  if '' not in sys.path:
    sys.path.insert(0, '')
  try:
    cls = getattr(importlib.import_module(module), name)
  except (ImportError, AttributeError, ValueError) as error:
    raise errors.UserError(
        f'data source {spec!r} cannot be made: {error}; write '
        'python:MODULE:CLASS, with MODULE.py in this folder or installed'
    ) from error
  source = cls(text) if text else cls()
  lacks = [member for member in _MEMBERS if not hasattr(source, member)]
  if lacks:
    raise errors.UserError(
        f'data source {spec!r} lacks {", ".join(lacks)}: a source has '
        f'{", ".join(_MEMBERS)} (docs/your_data.md)')
  return source
