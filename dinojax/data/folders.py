"""Folders of images, and single images."""

import collections
import functools
import logging

from etils import epath

from dinojax.core import errors
from dinojax.core import paths
from dinojax.core import text
from dinojax.data import listing
from dinojax.data import record


class Folder:
  """Images below a folder; the first sub-folder is the label."""

  def __init__(self, folder: str):
    """Lists the folder, sorted by path, and says what is left out.

    Args:
      folder: local path or gs://.

    Raises:
      UserError: missing, unreadable or without images.
    """
    self.spec = f'folder:{folder}'
    self._folder = paths.expand(folder)
    contents = listing.look(self._folder)
    if not contents.paths:
      raise errors.UserError(_empty(self.spec, contents))
    for note in contents.notes():
      say_once(f'{text.printable(self.spec)}: {note}')
    self._paths = contents.paths
    tops = [p.partition('/')[0] if '/' in p else '' for p in self._paths]
    self.classes = tuple(sorted(set(tops) - {''}))
    index = {name: i for i, name in enumerate(self.classes)} | {'': -1}
    self._labels = [index[top] for top in tops]

  def __len__(self) -> int:
    return len(self._paths)

  def __getitem__(self, index: int) -> record.Record:
    name = self._paths[index]
    path = epath.Path(self._folder) / name
    try:
      return record.Record(path.read_bytes(), self._labels[index], name)
    except OSError:
      raise
    except Exception as error:  # stores have errors of their own
      raise OSError(f'{type(error).__name__}: {error}') from error

  def order(self, sizes: bool = False) -> list[str]:
    """Names in order, with the sizes of the files."""
    if not sizes:
      return self._paths
    return [f'{name}\t{self._size(name)}' for name in self._paths]

  def _size(self, name: str) -> int:
    """Length of a file in bytes; -1: it cannot be looked at."""
    try:
      return (epath.Path(self._folder) / name).stat().length
    except Exception:  # it is counted when it is read
      return -1

  def labels(self) -> list[int]:
    """Labels in order, -1 for none."""
    return self._labels

  def class_counts(self) -> list[int]:
    """Number of images of each class."""
    counts = collections.Counter(self._labels)
    return [counts[i] for i in range(len(self.classes))]


def _empty(spec: str, contents: listing.Listing) -> str:
  if not contents.others:
    return (f'{spec} is empty: give a folder that holds images, in '
            'sub-folders or not'
            + ''.join(f'; {note}' for note in contents.notes()))
  advice = contents.advice() or [
      f'images end in {", ".join(sorted(listing.SUFFIXES))}']
  return (f'{spec} holds no images, but {contents.others.total()} other '
          f'files ({listing.counted(contents.others)}): {"; ".join(advice)}')


class File:
  """A single image."""

  classes = ()

  def __init__(self, path: str):
    """Opens a file, whatever its ending.

    Raises:
      UserError: nothing there.
    """
    self.spec = f'image:{path}'
    self._path = epath.Path(paths.expand(path))
    if not self._path.is_file():
      raise errors.UserError(f'{self.spec} is no file: check the path')

  def __len__(self) -> int:
    return 1

  def __getitem__(self, index: int) -> record.Record:
    return record.Record(self._path.read_bytes(), -1, self._path.name)

  def order(self, sizes: bool = False) -> list[str]:
    """Its name, with the size of the file."""
    return [f'{self._path.name}\t{self._path.stat().length}' if sizes
            else self._path.name]


@functools.cache
def say_once(note: str):
  """Sources are opened for training and again for k-NN: one line is enough."""
  logging.warning('%s', note)
