"""Addresses of images on the web: one spelling each, and lists of refused ones.

Nothing is fetched here.
"""

from collections.abc import Iterable
import dataclasses
import re
from urllib import parse

_PORTS = {'http': 80, 'https': 443}
# RFC 3986: bytes that need no escape, and those with a meaning in a path.
_PATH, _QUERY = "-._~!$&'()*+,;=:@/", "-._~!$&'()*+,;=:@/?"
_LABEL = r'[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?'
_HOST = re.compile(rf'{_LABEL}(?:\.{_LABEL})*')
_BLOCKED_BY_HOSTS = ('0.0.0.0', '127.0.0.1', '::', '::1')
_LOCAL = {'localhost', 'localhost.localdomain', 'local', 'broadcasthost',
          'ip6-localhost', 'ip6-loopback', '0.0.0.0'}


def normalized(address: str, page: str | None = None) -> str | None:
  """The one spelling of an address, or None: nothing that can be fetched.

  Scheme and host are in small letters, names of other scripts in Punycode,
  default ports, fragments and steps such as `a/../` are gone, and what a path
  or a query must escape is escaped.

  Args:
    address: as it stands in a page, possibly relative.
    page: address that it is relative to; None: it must be whole.

  Source: RFC 3986, section 6.2; the URL standard for blanks and backslashes.
  """
  # Browsers drop blanks around an address, and breaks within it.
  address = re.sub(r'[\t\r\n]', '', address.strip('\x00- '))
  try:
    whole = parse.urljoin(page, address) if page else address
    parts = parse.urlsplit(whole)
    host, port = parts.hostname, parts.port
  except ValueError:  # a port of letters, a half bracket
    return None
  if parts.scheme not in _PORTS or not host:
    return None
  host = _ascii(host)
  if host is None:
    return None
  if port is not None and port != _PORTS[parts.scheme]:
    host = f'{host}:{port}'
  path = _escaped(_without_steps(parts.path.replace('\\', '/') or '/'), _PATH)
  return parse.urlunsplit(
      (parts.scheme, host, path, _escaped(parts.query, _QUERY), ''))


def host_of(address: str) -> str:
  """Host of a normalized address, without its port."""
  return parse.urlsplit(address).hostname or ''


def _ascii(host: str) -> str | None:
  """A host in letters of DNS; None if it cannot be one."""
  host = host.rstrip('.').lower()
  if ':' in host:  # IPv6
    return f'[{host}]' if re.fullmatch(r'[0-9a-f:.]+', host) else None
  try:
    host = host.encode('idna').decode() if not host.isascii() else host
  except UnicodeError:
    return None
  return host if len(host) <= 253 and _HOST.fullmatch(host) else None


def _without_steps(path: str) -> str:
  """A path without `.` and `..`."""
  out = []
  for part in path.split('/'):
    if part == '..':
      out[1:] = out[1:-1]
    elif part != '.':
      out.append(part)
  if path.endswith(('/.', '/..')):
    out.append('')
  return '/'.join(out) or '/'


def _escaped(text: str, kept: str) -> str:
  """Escapes where they must be, with large digits, and nowhere else."""
  text = re.sub('%(?![0-9A-Fa-f]{2})', '%25', text)
  # Bytes that are no letters of ASCII stay escaped, others become themselves.
  text = re.sub('%([0-9A-Fa-f]{2})', lambda match: (
      chr(int(match[1], 16)) if re.match(r'[A-Za-z0-9._~-]', chr(
          int(match[1], 16))) else match[0].upper()), text)
  return parse.quote(text, safe=kept + '%')


@dataclasses.dataclass(frozen=True)
class Refused:
  """Hosts with all below them, and single addresses, that are not fetched."""

  hosts: frozenset[str] = frozenset()
  addresses: frozenset[str] = frozenset()
  allowed: frozenset[str] = frozenset()  # hosts below a refused one

  def why(self, address: str) -> str | None:
    """The entry that refuses a normalized address; None: it may be fetched."""
    host = host_of(address)
    labels = host.split('.')
    for start in range(len(labels)):  # from the longest name to the shortest
      name = '.'.join(labels[start:])
      if name in self.allowed:
        break
      if name in self.hosts:
        return name
    # Lists of addresses mean both schemes.
    bare = address.partition('://')[2].rstrip('/')
    return bare if bare in self.addresses else None

  def __or__(self, other: 'Refused') -> 'Refused':
    """Both lists together."""
    return Refused(self.hosts | other.hosts, self.addresses | other.addresses,
                   self.allowed | other.allowed)


def read(lines: Iterable[str]) -> tuple[Refused, int]:
  """Reads a list of refused hosts and addresses; kinds of lines may be mixed.

  Lines of hosts files (`0.0.0.0 bad.example`), of ad blockers
  (`||bad.example^`, and `@@||good.bad.example^` for what is allowed), names of
  domains (`bad.example`, `.bad.example`, `*.bad.example`), and addresses.
  Comments begin with `#` or `!`.

  Returns:
    The list, and the number of lines that are none of these, such as an ad
    blocker's rules for parts of pages or for some pages only.
  """
  hosts, addresses, allowed, unread = set(), set(), set(), 0
  for line in lines:
    line = line.strip().lstrip('\ufeff')
    if not line or line[0] in '!#[':
      continue
    entry = _entry(line)
    if entry is None:
      unread += 1
    else:
      kind, names = entry
      {'host': hosts, 'address': addresses, 'allowed': allowed}[kind].update(
          names)
  return Refused(frozenset(hosts), frozenset(addresses),
                 frozenset(allowed)), unread


def _entry(line: str) -> tuple[str, list[str]] | None:
  """Kind of an entry, and its names; None: a line that is not understood."""
  rule = re.fullmatch(r'(@@)?\|\|([^/^$*|]+)\^?(?:\$(?:all|doc|document|'
                      r'image|important|popup|third-party|3p)'
                      r'(?:,(?:all|doc|document|image|important|popup'
                      r'|third-party|3p))*)?', line)
  if rule:
    host = _ascii(rule[2])
    return host and ('allowed' if rule[1] else 'host', [host])
  line = re.sub(r'\s+#.*', '', line)
  first, *rest = line.split()
  if first in _BLOCKED_BY_HOSTS and rest:
    names = [_ascii(name) for name in rest if name not in _LOCAL]
    return None if None in names else ('host', names)
  if rest:
    return None
  if '/' in line.partition('://')[2] or '://' in line or '/' in line:
    whole = normalized(line if '://' in line else f'http://{line}')
    if whole is None:
      return None
    bare = whole.partition('://')[2].rstrip('/')
    return ('address', [bare]) if '/' in bare else ('host', [host_of(whole)])
  host = _ascii(line.removeprefix('*.').removeprefix('.'))
  return host and ('host', [host])
