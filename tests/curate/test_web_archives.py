"""Pages of web archives, whole and damaged, with true and false headers."""

import gzip
import io
import zlib

import pytest
from warcio import statusandheaders
from warcio import warcwriter

from dinojax.core import errors
from dinojax.curate import web_archives

HTML = '<html><img src="ä.jpg"></html>'
RAW = HTML.encode()


def archive(*records, packed=True):
  """Bytes of a WARC file of (address, body, headers, status)."""
  file = io.BytesIO()
  writer = warcwriter.WARCWriter(file, gzip=packed)
  writer.write_record(writer.create_warcinfo_record('x.warc', {'a': 'b'}))
  for address, body, headers, status in records:
    writer.write_record(writer.create_warc_record(
        address, 'response', payload=io.BytesIO(body),
        http_headers=statusandheaders.StatusAndHeaders(
            status, headers, protocol='HTTP/1.1')))
  return file.getvalue()


def record(body=RAW, *fields, kind='text/html', status='200 OK',
           address='https://example.com/'):
  return address, body, [('Content-Type', kind), *fields], status


def read(data):
  pages = web_archives.Pages(io.BytesIO(data), 'x.warc')
  return list(pages), pages.skipped


def chunked(data):
  half = len(data) // 2
  return b''.join(b'%x;a=b\r\n%s\r\n' % (len(part), part) for part in (
      data[:half], data[half:])) + b'0\r\n\r\n'


DEFLATE = zlib.compressobj(wbits=-15)
GZIPPED = ('Content-Encoding', 'gzip')
CHUNKED = ('Transfer-Encoding', 'chunked')


@pytest.mark.parametrize('body, fields', [
    (RAW, ()), (gzip.compress(RAW, mtime=0), (GZIPPED,)), (RAW, (GZIPPED,)),
    (chunked(RAW), (CHUNKED,)), (RAW, (CHUNKED,)),
    (chunked(gzip.compress(RAW, mtime=0)), (CHUNKED, GZIPPED)),
    (RAW, (('Content-Length', '5'),)),
    (zlib.compress(RAW), (('Content-Encoding', 'deflate'),)),
    (DEFLATE.compress(RAW) + DEFLATE.flush(),
     (('Content-Encoding', 'deflate'),)),
    (gzip.compress(zlib.compress(RAW), mtime=0),
     (('Content-Encoding', 'deflate, gzip'),)),
    (RAW, (('Content-Encoding', 'identity'),)),
    (RAW, (('Content-Encoding', 'br'),)),
    (gzip.compress(RAW, mtime=0),
     (('X-Crawl-Content-Encoding', 'gzip'), GZIPPED))])
@pytest.mark.parametrize('packed', [True, False])
def test_bodies_are_unpacked_where_they_are_packed(body, fields, packed):
  pages, _ = read(archive(record(body, *fields), packed=packed))
  assert pages == [('https://example.com/', HTML)]


@pytest.mark.parametrize('body, kind', [
    (HTML.encode('latin-1'), 'text/html; charset=ISO-8859-1'),
    (b'<meta charset="latin-1">' + HTML.encode('latin-1'), 'text/html'),
    (b'<meta http-equiv=x content="text/html; charset=windows-1252">'
     + HTML.encode('cp1252'), 'application/xhtml+xml'),
    (HTML.encode(), 'text/html; charset=nonsense')])
def test_letters(body, kind):
  (page,), _ = read(archive(record(body, kind=kind)))
  assert page.html.endswith(HTML)


def test_what_is_no_page_is_counted():
  pages, skipped = read(archive(
      record(), record(kind='image/png'), record(status='404 Not Found'),
      record(address='<https://example.com/a b>')))
  assert [page.address for page in pages] == [
      'https://example.com/', 'https://example.com/a%20b']
  assert skipped == {'warcinfo records': 1, 'other content than HTML': 1,
                     'status 404': 1}


@pytest.mark.parametrize('packed', [True, False])
def test_a_file_is_read_as_far_as_it_goes(packed):
  first = archive(record(), packed=packed)
  whole = archive(record(), record(b'<p>' + bytes(range(256)) * 99),
                  packed=packed)
  for size in range(len(first) + 99, len(whole), 97):
    pages, _ = read(whole[:size])
    assert pages[0].html == HTML and len(pages) <= 2


@pytest.mark.parametrize('data', [b'', b'<html>', gzip.compress(
    b'<html>', mtime=0)])
def test_other_files_are_a_sentence(data):
  with pytest.raises(errors.UserError, match=r'x\.warc is no WARC file'):
    read(data)


def test_a_bomb_is_cut():
  bomb = gzip.compress(b'<p>' + bytes(50 * 2**20))
  (page,), _ = read(archive(record(bomb, GZIPPED)))
  assert len(page.html) <= web_archives.MAX_BYTES


@pytest.mark.parametrize('packed', [True, False])
def test_a_file_cut_short_says_so_wherever_it_is_cut(packed):
  data = archive(record(), record(), packed=packed)
  assert not any(reason.startswith(web_archives.REST)
                 for reason in read(data)[1])
  # At the end of a record nothing shows that another one followed.
  for length in range(len(data) - 5, len(data) // 2, -23):
    _, skipped = read(data[:length])
    assert any(reason.startswith(web_archives.REST) for reason in skipped), (
        length)
