"""Where images come from: folders, ArrayRecord files, TFDS, photographs.

A source is a picklable, random-access sequence of encoded images, so that a
sample is a function of its index in any worker process.
"""

import collections
from collections.abc import Iterator
import logging
import os
from typing import NamedTuple, Protocol
from urllib import parse

from etils import epath

from dinojax.core import errors

SUFFIXES = frozenset(
    '.jpg .jpeg .jpe .png .webp .gif .bmp .tif .tiff .ppm .pgm .pbm .jp2 '
    '.avif .tga'.split())
_SCHEMES = ('folder:DIR', 'arrayrecord:GLOB', 'tfds:NAME/SPLIT',
            'photos:train', 'photos:validation', 'kept:SOURCE',
            'held_out:SOURCE', 'python:MODULE:CLASS[:TEXT]')


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


def open_source(spec: str) -> Source:
  """Opens a source by its spec.

  Args:
    spec: folder:DIR (sub-folder = label), arrayrecord:GLOB, tfds:NAME/SPLIT
      (already prepared; ?data_dir=DIR may follow), photos:train or
      photos:validation (embedded photographs); held_out:SPEC, every tenth
      image of another source, and kept:SPEC, all others;
      python:MODULE:CLASS[:TEXT], a class of your own.

  Raises:
    UserError: nothing there, or an unknown scheme.
  """
  scheme, _, rest = spec.partition(':')
  if scheme == 'folder':
    return Folder(rest)
  if scheme == 'arrayrecord':
    from dinojax.data import records
    return records.ArrayRecords(rest)
  if scheme == 'tfds':
    return Tfds(rest)
  if scheme == 'photos':
    from dinojax.data import photos
    return photos.Photos(rest or 'train')
  if scheme in ('kept', 'held_out'):
    from dinojax.data import parts
    return parts.Part(scheme, open_source(rest))
  if scheme == 'python':
    from dinojax.data import own
    return own.make(rest)
  raise errors.UserError(
      f'data source {spec!r} is not known: use one of {", ".join(_SCHEMES)}')


class Folder:
  """Images below a folder; the first sub-folder is the label."""

  def __init__(self, folder: str):
    """Lists the folder, sorted by path.

    Args:
      folder: local path or gs://.

    Raises:
      UserError: missing, unreadable or without images.
    """
    self.spec = f'folder:{folder}'
    self._folder = os.path.expanduser(folder)
    others: collections.Counter = collections.Counter()
    paths = []
    try:
      for path in _walk(self._folder):
        suffix = os.path.splitext(path)[1].lower()
        if suffix in SUFFIXES:
          paths.append(path)
          if len(paths) % 100_000 == 0:
            logging.info('%s: %d images found so far', folder, len(paths))
        else:
          others[suffix or '(no suffix)'] += 1
    except OSError as error:
      raise errors.UserError(
          f'{self.spec} cannot be read: {error.strerror or error}; check the '
          'path and its permissions') from error
    if not paths:
      raise errors.UserError(self._empty(others))
    self._paths = sorted(paths)
    tops = [p.partition('/')[0] if '/' in p else '' for p in self._paths]
    self.classes = tuple(sorted(set(tops) - {''}))
    index = {name: i for i, name in enumerate(self.classes)} | {'': -1}
    self._labels = [index[top] for top in tops]

  def _empty(self, others: collections.Counter) -> str:
    if not others:
      return (f'{self.spec} is empty: point data.train at a folder that '
              'holds images, in sub-folders or not')
    kinds = ', '.join(f'{n} × {s}' for s, n in others.most_common(3))
    return (f'{self.spec} holds no images, but {sum(others.values())} other '
            f'files ({kinds}): images end in '
            f'{", ".join(sorted(SUFFIXES))}')

  def __len__(self) -> int:
    return len(self._paths)

  def __getitem__(self, index: int) -> Record:
    name = self._paths[index]
    path = epath.Path(self._folder) / name
    return Record(path.read_bytes(), self._labels[index], name)


def _walk(folder: str) -> Iterator[str]:
  """Relative paths of visible files; a folder is entered once."""
  if '://' in folder:
    root = epath.Path(folder)
    for path in root.glob('**/*'):
      if not path.is_dir():
        yield str(path.relative_to(root))
    return
  seen, stack = set(), ['']
  while stack:
    inside = stack.pop()
    full = os.path.join(folder, inside)
    real = os.path.realpath(full)
    if real in seen:  # a loop of symbolic links
      continue
    seen.add(real)
    with os.scandir(full) as entries:
      for entry in entries:
        if entry.name.startswith('.'):
          continue
        path = f'{inside}/{entry.name}' if inside else entry.name
        if entry.is_dir():
          stack.append(path)
        elif entry.is_file():
          yield path


class Tfds:
  """A prepared TFDS data set, as raw bytes and without TensorFlow."""

  def __init__(self, rest: str):
    """Opens NAME/SPLIT, or NAME/SPLIT?data_dir=DIR.

    Raises:
      UserError: malformed, not prepared on this machine, or without images.
    """
    self.spec = f'tfds:{rest}'
    place, _, query = rest.partition('?')
    name, _, self._split = place.rpartition('/')
    if not name:
      raise errors.UserError(
          f'{self.spec} has no split: write tfds:NAME/SPLIT, such as '
          'tfds:imagenet2012/train')
    self._name = name
    self._data_dir = dict(parse.parse_qsl(query)).get('data_dir')
    self._source = None
    features = self._builder().info.features
    if 'image' not in features:
      raise errors.UserError(
          f'{self.spec} has no feature named image, only '
          f'{", ".join(features)}: choose a data set of images')
    label = features['label'] if 'label' in features else None
    self.classes = tuple(getattr(label, 'names', None) or ())
    self._length = len(self._open())

  def _builder(self):
    import tensorflow_datasets as tfds  # a second of import time
    try:
      builder = tfds.builder(self._name, data_dir=self._data_dir)
      prepared = builder.info.splits and self._split.split('[')[0] in (
          *builder.info.splits, 'all')
    except (tfds.core.DatasetNotFoundError, ValueError, OSError) as error:
      raise errors.UserError(
          f'{self.spec} cannot be opened: '
          f'{(str(error).splitlines() or [""])[0]}') from error
    if not prepared:
      raise errors.UserError(
          f'{self.spec} is not prepared here: run `tfds build '
          f'{self._name} --file_format=array_record'
          + (f' --data_dir={self._data_dir}' if self._data_dir else '')
          + '` first; nothing is downloaded during training')
    return builder

  def _open(self):
    if self._source is None:
      import tensorflow_datasets as tfds
      self._source = self._builder().as_data_source(
          split=self._split,
          decoders={'image': tfds.decode.SkipDecoding()})
    return self._source

  def __getstate__(self) -> dict:
    return self.__dict__ | {'_source': None}

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> Record:
    row = self._open()[index]
    label = row.get('label', -1)
    return Record(row['image'], int(label), f'{self._split}/{index}')
