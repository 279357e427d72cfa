"""Pools by their specs."""

from collections.abc import Callable, Iterator, Sequence
import functools
import os

from dinojax.core import errors
from dinojax.core import paths
from dinojax.data import folders
from dinojax.data import identity
from dinojax.data import listing
from dinojax.data import sources
from dinojax.data.pools import entry as entry_lib
from dinojax.data.pools import parquets
from dinojax.data.pools import tars


def open_pool(spec: str) -> entry_lib.Pool:
  """Opens a pool.

  Args:
    spec: folder:DIR; tar:GLOB, plain tar files or WebDataset's; img2dataset:DIR
      with NNNNN.tar and NNNNN.parquet; parquet:GLOB[?image=COLUMN]; or any
      source that training reads.

  Raises:
    UserError: nothing there.
  """
  scheme, _, rest = spec.partition(':')
  if scheme in _OPENERS:
    return _OPENERS[scheme](rest)
  path = paths.expand(spec)
  if os.path.isdir(path):
    return Folder(path)
  if tars.is_tar(path):
    return tars.Tars(path)
  if path.endswith('.parquet'):
    return parquets.Parquets(path)
  return Records(spec)


class Folder:
  """Images below a folder."""

  def __init__(self, folder: str):
    """Keeps the folder; it is listed by a task.

    Raises:
      UserError: there is no such folder.
    """
    self.spec, self._folder = f'folder:{folder}', paths.expand(folder)
    if '://' not in self._folder and not os.path.isdir(self._folder):
      raise errors.UserError(f'{self.spec} is no folder: check the path')

  def files(self) -> Sequence[str]:
    """One list of all."""
    return ('',)

  def order(self) -> Sequence[str]:
    """Paths of all images."""
    return self._contents.paths

  def entries(self, file: str) -> Iterator[entry_lib.Entry]:
    """Images sorted by path."""
    del file
    for note in self._contents.notes():
      folders.say_once(f'{self.spec}: {note}')
    for path in self._contents.paths:
      yield entry_lib.Entry(path, path)

  @functools.cached_property
  def _contents(self) -> listing.Listing:
    return listing.look(self._folder)

  def read(self, file: str, offset: int, size: int) -> bytes:
    """A whole file."""
    del offset, size
    with open(os.path.join(self._folder, file), 'rb') as stream:
      return stream.read()


class Records:
  """A source that training reads: records, TFDS, lists in CSV files."""

  def __init__(self, spec: str):
    """Opens the source.

    Raises:
      UserError: see `sources.open_source`.
    """
    self.spec, self._source = spec, sources.open_source(spec)

  def files(self) -> Sequence[str]:
    """One list of all."""
    return ('',)

  def order(self) -> Sequence[str]:
    """Names of all records, or what stands for them."""
    return identity.lines(self._source)

  def entries(self, file: str) -> Iterator[entry_lib.Entry]:
    """Records in order; those of no known name are numbered."""
    del file
    names = self.order()
    is_named = len(names) == len(self._source) > 1
    for index in range(len(self._source)):
      yield entry_lib.Entry(
          names[index] if is_named else f'{index:09d}', offset=index)

  def read(self, file: str, offset: int, size: int) -> bytes:
    """Bytes of a record."""
    del file, size
    return self._source[offset].image


_OPENERS: dict[str, Callable[[str], entry_lib.Pool]] = {
    'folder': Folder, 'tar': tars.Tars, 'parquet': parquets.Parquets,
    'img2dataset': tars.Img2dataset}
