"""An image as stored, and what a source of images is."""

from typing import NamedTuple, Protocol


class Record(NamedTuple):
  """One image as stored.

  Attributes:
    image: encoded bytes.
    label: class index, -1 for none.
    name: stable identity within the source, such as a relative path.
  """

  image: bytes
  label: int
  name: str


class Source(Protocol):
  """A random-access sequence of records."""

  spec: str
  classes: tuple[str, ...]

  def __len__(self) -> int:
    """Number of records."""

  def __getitem__(self, index: int) -> Record:
    """Reads one record."""
