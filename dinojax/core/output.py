"""Lines to the user, which never end a program: a terminal may go before it.

A closed pipe (`… | head`), a terminal that was closed, a full disk under a
redirected log: what cannot be printed is left out, and that is said once.
"""

from collections.abc import Iterable
import contextlib
import errno
import logging
import os
import sys
from typing import Any, TextIO
import warnings

from absl import logging as absl_logging

from dinojax.core import text

# What nobody will ever read again; a full disk may have space later.
_GONE = {errno.EPIPE, errno.EIO, errno.EBADF}
_CLEAR = '\r\x1b[2K'
COLUMNS = 80


class Steady:
  """A stream that can fail without consequences."""

  live: 'Steady | None' = None  # the stream on which a line is rewritten

  def __init__(self, stream: TextIO, name: str):
    self._stream, self._name, self._failed = stream, name, False

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)

  def write(self, words: str) -> int:
    """Writes what can be written."""
    if words and Steady.live is not None:
      stream, Steady.live = Steady.live, None
      stream.write(_CLEAR)
      stream.flush()
    with self._noted():
      self._stream.write(words)
    return len(words)

  def writelines(self, lines: Iterable[str]):
    """Writes what can be written."""
    for line in lines:
      self.write(line)

  def flush(self):
    """Flushes if it can."""
    with self._noted():
      self._stream.flush()

  def rewrite(self, line: str):
    """Puts `line` in place of the last line that was put so."""
    Steady.live = None
    self.write(_CLEAR + line)
    self.flush()
    Steady.live = self

  @contextlib.contextmanager
  def _noted(self):
    try:
      yield
    except (OSError, ValueError) as error:  # ValueError: closed
      self._fail(error)

  def _fail(self, error: Exception):
    if getattr(error, 'errno', None) in _GONE:
      # Also for libraries, and for Python's own flush at the end.
      with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)
    if self._failed:
      return
    self._failed = True
    other = sys.stdout if sys.stderr is self else sys.stderr
    if other is not None and other is not self:
      other.write(f'warning: {self._name} is closed or full '
                  f'({getattr(error, "strerror", None) or error}): what goes '
                  'there from now on is lost, and the program goes on\n')
      other.flush()


def install():
  """Makes stdout and stderr of this process steady, and warnings sentences."""
  text.let_everything_print()
  for name in ('stdout', 'stderr'):
    stream = getattr(sys, name)
    if stream is None:  # closed before the program began
      stream = open(os.devnull, 'w')  # noqa: SIM115
    if not isinstance(stream, Steady):
      setattr(sys, name, Steady(stream, name))
  handler = absl_logging.get_absl_handler()
  handler.setFormatter(Sentences())
  handler.python_handler.setStream(sys.stderr)
  warnings.showwarning = _show_warning


class Sentences(logging.Formatter):
  """A log record as a line for the user: no file, no time."""

  def format(self, record: logging.LogRecord) -> str:
    """`warning: …` or `error: …`; a note has no word in front."""
    line = text.visible(super().format(record))
    if record.levelno < logging.WARNING:
      return line
    return f'{record.levelname.lower()}: {line}'


def _show_warning(message, category, filename, lineno, file=None, line=None):
  del category, filename, lineno, line
  print(f'warning: {message}', file=file or sys.stderr, flush=True)


def warn(sentence: str):
  """Says that something is not as it should be."""
  print(f'warning: {text.visible(sentence)}', file=sys.stderr, flush=True)


def fitted(parts: list[tuple[int, str]], columns: int = COLUMNS) -> str:
  """Joins parts of a line, without the least important if it is too long.

  Args:
    parts: (rank, text) in order; the highest ranks go first, 0 always stays.
    columns: width of the terminal.
  """
  parts = list(parts)
  join = lambda: ' · '.join(text for _, text in parts)
  while len(join()) >= columns and any(rank for rank, _ in parts):
    parts.remove(max(parts, key=lambda part: part[0]))
  return join()
