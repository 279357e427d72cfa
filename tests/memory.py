"""The memory of this process and of all that it started, at its highest.

Of Linux; elsewhere it is not known. Mapped files (libraries) are counted once,
what a forked process shares with the one it came from in both: the true peak is
lower, if anything.
"""

import os
import pathlib
import threading

_PROC = pathlib.Path('/proc')
_EVERY_S = 2.0


def family(root: int) -> list[int]:
  """A process and its descendants that are alive."""
  parents = {}
  for path in _PROC.glob('[0-9]*/stat'):
    try:
      # pid (name) state ppid …; a name may hold anything.
      parents[int(path.parent.name)] = int(
          path.read_text().rpartition(')')[2].split()[1])
    except OSError:  # it has ended
      continue
  pids = [root]
  for pid in pids:
    pids += [child for child, parent in parents.items() if parent == pid]
  return pids


def gib(pids: list[int]) -> float:
  """Of these processes together; 0 where that is not known."""
  private, files = 0, 0
  for pid in pids:
    try:
      text = (_PROC / str(pid) / 'statm').read_text()
    except OSError:
      continue
    resident, shared = map(int, text.split()[1:3])
    private, files = private + resident - shared, max(files, shared)
  return (private + files) * os.sysconf('SC_PAGE_SIZE') / 2**30


class Peak(threading.Thread):
  """Looks every two seconds, until the process ends."""

  def __init__(self):
    super().__init__(daemon=True)
    self.gib = 0.0
    self._root = os.getpid()
    self._ended = threading.Event()

  def run(self):
    while not self._ended.wait(_EVERY_S):
      self.gib = max(self.gib, gib(family(self._root)))

  def stop(self) -> float:
    """The peak in GiB."""
    self._ended.set()
    return self.gib
