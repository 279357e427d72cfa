"""An image of a pool, before anybody has looked at it."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol


class Entry(NamedTuple):
  """Where an image lies, and what is known of it.

  Attributes:
    name: stable identity within the pool.
    file: file that it lies in, relative to the pool.
    offset: place in the file: a byte, a row or a record.
    size: bytes; -1: the whole file, or as its container says.
    url: address it was fetched from; ''.
    licence: as the pool has it; ''.
    caption: texts that came with it, a line for each; ''.
    problem: why there is no image; ''.
  """

  name: str
  file: str = ''
  offset: int = 0
  size: int = -1
  url: str = ''
  licence: str = ''
  caption: str = ''
  problem: str = ''


class Pool(Protocol):
  """Images in files that are listed one by one; picklable.

  Attributes:
    spec: as the config names it.
  """

  spec: str

  def files(self) -> Sequence[str]:
    """Files, sorted, each to be listed by a task."""

  def order(self) -> Sequence[str]:
    """Lines that say whether the pool is as it was."""

  def entries(self, file: str) -> Iterator[Entry]:
    """Images of a file, in a fixed order."""

  def read(self, file: str, offset: int, size: int) -> bytes:
    """Encoded bytes of an entry; an OSError where there are none."""


def caption(value: Any) -> str:
  """A line for a text, and for each of several; '' for nothing."""
  several = value if isinstance(value, list | tuple) else [value]
  lines = (' '.join(str(text or '').split()) for text in several)
  return '\n'.join(line for line in lines if line)
