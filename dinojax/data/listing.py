"""Lists the images of a folder, and says what is left out.

An entry that cannot be looked at never ends the listing of millions: it counts
as an image that cannot be read, or as a folder that is passed over with a line.
"""

import collections
from collections.abc import Iterator
import dataclasses
import logging
import os

from etils import epath
from PIL import Image as PilImage

from dinojax.core import errors
from dinojax.core import text
from dinojax.data import images

# Of the formats that are read, as Pillow knows them, and as others write them.
SUFFIXES = frozenset(
    {suffix for suffix, kind in PilImage.registered_extensions().items()
     if kind in (*images.FORMATS, 'MPO')} | {'.jfi', '.jif', '.tiff'})
_LEAST_SPLIT = {'train', 'training'}
_OTHER_SPLITS = {'test', 'val', 'valid', 'validation'}
# Folders of systems and devices, whatever is in them.
_SYSTEM = {'lost+found', 'system volume information', '$recycle.bin',
           '@eadir', '__macosx'}
# Images that cannot be read here: what they are, and what to do.
_FOREIGN = (
    ('.heic .heif .hif', 'photographs of phones',
     'convert them to JPEG, such as with `magick mogrify -format jpg`'),
    ('.cr2 .cr3 .crw .nef .nrw .arw .srf .sr2 .dng .raf .orf .rw2 .pef .srw '
     '.raw .3fr .iiq .x3f .erf .mrw .dcr .kdc .rwl', 'raw photographs',
     'develop them to JPEG or 16-bit TIFF, such as with darktable-cli'),
    ('.dcm .dicom .ima', 'DICOM',
     'export them to 16-bit PNG, and set data.value_range'),
    ('.jxl', 'JPEG XL', 'convert them with `djxl` to PNG or JPEG'),
    ('.psd .psb .xcf .kra', 'documents of image editors',
     'export them to PNG'),
    ('.jxr .wdp .hdp .exr .hdr .pcx .sgi .qoi .dds .cur .icns .ras .xbm '
     '.xpm .bpg .fit .fits', 'images of other formats',
     'convert them to PNG or TIFF'),
    ('.svg .svgz .eps .ps .ai .pdf .wmf .emf', 'drawings and pages',
     'render them to PNG'),
    ('.mp4 .mov .avi .mkv .webm .m4v .mpg .mpeg .wmv', 'videos',
     'extract frames, such as with ffmpeg'),
    ('.zip .tar .tgz .gz .bz2 .xz .7z .rar .tfrecord .parquet', 'archives',
     'unpack them'))
_FOREIGN_BY_SUFFIX = {
    suffix: (what, fix) for group, what, fix in _FOREIGN
    for suffix in group.split()}
# Beside images, and no images: they need no line.
_QUIET = frozenset(
    '.txt .csv .tsv .json .jsonl .xml .yaml .yml .md .html .htm .log .ini '
    '.toml .cfg .db .py .ipynb .sh .doc .docx .xls .xlsx .pickle .pkl .tmp '
    '.license .mat .sha256 .md5'.split())


@dataclasses.dataclass
class Listing:
  """Contents of a folder and the folders below it.

  Attributes:
    paths: paths of images, relative to the folder, sorted.
    others: number of other files by ending.
    passed: folders that were not entered, and why.
    lost: links that lead nowhere.
    devices: entries that are no files: sockets, pipes, devices.
  """

  paths: list[str] = dataclasses.field(default_factory=list)
  others: collections.Counter = dataclasses.field(
      default_factory=collections.Counter)
  passed: list[tuple[str, str]] = dataclasses.field(default_factory=list)
  lost: list[str] = dataclasses.field(default_factory=list)
  devices: list[str] = dataclasses.field(default_factory=list)

  def notes(self) -> list[str]:
    """Sentences about what is left out; none where that is as it should be."""
    sentences = []
    loud = collections.Counter({
        suffix: count for suffix, count in self.others.items()
        if suffix not in _QUIET})
    if loud:
      sentences.append(f'left out, files by their endings: {loud.total()} ('
                       f'{counted(loud)})')
    sentences += self.advice()
    for some, what in (
        ([f'{path}: {why}' for path, why in self.passed],
         'folders that are not entered'),
        (self.lost, 'links that lead nowhere'),
        (self.devices, 'entries that are neither files nor folders')):
      if some:
        sentences.append(f'left out, {what}: {len(some)} ({text.listed(some)})')
    return sentences

  def advice(self) -> list[str]:
    """Sentences on how to convert images that cannot be read here."""
    groups = collections.defaultdict(collections.Counter)
    for suffix, count in self.others.items():
      if suffix in _FOREIGN_BY_SUFFIX:
        groups[_FOREIGN_BY_SUFFIX[suffix]][suffix] += count
    return [f'{counted(kinds)} are {what} that cannot be read here: {fix}'
            for (what, fix), kinds in groups.items()]


def counted(kinds: collections.Counter) -> str:
  """'30 × .heic, 2 × .xyz', the most frequent five."""
  some = [f'{count} × {text.printable(suffix)}'
          for suffix, count in kinds.most_common(5)]
  return ', '.join(some + ['…'] * (len(kinds) > 5))


def look(folder: str) -> Listing:
  """Lists a folder, local or of an object store, level by level.

  Names that begin with a point are hidden, with all that is below them.

  Raises:
    UserError: the folder itself is missing or cannot be read.
  """
  out = Listing()
  walk = _walk_remote if '://' in folder else _walk_local
  for path in walk(folder, out):
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in SUFFIXES:
      out.others[suffix or '(no ending)'] += 1
      continue
    out.paths.append(path)
    if len(out.paths) % 100_000 == 0:
      logging.info('%s: %d images found so far', folder, len(out.paths))
  out.paths.sort()
  return out


def splits(classes) -> tuple[str, str] | None:
  """Names of a training and another split, where classes are such."""
  by_name = {name.lower(): name for name in classes}
  train = sorted(_LEAST_SPLIT & by_name.keys())
  other = sorted(_OTHER_SPLITS & by_name.keys())
  return (by_name[train[0]], by_name[other[0]]) if train and other else None


def _walk_local(folder: str, out: Listing) -> Iterator[str]:
  """Relative paths of visible files; a folder is entered once."""
  seen, stack = set(), ['']
  while stack:
    inside = stack.pop()
    full = os.path.join(folder, inside)
    try:
      real = os.path.realpath(full)
      if real in seen:  # a loop of symbolic links
        continue
      seen.add(real)
      with os.scandir(full) as entries:
        inner = list(entries)
    except OSError as error:
      if not inside:
        raise unreadable(folder, error) from error
      out.passed.append((inside, error.strerror or str(error)))
      continue
    for entry in inner:
      path = f'{inside}/{entry.name}' if inside else entry.name
      kind = _kind(entry)
      if kind == 'folder':
        if _is_entered(entry.name, path, out):
          stack.append(path)
      elif kind == 'file':
        yield path
      elif kind:
        getattr(out, kind).append(path)


def _kind(entry: os.DirEntry) -> str:
  """'folder', 'file', 'lost', 'devices'; '' of hidden entries."""
  if entry.name.startswith('.'):
    return ''
  try:
    if entry.is_dir():
      return 'folder'
    if entry.is_file():
      return 'file'
    return 'devices' if os.path.exists(entry.path) else 'lost'
  except OSError:  # it is counted when it is read, or by its ending
    return 'file'


def _is_entered(name: str, path: str, out: Listing) -> bool:
  if name.lower() in _SYSTEM:
    out.passed.append((path, 'a folder of the system'))
    return False
  return not name.startswith('.')


def _walk_remote(folder: str, out: Listing) -> Iterator[str]:
  """The same of gs:// and other stores, which list a folder at a time."""
  stack = ['']
  while stack:
    inside = stack.pop()
    try:
      folders, files = _one_level(epath.Path(folder) / inside)
    except Exception as error:  # stores have errors of their own
      if not inside:
        raise unreadable(folder, error) from error
      out.passed.append((inside, type(error).__name__))
      continue
    join = lambda name, inside=inside: f'{inside}/{name}'.lstrip('/')
    stack += [join(name) for name in folders
              if _is_entered(name, join(name), out)]
    for name in files:
      if name and not name.startswith('.'):  # '' marks the folder itself
        yield join(name)


def _one_level(folder: epath.Path) -> tuple[list[str], list[str]]:
  """Names of folders and files; errors are not passed over."""
  def fail(error: OSError):
    raise error

  for _, folders, files in folder.walk(on_error=fail):
    return folders, files
  raise FileNotFoundError('nothing is there')


def unreadable(folder: str, error: Exception) -> errors.UserError:
  """The sentence for a folder that cannot be opened at all."""
  spec = f'folder:{folder}'
  if isinstance(error, ImportError):
    return errors.UserError(
        f'{spec} needs another package ({error}): for gs://, `pip install '
        'gcsfs`')
  if isinstance(error, NotADirectoryError):
    return errors.UserError(
        f'{folder} is a file, not a folder: give the folder that the images '
        'are in; one image alone is given by its path')
  fix = ('bucket, path and your credentials' if '://' in folder else
         'the path and its permissions')
  why = getattr(error, 'strerror', None) or ' '.join(str(error).split())
  return errors.UserError(f'{spec} cannot be read: {why}; check {fix}')
