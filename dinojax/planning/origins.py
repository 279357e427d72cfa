"""Functions of this package that the instructions of a program come from.

A program's text lists stack frames; an instruction names the innermost.
"""

from collections.abc import Iterator
import pathlib
import re

_TABLES = ('FileNames', 'FunctionNames', 'FileLocations', 'StackFrames')
_QUOTED = re.compile(r'^(\d+) "(.*)"$')
_NUMBERS = re.compile(r'^(\d+) \{(.*)\}$')
_FIELD = re.compile(r'(\w+)=(\d+)')


class Origins:
  """Functions by the number of a stack frame.

  Args:
    text: `compiled.as_text()` of the program.
    package: folder whose functions are looked for.
  """

  def __init__(self, text: str, package: str = 'dinojax'):
    self._package = f'/{package}/'
    self._tables: dict[str, dict] = {name: {} for name in _TABLES}
    for table, line in _rows(text):
      quoted, numbers = _QUOTED.match(line), _NUMBERS.match(line)
      if quoted:
        self._tables[table][int(quoted.group(1))] = quoted.group(2)
      elif numbers:
        self._tables[table][int(numbers.group(1))] = {
            name: int(n) for name, n in _FIELD.findall(numbers.group(2))}

  def of(self, frame: int) -> str:
    """'layers.SwiGlu.__call__' for a frame; '' outside of the package."""
    files, functions, locations, frames = (
        self._tables[name] for name in _TABLES)
    while frame in frames:
      location = locations.get(frames[frame]['file_location_id'], {})
      path = files.get(location.get('file_name_id'), '')
      if self._package in path:
        name = functions.get(location.get('function_name_id'), '')
        return f'{pathlib.PurePath(path).stem}.{name.partition(".<loc")[0]}'
      frame = frames[frame].get('parent_frame_id', 1) - 1  # counted from one
    return ''


def _rows(text: str) -> Iterator[tuple[str, str]]:
  """(table, line) of the tables before the first computation."""
  table = ''
  for line in text.splitlines():
    if line in _TABLES:
      table = line
    elif not line:
      table = ''
    elif table:
      yield table, line
