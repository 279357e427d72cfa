"""Addresses have one spelling; lists of refused ones have many."""

import pytest

from dinojax.curate import addresses


@pytest.mark.parametrize('address, want', [
    ('HTTP://Example.COM:80/a/../b/./c.jpg#top', 'http://example.com/b/c.jpg'),
    ('https://example.com:443', 'https://example.com/'),
    ('https://example.com:8443/x', 'https://example.com:8443/x'),
    ('https://example.com/%7euser/%c3%a4.jpg?q=%2f a',
     'https://example.com/~user/%C3%A4.jpg?q=%2F%20a'),
    ('https://example.com/ä b.jpg', 'https://example.com/%C3%A4%20b.jpg'),
    ('https://bücher.example/x', 'https://xn--bcher-kva.example/x'),
    ('https://example.com/100%.jpg', 'https://example.com/100%25.jpg'),
    ('https://user:secret@example.com/x', 'https://example.com/x'),
    ('https://example.com./x', 'https://example.com/x'),
    ('https://example.com/a\n/b.jpg ', 'https://example.com/a/b.jpg'),
    ('https://[2001:DB8::1]:80/x', 'https://[2001:db8::1]:80/x'),
    ('data:image/png;base64,AAAA', None), ('javascript:void(0)', None),
    ('ftp://example.com/x', None), ('https://example.com:port/x', None),
    ('https://', None), ('https://exa mple.com/', None), ('x.jpg', None),
    ('https://[::1/x', None)])
def test_spellings(address, want):
  got = addresses.normalized(address)
  assert got == want
  if want:
    assert addresses.normalized(got) == got  # nothing more to do


@pytest.mark.parametrize('address, want', [
    ('x.jpg', 'https://example.com/a/x.jpg'),
    ('/x.jpg', 'https://example.com/x.jpg'),
    ('//cdn.example/x.jpg', 'https://cdn.example/x.jpg'),
    ('../../../x.jpg', 'https://example.com/x.jpg'),
    ('?size=2', 'https://example.com/a/page.html?size=2')])
def test_relative_ones(address, want):
  assert addresses.normalized(
      address, 'https://example.com/a/page.html') == want


LIST = """
# hosts
0.0.0.0 hosts.example also.example   # two at once
127.0.0.1 localhost
! ad blockers
[Adblock Plus 2.0]
||ads.example^
||images.example^$image,third-party
@@||good.ads.example^
plain.example
*.star.example
.dot.example
https://pages.example/gallery/
other.example/one.jpg
##.banner
||part.example^$domain=x.example
/banner/*
"""


def test_kinds_of_lines():
  refused, unread = addresses.read(LIST.splitlines())
  why = lambda text: refused.why(addresses.normalized(text))
  for host in ('hosts', 'also', 'ads', 'images', 'plain', 'star', 'dot'):
    assert why(f'https://{host}.example/x') == f'{host}.example'
    assert why(f'http://deep.below.{host}.example/x') == f'{host}.example'
    assert why(f'https://not{host}.example/x') is None
  assert why('https://good.ads.example/x') is None
  assert why('https://sub.good.ads.example/x') is None
  assert why('http://pages.example/gallery') == 'pages.example/gallery'
  assert why('https://pages.example/gallery/1.jpg') is None
  assert why('https://other.example/one.jpg') == 'other.example/one.jpg'
  assert why('https://part.example/x') is None
  assert why('https://localhost/x') is None
  assert unread == 2  # '##' is a comment to hosts files


def test_lists_add_up():
  first, _ = addresses.read(['a.example'])
  second, _ = addresses.read(['b.example'])
  both = first | second
  assert both.why('https://x.a.example/') and both.why('https://b.example/')
