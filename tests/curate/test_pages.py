"""Images of pages, however they are written."""

import pytest

from dinojax.curate import pages

PAGE = 'https://example.com/a/page.html'


def found(html, page=PAGE):
  return [image.address for image in pages.images(html, page)]


@pytest.mark.parametrize('html, want', [
    ('<img src=x.jpg>', ['https://example.com/a/x.jpg']),
    ('<IMG SRC="/x.jpg" ALT="b">', ['https://example.com/x.jpg']),
    ('<img src="?a=1&amp;b=2">', ['https://example.com/a/page.html?a=1&b=2']),
    ('<base href="https://cdn.example/d/"><img src=x.jpg>',
     ['https://cdn.example/d/x.jpg']),
    ('<base href="../e/"><base href="/f/"><img src=x.jpg>',
     ['https://example.com/e/x.jpg']),
    ('<img src="data:image/gif;base64,R0" data-src="late.jpg">',
     ['https://example.com/a/late.jpg']),
    ('<noscript><img src="n.jpg"></noscript>', ['https://example.com/a/n.jpg']),
    ('<img src="a.jpg" src="b.jpg">', ['https://example.com/a/a.jpg']),
    ('<img src="a.jpg" data-original="a.jpg">',
     ['https://example.com/a/a.jpg']),
    ('<!-- <img src="a.jpg"> --><script>"<img src=b.jpg>"</script>', []),
    ('<img><img src><img src=""><p>', []),
    ('<img src="a.jpg"', ['https://example.com/a/a.jpg'][:0])])
def test_addresses(html, want):
  assert found(html) == want


@pytest.mark.parametrize('text, want', [
    ('a.jpg 320w, b.jpg 640w', [('a.jpg', 320), ('b.jpg', 640)]),
    ('a.jpg, b.jpg 2x', [('a.jpg', 0), ('b.jpg', 0)]),
    ('/w_1,h_2/a.jpg 100w,/w_3,h_4/b.jpg 200w',
     [('/w_1,h_2/a.jpg', 100), ('/w_3,h_4/b.jpg', 200)]),
    (' , a.jpg 1x,,  b.jpg', [('a.jpg', 0), ('b.jpg', 0)]),
    ('a.jpg (x, y) 5w, b.jpg', [('a.jpg', 5), ('b.jpg', 0)]),
    ('', []), (' , ,', [])])
def test_sets(text, want):
  assert list(pages.candidates(text)) == want


def test_what_is_told_of_an_image():
  first, second, third = pages.images(
      '<img alt=" two\n words " src=a.jpg srcset="a.jpg 1w, b.jpg 99w">'
      '<img src=c.jpg>', PAGE)
  assert first.alt == second.alt == 'two words' and third.alt == ''
  assert [x.tag for x in (first, second, third)] == [0, 0, 1]
  assert (second.attribute, second.width_px) == ('srcset', 99)


def test_long_and_broken_pages_end():
  deep = '<div>' * 50_000 + '<img src=a.jpg>' + '<img src="' + 'b' * 100_000
  assert found(deep) == ['https://example.com/a/a.jpg']
  assert found('\x00\ud800<img src=a.jpg>\x00') == [
      'https://example.com/a/a.jpg']
