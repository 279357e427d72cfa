"""Tar files of images: plain ones, WebDataset's and img2dataset's.

Their headers are read once; later every image is read by itself, from its
place. Nothing is unpacked, so no member can lead out of a folder.
"""

from collections.abc import Iterator, Sequence
import glob
import json
import os
import re
import tarfile
from typing import NamedTuple

from dinojax.core import errors
from dinojax.core import paths
from dinojax.data import listing
from dinojax.data.pools import entry as entry_lib
from dinojax.data.pools import files as files_lib

_PACKED = re.compile(r'\.(tar\.(gz|bz2|xz|zst)|tgz|tbz2?|txz)$', re.IGNORECASE)
_TEXT_BYTES = 2**20  # of a caption or a JSON member
_LICENCES = ('license', 'licence')


def is_tar(path: str) -> bool:
  """Tells a tar file by its name."""
  return path.lower().endswith('.tar') or bool(_PACKED.search(path))


class Sample(NamedTuple):
  """Members of a tar file that belong together.

  Attributes:
    key: name that they share.
    images: images among them.
    more: contents of 'json' and 'txt'.
  """

  key: str
  images: list[tarfile.TarInfo]
  more: dict[str, bytes]

  @property
  def captions(self) -> list[str]:
    """Lines of the text beside the images, else what their JSON has."""
    lines = self.more.get('txt', b'').decode(errors='replace').splitlines()
    notes = self.notes
    return entry_lib.caption(lines).splitlines() or entry_lib.caption(
        notes.get('captions') or notes.get('caption')).splitlines()

  @property
  def notes(self) -> dict:
    """The JSON object beside the images; {}."""
    try:
      notes = json.loads(self.more.get('json', b'{}'))
    except (ValueError, RecursionError):
      return {}
    return notes if isinstance(notes, dict) else {}


class Tars:
  """Tar files, whose members of one key are one sample."""

  def __init__(self, pattern: str):
    """Finds the files that match.

    Args:
      pattern: path, or one with *, ? or {00000..00146}.

    Raises:
      UserError: none, or compressed ones, in which no image can be found
        without unpacking all before it.
    """
    self.spec = f'tar:{pattern}'
    matches = [path for part in braced(paths.expand(pattern))
             for path in glob.glob(part)]
    for path in matches:
      if _PACKED.search(path):
        raise errors.UserError(
            f'{path} is compressed, which gains nothing on images and lets '
            'none be read by itself: unpack it, such as with `gunzip`')
    self._files = files_lib.Files(self.spec, matches)

  def files(self) -> Sequence[str]:
    """Names of the tar files."""
    return self._files.names

  def order(self) -> Sequence[str]:
    """Names and sizes of the tar files."""
    return self._files.sizes()

  def entries(self, file: str) -> Iterator[entry_lib.Entry]:
    """Images of a tar file in its order, with JSON and text beside them."""
    last = ''
    try:
      for sample in self.samples(file):
        last = sample.key
        yield from _entries(file, sample)
    except (tarfile.TarError, EOFError) as error:
      yield entry_lib.Entry(
          f'{os.path.basename(file)} after {last or "its beginning"}', file,
          problem=f'the tar file is cut short or damaged: {error}')

  def samples(self, file: str) -> Iterator[Sample]:
    """Members of a tar file that belong together, in its order.

    Raises:
      TarError, EOFError: the file is damaged, or cut short, after what was
        given.
    """
    sample = Sample('', [], {})
    try:
      with tarfile.open(self._files.path(file), 'r:') as archive:
        for member in archive:
          key, suffix = split(member.name)
          if not member.isreg() or not suffix:
            continue
          if key != sample.key:
            if sample.key:
              yield sample
            sample = Sample(key, [], {})
          if '.' + suffix.rpartition('.')[2] in listing.SUFFIXES:
            sample.images.append(member)
          elif suffix in ('json', 'txt') and member.size <= _TEXT_BYTES:
            sample.more[suffix] = archive.extractfile(member).read()
        # Where a header is damaged, it takes that for the end.
        archive.fileobj.seek(archive.offset)
        if archive.fileobj.read(tarfile.BLOCKSIZE).strip(b'\0'):
          raise tarfile.ReadError('a member has no header')
    except (tarfile.TarError, EOFError):
      if sample.key:
        yield sample
      raise
    if sample.key:
      yield sample

  def read(self, file: str, offset: int, size: int) -> bytes:
    """Bytes of a member."""
    with open(self._files.path(file), 'rb') as stream:
      stream.seek(offset)
      data = stream.read(size)
    if len(data) != size:
      raise OSError(f'{file} ends inside of the image')
    return data


class Img2dataset(Tars):
  """Output of img2dataset: NNNNN.tar, and NNNNN.parquet with every address."""

  def __init__(self, folder: str):
    """Finds the finished shards of a folder.

    Raises:
      UserError: none are there.
    """
    self.spec = f'img2dataset:{folder}'
    tars = glob.glob(os.path.join(paths.expand(folder), '*.tar'))
    finished = [path for path in tars if os.path.exists(
        path.removesuffix('.tar') + '_stats.json')]
    if not finished:
      raise errors.UserError(
          f'{self.spec} has no finished shard (NNNNN.tar beside '
          'NNNNN_stats.json): let img2dataset go on, or name tar files by '
          f'tar:{folder}/*.tar')
    self._files = files_lib.Files(self.spec, finished)

  def entries(self, file: str) -> Iterator[entry_lib.Entry]:
    """Images of a shard, then what could not be fetched, with the reason."""
    from dinojax.data.pools import parquets  # pyarrow may be missing
    table = parquets.rows(
        self._files.path(file).removesuffix('.tar') + '.parquet')
    known = {row['key']: row for row in table}
    for entry in super().entries(file):
      row = known.pop(os.path.splitext(entry.name)[0], {})
      yield entry._replace(
          url=row.get('url') or entry.url,
          caption=entry_lib.caption(row.get('caption')) or entry.caption,
          licence=next((str(row[name]) for name in _LICENCES if row.get(name)),
                       entry.licence))
    for key, row in sorted(known.items()):
      yield entry_lib.Entry(
          key, file, url=row.get('url') or '',
          caption=entry_lib.caption(row.get('caption')),
          problem=f'{row.get("status") or "missing"}: '
          f'{row.get("error_message") or "no image in the tar file"}')


def split(name: str) -> tuple[str, str]:
  """Key and suffix of a member: the base name is cut at its first dot.

  Returns:
    ('a/0001', 'seg.png') of 'a/0001.seg.png'; an empty suffix for what is no
    part of a sample: no dot, a hidden file, `__meta__`.

  Source: WebDataset's naming.
  """
  folder, base = os.path.split(name)
  stem, _, suffix = base.partition('.')
  if not stem or not suffix or (stem.startswith('__') and stem.endswith('__')):
    return name, ''
  return os.path.join(folder, stem), suffix.lower()


def braced(pattern: str) -> list[str]:
  """Patterns of one with {00000..00146} in it."""
  match = re.search(r'\{(\d+)\.\.(\d+)\}', pattern)
  if not match:
    return [pattern]
  width = len(match[1])
  return [whole for number in range(int(match[1]), int(match[2]) + 1)
          for whole in braced(pattern[:match.start()] + f'{number:0{width}d}'
                              + pattern[match.end():])]


def _entries(file: str, sample: Sample) -> Iterator[entry_lib.Entry]:
  """Entries of the images of a sample."""
  notes = sample.notes
  text = lambda *names: next(
      (str(notes[name]) for name in names if notes.get(name)), '')
  for member in sample.images:
    yield entry_lib.Entry(
        member.name, file, member.offset_data, member.size, text('url'),
        text(*_LICENCES), '\n'.join(sample.captions))
