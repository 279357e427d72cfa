"""One holder of a folder: two runs in one would destroy each other's files.

A lock of the operating system, which ends with its process however that ends.
Readers need none, and are not kept away.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
from typing import TextIO

from etils import epath
import jax

from dinojax.core import atomic
from dinojax.core import errors
from dinojax.core import output
from dinojax.parallel import processes

NAME = 'lock'
# Disks without locks: object stores behind a mount, some network disks.
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}


class Holder(contextlib.AbstractContextManager):
  """The right to write into a folder, of all processes of a run.

  Use as a context manager; the first process asks for all.
  """

  def __init__(self, folder: epath.Path):
    self._folder, self._file = folder, None

  def __enter__(self):
    """Takes the folder.

    Raises:
      UserError: another run has it, with who and since when.
    """
    error = None
    if processes.is_first():
      try:
        self._file = self._take()
      except errors.UserError as refused:
        error = refused
      except OSError as refused:
        error = errors.cannot_write(f'--workdir={self._folder}', refused)
    processes.first_raises(error)
    return self

  def __exit__(self, *_):
    if self._file:
      self._file.close()  # the file stays: it says who was here last

  def _take(self) -> TextIO | None:
    if not atomic.is_local(self._folder):
      output.warn(f'{self._folder}: an object store knows no locks, so nothing '
                  'keeps a second run out of it: start none')
      return None
    file = open(self._folder / NAME, 'a+')  # noqa: SIM115 (held for the run)
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      file.seek(0)
      with file:
        raise errors.UserError(
            f'{self._folder} is in use{_who(file.read())}: wait until that '
            'run ends or stop it (it saves first), or use another --workdir'
        ) from error
    except OSError as error:
      file.close()
      if error.errno not in _NO_LOCKS:
        raise
      output.warn(f'{self._folder}: this disk knows no locks '
                  f'({error.strerror}), so nothing keeps a second run out of '
                  'it: start none')
      return None
    file.truncate(0)
    file.write(json.dumps({
        'host': socket.gethostname(), 'process': os.getpid(),
        'processes': jax.process_count(),
        'since': datetime.datetime.now().astimezone().isoformat(
            timespec='seconds')}) + '\n')
    file.flush()
    return file

  def is_lost(self) -> bool:
    """Tells whether the folder that was taken was removed or replaced.

    Only the first process knows; the others get False.
    """
    if self._file is None:
      return False
    try:
      there = os.stat(self._folder / NAME)
    except FileNotFoundError:
      return True
    return not os.path.samestat(there, os.fstat(self._file.fileno()))


def _who(text: str) -> str:
  """Names the holder of a folder, from the text of its lock."""
  try:
    told = json.loads(text)
    return (f' by process {told["process"]} on {told["host"]} since '
            f'{told["since"]}')
  except (ValueError, KeyError, TypeError):
    return ' by another run'  # which has not written yet
