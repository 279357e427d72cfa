"""Packages that read captions, which a user installs."""

import importlib
import types

from dinojax.core import errors


def package(name: str) -> types.ModuleType:
  """A package of the extra `text`.

  Raises:
    UserError: it is not installed.
  """
  try:
    return importlib.import_module(name)
  except ImportError as error:
    raise errors.UserError(
        f'captions are read with the package {name}: pip install '
        '"dinojax[text]"') from error
