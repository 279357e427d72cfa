"""Exceptions that end a run without a stack trace."""

import errno

from dinojax.core import text

FULL = {errno.ENOSPC, errno.EDQUOT}  # of a disk, or of a share of it


class UserError(ValueError):
  """Something the user can fix: the message names the value and the fix."""

  def __init__(self, message: str):
    # Names that it quotes may come from others.
    super().__init__(text.visible(str(message)))


def cannot_write(what: str, error: OSError) -> UserError:
  """A sentence about a disk that refuses, for `raise … from error`."""
  fix = ('free space and start the same command again'
         if error.errno in FULL else
         'a file is where a folder is to be: move it away, or name another '
         'folder' if error.errno in (errno.EEXIST, errno.ENOTDIR) else
         'choose a folder you may write to, or mount its disk for writing')
  return UserError(
      f'{what} cannot be written: {error.strerror or error}; {fix}')


class Stopped(Exception):
  """A signal has ended the work, which told so; what was done is kept."""
