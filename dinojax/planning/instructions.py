"""The text of a compiled program, taken apart: computations, instructions.

Read from `compiled.as_text()`, because nothing else says what the compiler
did: loops as loops, fusions with what is in them, layouts, memory spaces.
"""

import dataclasses
import re

_HEADER = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{$')
_MADE = re.compile(r'^\s+(ROOT )?%?([\w.\-]+) = ')
_OPCODE = re.compile(r'([\w\-]+)\(')
_NAME = re.compile(r'%([\w.\-]+)')
_CALLED = re.compile(r'\b(?:calls|to_apply|body)=%?([\w.\-]+)')
_BRANCHES = re.compile(r'\bbranch_computations=\{([^}]*)\}')
_TRUE_FALSE = re.compile(r'\b(?:true|false)_computation=%?([\w.\-]+)')
_CONDITION = re.compile(r'\bcondition=%?([\w.\-]+)')
_TRIPS = re.compile(r'known_trip_count[^0-9]*(\d+)')
_LIMIT = re.compile(r's32\[\]\S* constant\((\d+)\)')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
# A Pallas kernel's program, in base64: most of the text, and of no use here.
_BODY = re.compile(r'"body":"[^"]*"')


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One instruction, a line of the text.

  Attributes:
    name: name without its percent sign.
    shape: shape and layout as text; a tuple's is in parentheses.
    opcode: 'fusion', 'while', ….
    operands: names of the operands.
    rest: the text after the opcode: operands, then attributes.
    root: True if it is the result of its computation.
  """

  name: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  rest: str
  root: bool

  @property
  def called(self) -> tuple[str, ...]:
    """Computations that it runs; of a loop the body."""
    return tuple(_CALLED.findall(self.rest))

  @property
  def branches(self) -> tuple[str, ...]:
    """Computations of which it runs one."""
    listed = _BRANCHES.search(self.rest)
    return tuple(_NAME.findall(listed.group(1)) if listed
                 else _TRUE_FALSE.findall(self.rest))

  @property
  def op_name(self) -> str:
    """JAX's name stack, '' where there is none."""
    match = _OP_NAME.search(self.rest)
    return match.group(1) if match else ''

  def attribute(self, pattern: str) -> str | None:
    """The first group of a pattern in the attributes, if it is there."""
    match = re.search(pattern, self.rest)
    return match.group(1) if match else None


@dataclasses.dataclass(frozen=True)
class Program:
  """Computations by name, each instructions by name, in order."""

  computations: dict[str, dict[str, Instruction]]
  entry: str

  def trips(self, loop: Instruction) -> int:
    """Iterations of a loop: stated, or the constant that bounds its counter."""
    stated = _TRIPS.search(loop.rest)
    if stated:
      return int(stated.group(1))
    condition = self.computations.get(
        loop.attribute(_CONDITION.pattern) or '', {})
    limits = [int(n) for op in condition.values()
              for n in _LIMIT.findall(f'{op.shape} {op.opcode}{op.rest}')]
    return max(limits, default=1)

  def times(self) -> dict[str, int]:
    """How often every computation runs in a step; every branch counts."""
    out: dict[str, int] = {}

    def visit(name: str, count: int):
      if name not in self.computations:
        return
      out[name] = out.get(name, 0) + count
      for op in self.computations[name].values():
        each = self.trips(op) if op.opcode == 'while' else 1
        for called in (*op.called, *op.branches):
          visit(called, count * each)

    visit(self.entry, 1)
    return out


def parse(text: str) -> Program:
  """Takes `compiled.as_text()` apart."""
  computations, current, entry = {}, None, ''
  for line in text.splitlines():
    header = _HEADER.match(line)
    if header:
      current = computations.setdefault(header.group(2), {})
      entry = header.group(2) if header.group(1) else entry
    elif line.startswith('}'):
      current = None
    elif current is not None:
      op = _instruction(line)
      if op:
        current[op.name] = op
  return Program(computations, entry)


def _instruction(line: str) -> Instruction | None:
  made = _MADE.match(line)
  if not made:
    return None
  line = _BODY.sub('', line)
  start = made.end()
  end = _closing(line, start) + 1 if line[start] == '(' else (
      line.index(' ', start))
  opcode = _OPCODE.match(line, end + 1)
  if not opcode:
    return None
  rest = line[opcode.end() - 1:]
  operands = rest[:_closing(rest, 0)]
  return Instruction(
      made.group(2), line[start:end], opcode.group(1),
      tuple(_NAME.findall(operands)), rest, bool(made.group(1)))


def _closing(text: str, start: int) -> int:
  """Where the parenthesis that opens at `start` closes."""
  depth = 0
  for place in range(start, len(text)):
    depth += {'(': 1, ')': -1}.get(text[place], 0)
    if not depth:
      return place
  return len(text)
