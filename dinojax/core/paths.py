"""The one rule for paths: '~' is the home of who gives the command.

It is expanded once, where a path enters (a flag, a config, an argument), and
what is written down, config.json above all, holds no '~': another user who
reads it means the same folder.
"""

from collections.abc import Mapping, Sequence
import os
import re
from typing import Any

from dinojax.core import errors

# '~', '~/x' or '~user/x', alone or after a scheme: 'folder:~/images'.
_HOME = re.compile(
    r'((?:folder|arrayrecord):|tfds:[^?]*\?(?:.*&)?data_dir=|)'
    r'(~[\w.-]*)(?=/|$|&)(.*)', re.ASCII | re.DOTALL)


_STORES = ('gs://', 's3://', 'az://')  # what etils.epath reads


def expand(path: str | os.PathLike) -> str:
  """A path with the home it means; all else as it is, gs:// too.

  Raises:
    UserError: there is no such user, so no such home; or it is a URL.
  """
  text = os.fspath(path)
  if re.match(r'[A-Za-z][\w+.-]*://', text) and not text.startswith(_STORES):
    raise errors.UserError(
        f'{text} is no path: give one of this machine or of an object store '
        f'({", ".join(_STORES)}); download what is elsewhere first')
  return _with_home(text)


def _with_home(text: str) -> str:
  match = _HOME.fullmatch(text)
  if match is None:
    return text
  scheme, name, rest = match.groups()
  home = os.path.expanduser(name)
  if home == name:
    raise errors.UserError(
        f'{text}: there is no home folder of {name.removeprefix("~") or "you"}'
        ': write the whole path, or ./~ for a folder of that name')
  return scheme + home + rest


def expand_all(value: Any) -> Any:
  """Nested dicts and lists with every path in them expanded.

  In a config only paths begin with '~', so that keys need not be known.
  """
  if isinstance(value, str):
    return _with_home(value)
  if isinstance(value, Mapping):
    return {key: expand_all(inner) for key, inner in value.items()}
  if isinstance(value, Sequence) and not isinstance(value, bytes):
    return type(value)(map(expand_all, value)) if (
        type(value) in (list, tuple)) else value
  return value
