"""Threads of the libraries that a task computes with.

A task of which many run at a time gets one thread, so that processes do not
contend for cores, and sums are added in one order whatever their number: what
a task writes is the same by every engine. A task that has a machine gets all.
"""

from collections.abc import Iterator
import contextlib
import os
import sys

import threadpoolctl

_allowed: list[int] = []
_known: list[tuple[int, threadpoolctl.ThreadpoolController]] = []


@contextlib.contextmanager
def limited(*, whole: bool) -> Iterator[None]:
  """Threads of the libraries that are loaded, until the end of the `with`.

  Args:
    whole: True: as many as this process has cores; False: one.
  """
  count = len(os.sched_getaffinity(0)) if whole else 1
  _allowed.append(count)
  try:
    with _controller().limit(limits=count):
      yield
  finally:
    _allowed.pop()


def again():
  """The same for a library that a task has just loaded."""
  if _allowed:
    _controller().limit(limits=_allowed[-1])


def _controller() -> threadpoolctl.ThreadpoolController:
  """The libraries, looked for again only when modules were imported since.

  To look through what a process has mapped takes a millisecond, and k-means
  asks for every block.
  """
  if not _known or _known[-1][0] != len(sys.modules):
    _known[:] = [(len(sys.modules), threadpoolctl.ThreadpoolController())]
  return _known[-1][1]
