"""Files that are there whole or not at all, whatever stops the writer.

A kill, a full disk or a power cut leaves the old file or the new one: what a
later start reads is written here, and nowhere else.
"""

from collections.abc import Iterator
import contextlib
import errno
import json
import os
import tempfile
from typing import Any

from etils import epath

from dinojax.core import errors
from dinojax.core import paths

SUFFIX = '.tmp'  # of a file that is not whole yet
# Disks that cannot be asked to write now: some network and user-space ones.
_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}


def check_out(out: str):
  """Makes the folder of a file that a command is to write.

  Raises:
    UserError: not possible, or not a local path.
  """
  if '://' in out:
    raise errors.UserError(
        f'--out={out} is not a local path: write to a disk and copy the file')
  path = epath.Path(paths.expand(out))
  try:
    if path.is_dir():
      raise IsADirectoryError(errno.EISDIR, 'it is a folder')
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent):
      pass
  except OSError as error:
    raise errors.UserError(
        f'--out={out} cannot be written: {error.strerror or error}; choose '
        'a file in a folder of yours') from error


def write_text(path: epath.PathLike, text: str):
  """Writes UTF-8 text; see `write_bytes`."""
  write_bytes(path, text.encode())


def write_bytes(path: epath.PathLike, data: bytes):
  """Puts a whole file in the place of the old one, if there is one.

  Local data are on the disk before the file takes its name. An object store
  shows an object when all of it has arrived, so there it is written at once.

  Raises:
    OSError: it could not be written; the old file is as it was.
  """
  path = epath.Path(path)
  if not is_local(path):
    path.write_bytes(data)
    return
  with replacing(path) as temporary, open(temporary, 'wb') as file:
    file.write(data)


@contextlib.contextmanager
def replacing(path: epath.PathLike) -> Iterator[epath.Path]:
  """A path beside a local file, to be written by any library.

  At the end of the `with` it is on the disk and takes the file's name; after
  an error it is removed.
  """
  path = epath.Path(path)
  temporary = path.parent / (path.name + SUFFIX)
  try:
    yield temporary
    sync(temporary)
    os.replace(temporary, path)
  except BaseException:
    with contextlib.suppress(OSError):  # the first error is the one to tell
      os.unlink(temporary)
    raise
  sync(path.parent)


def sync(path: epath.PathLike):
  """Waits until a local file, or the names in a folder, are on the disk."""
  number = os.open(path, os.O_RDONLY)
  try:
    os.fsync(number)
  except OSError as error:
    if error.errno not in _NO_SYNC:
      raise
  finally:
    os.close(number)


def is_local(path: epath.PathLike) -> bool:
  """Tells whether a path is on this machine, not in an object store."""
  return '://' not in os.fspath(path)


def read_json(path: epath.PathLike, fix: str) -> dict[str, Any]:
  """Reads the object in a small JSON file.

  Args:
    path: an existing file.
    fix: end of the sentence when it cannot be read: the remedy.

  Raises:
    UserError: it is empty, cut short, or no JSON object.
  """
  path = epath.Path(path)
  try:
    data = path.read_bytes()
    content = json.loads(data)
    if not isinstance(content, dict):
      raise ValueError(f'a {type(content).__name__}, not an object')
    return content
  except (ValueError, RecursionError) as error:
    state = 'is empty' if not data.strip(b'\0 \r\n') else (
        f'is not whole ({error})')
    raise errors.UserError(
        f'{path} {state}: a full disk, a power cut or a copy that broke off '
        f'leaves such a file; {fix}') from error
  except OSError as error:
    raise errors.UserError(
        f'{path} cannot be read: {error.strerror or error}; {fix}') from error
