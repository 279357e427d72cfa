"""What a compiled program sends between devices, read from its text.

Loops are counted with their trips: the compiler's own analysis counts the
body of a scan once.
"""

from collections.abc import Iterator
import dataclasses
import math
import re

_KINDS = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all',
          'collective-permute')
_HEADER = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{$')
_COLLECTIVE = re.compile(
    rf'= (.*?) ({"|".join(_KINDS)})(-start)?\(')
_CALLED = re.compile(r'(?:calls|to_apply)=%?([\w.\-]+)')
_WHILE = re.compile(r'condition=%?([\w.\-]+), body=%?([\w.\-]+)')
_TRIPS = re.compile(r'known_trip_count[^0-9]*(\d+)')
_ARRAY = re.compile(r'\b(pred|[a-z]+\d+[a-z\d]*)\[([\d,]*)\]')


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective of a step.

  Attributes:
    kind: 'all-gather', ….
    dtype: of what is sent.
    elements: of the whole array, before or after.
    devices: that take part together.
    count: times a step.
  """

  kind: str
  dtype: str
  elements: int
  devices: int
  count: int

  @property
  def sent_bytes(self) -> float:
    """That a device sends in a step, around a ring."""
    bits = int(re.search(r'\d+', self.dtype).group() if self.dtype != 'pred'
               else 8)
    whole = self.elements * bits / 8 * self.count
    if self.kind == 'collective-permute':
      return whole
    rounds = 2 if self.kind == 'all-reduce' else 1
    return rounds * whole * (self.devices - 1) / self.devices


def collectives(text: str) -> list[Collective]:
  """All collectives of a program's text (`compiled.as_text()`)."""
  bodies = dict(_computations(text))
  found: dict[str, Collective] = {}
  for name, times in _times(text, bodies).items():
    for line in bodies[name]:
      match = _COLLECTIVE.search(line)
      if match is None or f'{match.group(2)}-done' in line:
        continue
      # The parts of one that overlaps with other work form a chain.
      chain = re.search(r'chain_id="(\d+)"', line)
      key = chain.group(0) if chain else f'{name} {line.split(" = ")[0]}'
      one = _read(match, line, times)
      if key not in found or found[key].count < times:
        found[key] = one
  return list(found.values())


def _read(match: re.Match, line: str, times: int) -> Collective:
  shape, kind, start = match.groups()
  arrays = [(dtype, math.prod(int(n) for n in sizes.split(',') if n))
            for dtype, sizes in _ARRAY.findall(shape)]
  if start:  # a tuple of what goes in and what comes out
    arrays = arrays[-1:]
  dtype, elements = arrays[0][0], sum(count for _, count in arrays)
  devices = _group(line)
  if kind == 'reduce-scatter':
    elements *= devices
  return Collective(kind, dtype, elements, devices, times)


def _group(line: str) -> int:
  """Devices of a group: '{{0,1},{2,3}}' or '[16,16]<=[256]'."""
  listed = re.search(r'replica_groups=\{\{([\d,]*)\}', line)
  if listed:
    return len(listed.group(1).split(','))
  iota = re.search(r'replica_groups=\[\d+,(\d+)\]', line)
  return int(iota.group(1)) if iota else 1


def _computations(text: str) -> Iterator[tuple[str, list[str]]]:
  name, lines = None, []
  for line in text.splitlines():
    header = _HEADER.match(line)
    if header:
      name, lines = header.group(2), []
    elif line.startswith('}') and name:
      yield name, lines
      name = None
    elif name:
      lines.append(line)


def _times(text: str, bodies: dict[str, list[str]]) -> dict[str, int]:
  """How often every computation runs in a step."""
  entry = re.search(r'^ENTRY %?([\w.\-]+)', text, re.MULTILINE).group(1)
  times: dict[str, int] = {}

  def visit(name: str, count: int):
    if name not in bodies:
      return
    times[name] = max(times.get(name, 0), count)
    for line in bodies[name]:
      loop = _WHILE.search(line)
      if loop:
        visit(loop.group(2), count * _trips(line, bodies[loop.group(1)]))
      else:
        for called in _CALLED.findall(line):
          visit(called, count)

  visit(entry, 1)
  return times


def _trips(line: str, condition: list[str]) -> int:
  """Trips of a loop: stated, or the constant that its counter is held to."""
  stated = _TRIPS.search(line)
  if stated:
    return int(stated.group(1))
  limits = [int(n) for text in condition
            for n in re.findall(r's32\[\]\S* constant\((\d+)\)', text)]
  return max(limits, default=1)
