"""Pages of WARC files, such as those of Common Crawl.

A file is read as far as it is whole; what could not be read is counted.
"""

import collections
from collections.abc import Iterator
import logging
import re
from typing import BinaryIO, NamedTuple
import zlib

from dinojax.core import errors

MAX_BYTES = 16 * 2**20  # of a page, unpacked; what follows is left out
REST = 'the rest of the file'  # a reason, where it is damaged
_META = re.compile(rb'<meta[^>]{0,200}charset\s*=\s*["\']?\s*([\w.:-]{1,40})',
                   re.IGNORECASE)
# It tells of every address with a blank.
logging.getLogger('warcio').setLevel(logging.ERROR)
_HTML = ('text/html', 'application/xhtml+xml')


class Page(NamedTuple):
  """A page as it was found."""

  address: str
  html: str


class Pages:
  """Iterates over the pages of a file.

  Attributes:
    skipped: number of records that are no pages, by reason.
  """

  def __init__(self, file: BinaryIO, name: str):
    """Reads from an open file.

    Args:
      file: WARC, gzipped or not, from its start.
      name: name of the file, for messages.

    Raises:
      UserError: warcio is missing, or the file is no WARC.
    """
    try:
      from warcio import archiveiterator
      from warcio import exceptions
    except ImportError as error:
      raise errors.UserError(
          f'{name} is read by warcio: pip install "dinojax[curate]"'
      ) from error
    head = file.read(512)
    file.seek(0)
    if head[:2] == b'\x1f\x8b':
      head = _unpacked(zlib.decompressobj(16 + zlib.MAX_WBITS), head)
    if not head.startswith(b'WARC/'):
      raise errors.UserError(
          f'{name} is no WARC file: it begins with {head[:20]!r}, not WARC/')
    self._file, self._last = file, 0  # place of the last record
    self._records = archiveiterator.ArchiveIterator(file)
    # warcio leaves to Python what it does not expect of a file cut short.
    self._broken = (
        exceptions.ArchiveLoadFailed, EOFError, OSError, zlib.error,
        AttributeError, IndexError, KeyError, TypeError, ValueError)
    self.skipped: collections.Counter[str] = collections.Counter()

  def __iter__(self) -> Iterator[Page]:
    while True:
      try:
        record = next(self._records, None)
        page = record and self._page(record)
        if record is not None:  # only now: it reads on to the record's end
          self._last = self._records.get_record_offset()
      except self._broken as error:
        self.skipped[f'{REST}: {error}'] += 1
        return
      if record is None:
        # warcio ends where a file is cut short, and says nothing.
        if not _is_whole(self._file, self._last):
          self.skipped[f'{REST}: it is cut short'] += 1
        return
      if page:
        yield page

  def _page(self, record) -> Page | None:
    """The page of a record; None: it holds none."""
    if record.rec_type not in ('response', 'resource'):
      self.skipped[f'{record.rec_type} records'] += 1
      return None
    address = (record.rec_headers.get_header('WARC-Target-URI') or '').strip(
        '<> ')
    headers = record.http_headers
    kind = (headers.get_header('Content-Type') if headers else
            record.rec_headers.get_header('Content-Type')) or ''
    if headers and headers.get_statuscode() != '200':
      self.skipped[f'status {headers.get_statuscode()}'] += 1
    elif kind.partition(';')[0].strip().lower() not in _HTML:
      self.skipped['other content than HTML'] += 1
    else:
      body = _body(record.raw_stream.read(), headers)
      return Page(address, text_of(body, kind))
    return None


def _is_whole(file: BinaryIO, start: int) -> bool:
  """Tells whether a file ends with the end of a record.

  Args:
    file: WARC, gzipped or not.
    start: place of one of its last records, in bytes.
  """
  file.seek(start)
  data = file.read()
  while data[:2] == b'\x1f\x8b':
    packer = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
      packer.decompress(data)
    except zlib.error:
      return False
    if not packer.eof:
      return False
    data = packer.unused_data
  while match := re.match(rb'\s*WARC/(?:[^\n]+\n)*?\r?\n', data):
    length = re.search(rb'(?i)^content-length:\s*(\d+)', match[0], re.M)
    if not length or len(data) < match.end() + int(length[1]):
      return False
    data = data[match.end() + int(length[1]):]
  return not data.strip()


def _body(data: bytes, headers) -> bytes:
  """Bytes of a page, unpacked.

  Archives keep header fields that no longer apply, so that each is believed
  only where the bytes look like it.
  """
  if headers and 'chunked' in (
      headers.get_header('Transfer-Encoding') or '').lower():
    data = _unchunked(data)
  fields = (headers.get_header('Content-Encoding') or '') if headers else ''
  for coding in reversed(fields.lower().split(',')):
    data = _decoded(data, coding.strip())
  return data[:MAX_BYTES]


def _decoded(data: bytes, coding: str) -> bytes:
  """Bytes without one coding, or as they are where they do not have it."""
  if coding in ('gzip', 'x-gzip') and data[:2] == b'\x1f\x8b':
    return _unpacked(zlib.decompressobj(16 + zlib.MAX_WBITS), data)
  if coding == 'deflate' and not data.lstrip().startswith(b'<'):
    wrapped = len(data) > 1 and data[0] & 15 == 8 and (
        256 * data[0] + data[1]) % 31 == 0
    return _unpacked(zlib.decompressobj(
        zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS), data)
  if coding == 'br' and not data.lstrip().startswith(b'<'):
    try:
      import brotli
    except ImportError:
      return data
    try:
      return brotli.decompress(data)
    except brotli.error:
      return data
  return data


def _unpacked(packer, data: bytes) -> bytes:
  """As much as can be unpacked."""
  try:
    return packer.decompress(data, MAX_BYTES)
  except zlib.error:
    return data


def _unchunked(data: bytes) -> bytes:
  """The parts of a chunked body put together; else the bytes as they are."""
  out, at = [], 0
  while match := re.compile(
      rb'([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?\r\n').match(data, at):
    size = int(match[1], 16)
    at = match.end()
    if not size:
      return b''.join(out)
    out.append(data[at:at + size])
    at += size + 2
  return b''.join(out) if out and at >= len(data) else data


def text_of(data: bytes, content_type: str = '') -> str:
  """Letters of a page: as the server says, as the page says, or UTF-8."""
  told = re.search(r'charset\s*=\s*["\']?\s*([\w.:-]+)', content_type, re.I)
  names = [told[1]] if told else []
  if match := _META.search(data[:4096]):
    names.append(match[1].decode('ascii', 'replace'))
  for name in names:
    try:
      return data.decode(name, 'replace')
    except (LookupError, UnicodeError):  # no such encoding, or no text
      continue
  return data.decode('utf-8', 'replace')
