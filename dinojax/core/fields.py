"""Types of config fields with what they allow, and the texts beside them.

A field says its range by its type, and its meaning by the comment on its
line, or on the lines above it:

  num_local: fields.Natural = 8  # Local crops of an image.
"""

import dataclasses
import functools
import inspect
import io
import math
import tokenize
from typing import Annotated, Any

LARGEST = 2**31 - 1  # what an int32 of a device holds


@dataclasses.dataclass(frozen=True)
class Range:
  """Numbers from low to high, both included unless said otherwise."""

  low: float = -math.inf
  high: float = math.inf
  is_open_low: bool = False
  is_open_high: bool = False

  def holds(self, value: float) -> bool:
    """Tells whether a number lies in the range; nan lies in no range."""
    above = value > self.low if self.is_open_low else value >= self.low
    below = value < self.high if self.is_open_high else value <= self.high
    return above and below

  def __str__(self) -> str:
    if self.high >= LARGEST:
      return (f'above {self.low:g}' if self.is_open_low
              else f'{self.low:g} or more')
    return (f'in {"(" if self.is_open_low else "["}{self.low:g}, '
            f'{self.high:g}{")" if self.is_open_high else "]"}')


Natural = Annotated[int, Range(0, LARGEST)]
Positive = Annotated[int, Range(1, LARGEST)]
NonNegative = Annotated[float, Range(0.0)]
Above0 = Annotated[float, Range(0.0, is_open_low=True)]
Unit = Annotated[float, Range(0.0, 1.0)]
BelowOne = Annotated[float, Range(0.0, 1.0, is_open_high=True)]
Part = Annotated[float, Range(0.0, 1.0, is_open_low=True)]


def free(default: Any = dataclasses.MISSING, **kwargs) -> Any:
  """A field that does not change the result: workers, logging, devices."""
  return dataclasses.field(
      default=default, metadata={'free': True}, **kwargs)


@functools.cache
def texts(cls: type) -> dict[str, str]:
  """Meanings of a dataclass's fields, inherited ones included."""
  meanings: dict[str, str] = {}
  for base in reversed(cls.__mro__):
    if dataclasses.is_dataclass(base):
      meanings |= _comments(base)
  return {f.name: meanings.get(f.name, '') for f in dataclasses.fields(cls)}


def _comments(cls: type) -> dict[str, str]:
  """The comment of each line of a class that begins with a field's name."""
  meanings, above = {}, []
  for line in _lines(inspect.getsource(cls)):
    comments = [t.string.lstrip('# ') for t in line
                if t.type == tokenize.COMMENT]
    names = [t for t in line if t.type == tokenize.NAME]
    is_field = len(line) > 1 and line[0] in names and line[1].string == ':'
    if is_field:
      meanings[line[0].string] = ' '.join(above + comments)
    above = above + comments if comments and not names else []
  return meanings


def _lines(source: str) -> list[list[tokenize.TokenInfo]]:
  """Tokens of each line; one in brackets goes on to its end."""
  lines, current = [], []
  spaces = (tokenize.INDENT, tokenize.DEDENT)
  for token in tokenize.generate_tokens(io.StringIO(source).readline):
    if token.type in (tokenize.NEWLINE, tokenize.NL):
      if token.type == tokenize.NL and any(
          t.type != tokenize.COMMENT for t in current):
        continue  # inside brackets
      lines.append(current)
      current = []
    elif token.type not in spaces:
      current.append(token)
  return lines
