"""Addresses of images from web archives and saved pages to one table."""

import pyarrow.parquet as parquet
import pytest

from dinojax.core import errors
from dinojax.curate import chain
from dinojax.curate.engines import in_process
from dinojax.curate.stages import urls
from tests.curate import test_web_archives as archives


def run(folder, *pages, **values):
  stage = urls.Urls(urls.Settings(pages=tuple(map(str, pages)), **values), {},
                    'urls')
  lines = []
  places = chain.run([stage], str(folder), in_process.InProcess(1),
                     say=lines.append)
  place = places['urls']
  rows = [row for i in range(place.count(urls.UNIQUE))
          for row in parquet.read_table(
              place.file(urls.UNIQUE, i)).to_pylist()]
  return rows, lines[0]


def page(*tags):
  return ''.join(tags).encode()


@pytest.fixture
def archive(tmp_path):
  first = page('<img src="/a.jpg" alt="a  dog">', '<img src="/a.jpg">',
               '<img src="small.jpg" srcset="b-1.jpg 200w, b-2.jpg 900w">')
  second = page('<img src="http://example.com/a.jpg" alt="other">',
                '<img data-src="https://ads.bad.example/x.gif">')
  path = tmp_path / 'x.warc.gz'
  path.write_bytes(archives.archive(
      archives.record(first, address='https://example.com/1'),
      archives.record(second, address='http://example.com/0')))
  return path


def test_addresses_come_once_with_page_text_and_count(archive, tmp_path):
  refused = tmp_path / 'hosts.txt'
  refused.write_text('0.0.0.0 bad.example\n')
  rows, line = run(tmp_path / 'out', archive, refused=(str(refused),))
  by_url = {row['url']: row for row in rows}
  assert set(by_url) == {'https://example.com/a.jpg',
                         'http://example.com/a.jpg',
                         'https://example.com/b-2.jpg'}
  assert by_url['https://example.com/a.jpg'] == {
      'url': 'https://example.com/a.jpg', 'caption': 'a dog',
      'page': 'https://example.com/1', 'count': 2}
  assert 'refused 1' in line and 'unique 3' in line
  every, _ = run(tmp_path / 'every', archive, largest_only=False)
  assert len(every) == 6


def test_partitions_hold_each_address_once(archive, tmp_path):
  other = tmp_path / 'y.warc.gz'
  other.write_bytes(archive.read_bytes())
  few, _ = run(tmp_path / 'few', tmp_path / '*.warc.gz')
  many, _ = run(tmp_path / 'many', tmp_path / '*.warc.gz', partitions=5)
  in_order = lambda rows: sorted(rows, key=lambda row: row['url'])
  assert in_order(many) == in_order(few)
  assert {row['url']: row['count'] for row in few}[
      'https://example.com/a.jpg'] == 4


def test_saved_pages_tell_their_address_by_their_base(tmp_path):
  folder = tmp_path / 'saved' / 'deep'
  folder.mkdir(parents=True)
  (folder / 'a.html').write_bytes(page(
      '<base href="https://example.com/dir/">', '<img src="a.jpg">'))
  (folder / 'b.htm').write_bytes(page('<img src="lost.jpg">'))
  rows, line = run(tmp_path / 'out', tmp_path / 'saved')
  assert [row['url'] for row in rows] == ['https://example.com/dir/a.jpg']
  assert 'pages 2' in line


def test_a_file_cut_short_is_counted(archive, tmp_path):
  archive.write_bytes(archive.read_bytes()[:-30])
  _, line = run(tmp_path / 'out', archive)
  assert 'files cut short 1' in line


def test_mistakes_are_named(tmp_path):
  with pytest.raises(errors.UserError, match='urls.pages is empty'):
    run(tmp_path)
  with pytest.raises(errors.UserError, match='matches no file'):
    run(tmp_path, tmp_path / 'no')
  (tmp_path / 'x.warc').write_bytes(b'nothing')
  with pytest.raises(errors.UserError, match='is no WARC file'):
    run(tmp_path, tmp_path / 'x.warc')
