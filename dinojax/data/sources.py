"""Where images come from: folders, ArrayRecord files, TFDS, photographs.

A source is a picklable, random-access sequence of encoded images, so that a
sample is a function of its index in any worker process.
"""

import collections
import functools
import logging
import os
from urllib import parse

from etils import epath

from dinojax.core import errors
from dinojax.core import paths
from dinojax.core import text
from dinojax.data import listing
from dinojax.data import record

SUFFIXES = listing.SUFFIXES
# A source of one's own is made of these.
Record, Source = record.Record, record.Source
_SCHEMES = ('folder:DIR', 'image:FILE', 'arrayrecord:GLOB', 'tfds:NAME/SPLIT',
            'photos:train', 'photos:validation', 'patterns:train',
            'patterns:validation', 'kept:SOURCE', 'held_out:SOURCE',
            'python:MODULE:CLASS[:TEXT]')


def open_source(spec: str) -> record.Source:
  """Opens a source by its spec.

  Args:
    spec: folder:DIR (sub-folder = label), image:FILE, the path of either,
      arrayrecord:GLOB, tfds:NAME/SPLIT (already prepared; ?data_dir=DIR may
      follow), photos:train or photos:validation (embedded photographs),
      patterns:train or patterns:validation (drawn); held_out:SPEC, every
      tenth image of another source, and kept:SPEC, all others;
      python:MODULE:CLASS[:TEXT], a class of your own.

  Raises:
    UserError: nothing there, or an unknown scheme.
  """
  scheme, _, rest = spec.partition(':')
  if scheme == 'folder':
    return Folder(rest)
  if scheme == 'image':
    return File(rest)
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
  if scheme == 'patterns':
    from dinojax.data import patterns
    return patterns.Patterns(rest or 'train')
  path = paths.expand(spec)
  if '://' in spec or os.path.isdir(path):
    return Folder(spec)
  if os.path.isfile(path):
    return File(spec)
  raise errors.UserError(
      f'data source {spec!r} is not known, and no folder or image of that '
      f'name is here: check the path, or use one of {", ".join(_SCHEMES)}')


def open_training(spec: str) -> record.Source:
  """Opens a source to train on, and says what makes it an odd one.

  Raises:
    UserError: see `open_source`.
  """
  source = open_source(spec)
  what, fix = no_classes(source)
  if what:
    _say_once(f'{what}. {fix[0].upper()}{fix[1:]}')
  return source


def no_classes(source: record.Source) -> tuple[str, str]:
  """What is odd of sub-folders train and test, and the remedy; else ''."""
  names = listing.splits(source.classes)
  if not names or not isinstance(source, Folder):
    return '', ''
  spec, train, other = map(text.printable, (source.spec, *names))
  return (f'{spec} holds {train}/ and {other}/, which are no classes: training '
          'sees the images of both',
          f'set data.train={spec}/{train} and data.validation={spec}/{other}')


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
    found = listing.look(self._folder)
    if not found.paths:
      raise errors.UserError(_empty(self.spec, found))
    for note in found.notes():
      _say_once(f'{text.printable(self.spec)}: {note}')
    self._paths = found.paths
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


def _empty(spec: str, found: listing.Listing) -> str:
  if not found.others:
    return (f'{spec} is empty: point data.train at a folder that '
            'holds images, in sub-folders or not'
            + ''.join(f'; {note}' for note in found.notes()))
  advice = found.advice() or [
      f'images end in {", ".join(sorted(listing.SUFFIXES))}']
  return (f'{spec} holds no images, but {found.others.total()} other '
          f'files ({listing.counted(found.others)}): {"; ".join(advice)}')


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
def _say_once(note: str):
  """Sources are opened for training and again for k-NN: one line is enough."""
  logging.warning('%s', note)


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

  def order(self, sizes: bool = False) -> list[str]:
    """The version and the files of the split: records have no names."""
    del sizes  # of the images; those of the files are always known
    info = self._builder().info
    name = self._split.split('[')[0]
    parts = info.splits.values() if name == 'all' else [info.splits[name]]
    return [f'{info.full_name} {self._split}'] + [
        f'{path.name}\t{path.stat().length}' for part in parts
        for path in map(epath.Path, part.filepaths)]

  def _builder(self):
    import tensorflow_datasets as tfds  # a second of import time
    try:
      builder = tfds.builder(self._name, data_dir=self._data_dir)
      prepared = builder.info.splits and self._split.split('[')[0] in (
          *builder.info.splits, 'all')
    except Exception as error:  # damaged notes of it have many errors
      raise errors.UserError(
          f'{self.spec} cannot be opened: {_first_line(error)}') from error
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
      builder = self._builder()
      try:
        self._source = builder.as_data_source(
            split=self._split,
            decoders={'image': tfds.decode.SkipDecoding()})
      except NotImplementedError as error:  # of TFRecord files
        kind = getattr(builder.info.file_format, 'value', 'another format')
        raise errors.UserError(
            f'{self.spec} is prepared as {kind}, which has no random access: '
            f'run {self._command()} beside it') from error
      except (ValueError, OSError, RuntimeError) as error:
        raise errors.UserError(
            f'{self.spec} cannot be opened: {_first_line(error)}; prepare '
            f'it again, or choose another split') from error
    return self._source

  def _command(self) -> str:
    """What makes files that can be read here; the old ones stay."""
    place = f'{self._data_dir or "~/tensorflow_datasets"}_array_record'
    return (f'`tfds build {self._name} --file_format=array_record '
            f'--data_dir={place}`, and set tfds:{self._name}/{self._split}'
            f'?data_dir={place},')

  def __getstate__(self) -> dict:
    return self.__dict__ | {'_source': None}

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> record.Record:
    try:
      row = self._open()[index]
      label = int(row.get('label', -1))
      return record.Record(row['image'], label, f'{self._split}/{index}')
    except errors.UserError:
      raise
    except Exception as error:  # a damaged file has many errors
      raise OSError(f'record {index}: {_first_line(error)}') from error


def _first_line(error: Exception) -> str:
  return text.printable((str(error).splitlines() or [''])[0])
