"""Where images come from: folders, ArrayRecord files, TFDS, photographs.

A source is a picklable, random-access sequence of encoded images, so that a
sample is a function of its index in any worker process.
"""

from collections.abc import Callable
import importlib
import os

from dinojax.core import errors
from dinojax.core import paths
from dinojax.core import text
from dinojax.data import folders
from dinojax.data import listing
from dinojax.data import record

SUFFIXES = listing.SUFFIXES
# A source of one's own is made of these.
Record, Source = record.Record, record.Source
_SCHEMES = ('folder:DIR', 'image:FILE', 'csv:FILE[?COLUMN=VALUE]',
            'arrayrecord:GLOB', 'tfds:NAME/SPLIT', 'photos:train',
            'photos:validation', 'patterns:train', 'patterns:validation',
            'kept:SOURCE', 'held_out:SOURCE', 'python:MODULE:CLASS[:TEXT]')


def open_source(spec: str) -> record.Source:
  """Opens a source by its spec.

  Args:
    spec: folder:DIR (sub-folder = label), image:FILE, the path of either,
      csv:FILE, lines with image and class, ?COLUMN=VALUE chooses some,
      arrayrecord:GLOB, tfds:NAME/SPLIT (already prepared; ?data_dir=DIR may
      follow), photos:train or photos:validation (embedded photographs),
      patterns:train or patterns:validation (drawn); held_out:SPEC, every
      tenth image of another source, and kept:SPEC, all others;
      python:MODULE:CLASS[:TEXT], a class of your own.

  Raises:
    UserError: nothing there, or an unknown scheme.
  """
  scheme, _, rest = spec.partition(':')
  if scheme in OPENERS:
    return OPENERS[scheme](rest)
  path = paths.expand(spec)
  if '://' in spec or os.path.isdir(path):
    return folders.Folder(spec)
  if os.path.isfile(path):
    return folders.File(spec)
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
    folders.say_once(f'{what}. {fix[0].upper()}{fix[1:]}')
  return source


def no_classes(source: record.Source) -> tuple[str, str]:
  """Problem and remedy if sub-folders are splits, not classes; else ''."""
  names = listing.splits(source.classes)
  if not names or not isinstance(source, folders.Folder):
    return '', ''
  spec, train, other = map(text.printable, (source.spec, *names))
  return (f'{spec} holds {train}/ and {other}/, which are no classes: training '
          'sees the images of both',
          f'set data.train={spec}/{train} and data.validation={spec}/{other}')


def _from(module: str, name: str, default: str = '') -> Callable:
  """Opens with a class whose module is imported only then."""
  def opened(rest: str) -> record.Source:
    source_module = importlib.import_module(f'dinojax.data.{module}')
    return getattr(source_module, name)(rest or default)

  return opened


def _part(which: str) -> Callable[[str], record.Source]:
  """Opens a part of another source."""
  def opened(rest: str) -> record.Source:
    from dinojax.data import parts
    return parts.Part(which, open_source(rest))

  return opened


# What opens a source, of what follows its scheme.
OPENERS: dict[str, Callable[[str], record.Source]] = {
    'folder': folders.Folder, 'image': folders.File,
    'csv': _from('listed', 'Csv'),
    'arrayrecord': _from('records', 'ArrayRecords'),
    'tfds': _from('tfds', 'Tfds'),
    'photos': _from('photos', 'Photos', 'train'),
    'patterns': _from('patterns', 'Patterns', 'train'),
    'kept': _part('kept'), 'held_out': _part('held_out'),
    'python': _from('own', 'make')}
