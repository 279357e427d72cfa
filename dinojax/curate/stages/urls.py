"""Urls: addresses of the images of web pages, for img2dataset to fetch.

Nothing is fetched here. Refused hosts and addresses are left out before
anybody asks them for anything.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import glob
import hashlib
import os
from typing import Any

import numpy as np

from dinojax.core import errors
from dinojax.core import fields
from dinojax.core import paths
from dinojax.curate import pages
from dinojax.curate import shuffle
from dinojax.curate import tables
from dinojax.curate import web_archives
from dinojax.curate.engines import work
from dinojax.curate.stages import base
from dinojax.curate.stages import filters
from dinojax.data import identity
from dinojax.data.pools import files as files_lib

READ, UNIQUE = 'read', 'unique'
_FILES_PER_PARTITION = 50  # a WARC file of Common Crawl has 500,000 addresses
_HTML = ('.html', '.htm', '.xhtml')


@dataclasses.dataclass(frozen=True)
class Settings:
  """Web pages whose images are wanted."""

  # WARC files, or folders of saved pages: paths, with * where several match.
  pages: tuple[str, ...] = ()
  # Files that list refused hosts and addresses, see filter.refused.
  refused: tuple[str, ...] = ()
  # Every address of a tag, or the largest of its srcset alone.
  largest_only: bool = True
  partitions: fields.Natural = 0  # Files of the result; 0: as many as suit.


class Urls(base.Stage):
  """Unique addresses, with their pages, texts and counts."""

  def settings(self) -> dict[str, Any]:
    """All values, and digests of the files.

    Raises:
      UserError: no pages.
    """
    if not self.config.pages:
      raise errors.UserError(
          'urls.pages is empty: name WARC files or folders of saved pages')
    return super().settings() | {
        'files': identity.digest(self._files().sizes()),
        'refused': [hashlib.sha256(filters.read_list(path)).hexdigest()
                    for path in self.config.refused]}

  def phases(self) -> Sequence[work.Phase]:
    """Reads pages, puts equal addresses together."""
    return (work.Phase(READ, lambda place: len(self._files().names),
                       self._read),
            work.Phase(UNIQUE, lambda place: self._num_partitions(),
                       self._unique))

  def _files(self) -> files_lib.Files:
    matches = []
    for pattern in self.config.pages:
      for path in glob.glob(paths.expand(pattern)):
        matches += [path] if os.path.isfile(path) else _saved(path)
    return files_lib.Files(', '.join(self.config.pages), matches)

  def _num_partitions(self) -> int:
    return self.config.partitions or max(
        len(self._files().names) // _FILES_PER_PARTITION, 1)

  def _read(self, place: work.Place, index: int) -> work.Counts:
    """Addresses of a file, each once."""
    files = self._files()
    refused = filters.refused(self.config.refused)
    known: dict[str, list] = {}
    counts = {'pages': 0, 'tags': 0, 'refused': 0, 'files_cut_short': 0}
    for page in _pages(files.path(files.names[index]), counts):
      counts['pages'] += 1
      for image in self._chosen(pages.images(page.html, page.address)):
        counts['tags'] += 1
        if refused.why(image.address):
          counts['refused'] += 1
          continue
        entry = known.setdefault(image.address, [image.alt, page.address, 0])
        entry[0], entry[2] = entry[0] or image.alt, entry[2] + 1
    names = sorted(known)
    rows = [known[name] for name in names]
    shuffle.write(place.file(READ, index), {
        'key': _keys(names), 'url': names,
        'caption': [row[0] for row in rows], 'page': [row[1] for row in rows],
        'count': np.array([row[2] for row in rows], np.int64)},
                  key='key', num_partitions=self._num_partitions())
    return counts

  def _chosen(self, images: Iterator[pages.Image]) -> Iterator[pages.Image]:
    """All addresses, or of those of a srcset the widest."""
    widest: dict[int, pages.Image] = {}
    for image in images:
      best = widest.get(image.tag)
      if not self.config.largest_only:
        yield image
      elif best is None or image.width_px > best.width_px:
        widest[image.tag] = image
    yield from widest.values()

  def _unique(self, place: work.Place, index: int) -> work.Counts:
    """Addresses of a partition; of several pages the first is kept."""
    table = shuffle.read([place.checked(READ, i) for i in range(
        place.count(READ))], index)
    known: dict[str, list] = {}
    for url, caption, page, count in zip(
        table['url'], table['caption'], table['page'],
        table['count'].tolist(), strict=True):
      entry = known.setdefault(url, ['', page, 0])
      entry[0], entry[2] = entry[0] or caption, entry[2] + count
      entry[1] = min(entry[1], page)
    names = sorted(known)
    tables.write(place.file(UNIQUE, index), {
        'url': names, 'caption': [known[name][0] for name in names],
        'page': [known[name][1] for name in names],
        'count': np.array([known[name][2] for name in names], np.int64)})
    return {'unique': len(names)}


def _saved(folder: str) -> list[str]:
  """Saved pages below a folder."""
  return [os.path.join(inside, name) for inside, _, names in os.walk(folder)
          for name in names if name.lower().endswith(_HTML)]


def _pages(path: str, counts: work.Counts) -> Iterator[web_archives.Page]:
  """Pages of a WARC file, or a saved page; only its <base> tells its address.

  A file that cannot be read to its end is counted in `files_cut_short`.
  """
  with open(path, 'rb') as file:
    if path.lower().endswith(_HTML):
      yield web_archives.Page('', web_archives.text_of(
          file.read(web_archives.MAX_BYTES)))
    else:
      archive = web_archives.Pages(file, path)
      yield from archive
      counts['files_cut_short'] += any(
          reason.startswith(web_archives.REST) for reason in archive.skipped)


def _keys(names: Sequence[str]) -> np.ndarray:
  """Numbers of addresses, uint64."""
  return np.array([int.from_bytes(hashlib.sha256(
      name.encode()).digest()[:8], 'little') for name in names], np.uint64)
