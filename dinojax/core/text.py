"""Text that can be shown: what names from outside may not do to a terminal.

Names of files, tensors and classes come from others. Where one is quoted, it
goes through `printable`; tables and JSON keep it as it is.
"""

import io
import sys
import unicodedata

# Other controls (Cc), such as escape and line feed; marks that turn the
# direction of writing or are invisible (Cf); line and paragraph separators;
# halves of a character (Cs), which is how names that are not UTF-8 are read.
_HIDDEN = ('Cc', 'Cf', 'Cs', 'Zl', 'Zp')
# Emoji and scripts are joined with these.
_HARMLESS = '\u200c\u200d\u00ad'


def printable(name: object) -> str:
  r"""A name on one line, with nothing in it that acts.

  Escape becomes `\x1b`, a line feed `\n`, bytes that are not text `\udce9`.
  """
  return ''.join(map(_shown, str(name)))


def visible(message: str) -> str:
  """A message of several lines: `printable` but for its line feeds."""
  return '\n'.join(map(printable, message.split('\n')))


def listed(names, most: int = 3) -> str:
  """The first few names, printable, and how many more there are."""
  names = list(names)
  rest = [f'{len(names) - most} more'] if len(names) > most else []
  return ', '.join([*map(printable, names[:most]), *rest])


def let_everything_print():
  """Streams show what their encoding lacks with a backslash, never fail."""
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors='backslashreplace')


def _shown(letter: str) -> str:
  if letter.isascii() and letter.isprintable():
    return letter
  if unicodedata.category(letter) in _HIDDEN and letter not in _HARMLESS:
    return letter.encode('unicode_escape').decode('ascii')
  return letter
