"""Images that web pages show: addresses, alternative texts, sizes."""

from collections.abc import Iterator
from html import parser as html_parser
import re
from typing import NamedTuple

from dinojax.curate import addresses

# Attributes in which scripts keep an address until an image comes into view.
_LAZY = ('data-src', 'data-original', 'data-lazy-src', 'data-lazy',
         'data-url', 'data-image', 'data-hi-res-src', 'data-full-src')
_LAZY_SETS = ('data-srcset', 'data-lazy-srcset', 'data-original-set')
MAX_ALT = 2_000  # letters


class Image(NamedTuple):
  """An address of an `<img>` tag."""

  address: str  # normalized
  alt: str  # alternative text, with single blanks
  tag: int  # place of the tag among those of its page
  attribute: str  # in which it stands: src, srcset, data-src, …
  width_px: int  # as a srcset says; 0: it does not


def images(html: str, page: str) -> Iterator[Image]:
  """Addresses of the images of a page, each once for a tag.

  Args:
    html: text of the page, however broken.
    page: its address, to which relative ones are relative unless the page has
      a `<base>`.
  """
  reader = _Reader(page)
  reader.feed(html)
  reader.close()
  for number, values in enumerate(reader.tags):
    seen = set()
    alt = ' '.join((values.get('alt') or '').split())[:MAX_ALT]
    for attribute, address, width in _addresses(values):
      whole = addresses.normalized(address, reader.base)
      if whole is not None and whole not in seen:
        seen.add(whole)
        yield Image(whole, alt, number, attribute, width)


class _Reader(html_parser.HTMLParser):
  """Collects `<img>` tags, also those of `<noscript>`, and the first base."""

  def __init__(self, page: str):
    super().__init__(convert_charrefs=True)
    self.base, self.tags = page, []
    self._has_base = False

  def handle_starttag(self, tag, attrs):
    """Takes a tag; of an attribute that is given twice, the first counts."""
    values = {name: value for name, value in reversed(attrs)}
    if tag == 'base' and values.get('href') and not self._has_base:
      whole = addresses.normalized(values['href'], self.base)
      if whole is not None:
        self.base, self._has_base = whole, True
    elif tag == 'img':
      self.tags.append(values)


def _addresses(values: dict) -> Iterator[tuple[str, str, int]]:
  """Attribute, address and width of all that a tag may show."""
  for name in ('src', *_LAZY):
    if values.get(name):
      yield name, values[name], 0
  for name in ('srcset', *_LAZY_SETS):
    for address, width in candidates(values.get(name) or ''):
      yield name, address, width


def candidates(text: str) -> Iterator[tuple[str, int]]:
  """Addresses of a srcset and their widths in pixels, 0: not given.

  Source: the HTML standard, parsing a srcset attribute: an address goes to
  the next blank, and commas at its end are not of it.
  """
  at = 0
  while match := re.compile(r'[\s,]*(\S+)').match(text, at):
    address, at = match[1], match.end()
    descriptor = ''
    if address.endswith(','):
      address = address.rstrip(',')
    else:
      rest = re.compile(r'((?:[^,(]|\([^)]*\)?)*),?').match(text, at)
      descriptor, at = rest[1].strip(), rest.end()
    width = re.search(r'(?:^|\s)(\d{1,6})w(?:\s|$)', descriptor)
    if address:
      yield address, int(width[1]) if width else 0
