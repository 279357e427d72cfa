"""Lists in text files: lines, and tables of CSV, whoever wrote them.

A byte-order mark, lines that end as on Windows and empty ones are no matter.
"""

from collections.abc import Sequence
import csv
import io

from etils import epath

from dinojax.core import errors
from dinojax.core import text as text_lib

Row = dict[str, str]


def text(path: epath.Path, where: str = 'check the path') -> str:
  """The text of a file.

  Args:
    path: the file.
    where: place where it is had, or what to do, for messages.

  Raises:
    UserError: it is not there, or no text.
  """
  try:
    return path.read_bytes().decode('utf-8-sig')
  except FileNotFoundError as error:
    raise errors.UserError(f'{path} is missing: {where}') from error
  except OSError as error:
    raise errors.UserError(
        f'{path} cannot be read: {error.strerror or error}; {where}'
    ) from error
  except UnicodeDecodeError as error:
    raise errors.UserError(
        f'{path} is not UTF-8 text ({error.reason}): save it in UTF-8'
    ) from error


def lines(path: epath.Path, where: str = 'check the path') -> list[str]:
  """Lines that are not blank, without blanks around them; see `text`."""
  return [line.strip() for line in text(path, where).splitlines()
          if line.strip()]


def rows(path: epath.Path, columns: Sequence[str] = (),
         where: str = 'give the CSV file itself') -> list[Row]:
  """Lines of a CSV file by the names in its first line.

  Args:
    path: the file.
    columns: names that must be there.
    where: see `text`.

  Raises:
    UserError: no such file or column, no lines, or one of another length.
  """
  reader = csv.reader(io.StringIO(text(path, where), newline=''))
  table = [(reader.line_num, line) for line in reader if any(line)]
  head = [name.strip() for name in table[0][1]] if table else []
  missing = [name for name in columns if name not in head]
  if missing:
    raise errors.UserError(
        f'{path} has no column {", ".join(missing)}: its first line must name '
        f'{",".join(columns)}')
  if len(table) < 2:
    raise errors.UserError(
        f'{path} has no rows below its first line, which names the columns')
  for number, line in table[1:]:
    if len(line) != len(head):
      raise errors.UserError(
          f'{path}: line {number} has {len(line)} values, and the first line '
          f'{len(head)}: {text_lib.printable(",".join(line))}')
  return [dict(zip(head, map(str.strip, line), strict=True))
          for _, line in table[1:]]
