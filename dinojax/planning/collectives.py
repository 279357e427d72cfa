"""Collectives of a compiled program and the bytes they send, from its text.

The body of a loop counts once per iteration; the compiler's own analysis counts
the body of a scan only once.
"""

import dataclasses
import math
import re

from dinojax.planning import instructions
from dinojax.planning import layouts

KINDS = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all',
         'collective-permute')


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective of a step.

  Attributes:
    kind: one of KINDS, such as 'all-gather'.
    dtype: element type as in the text: 'bf16', ….
    elements: number of elements of the undivided array: the result of an
      all-gather, the operand of a reduce-scatter.
    devices: number of devices in a group.
    count: number of executions in a step.
  """

  kind: str
  dtype: str
  elements: int
  devices: int
  count: int

  @property
  def sent_bytes(self) -> float:
    """Bytes that a device sends in a step, by ring algorithms."""
    array = layouts.Array(self.dtype, (self.elements,))
    whole = array.num_bytes * self.count
    if self.kind == 'collective-permute':
      return whole
    rounds = 2 if self.kind == 'all-reduce' else 1
    return rounds * whole * (self.devices - 1) / self.devices


def of_program(text: str) -> list[Collective]:
  """All collectives of a program's text (`compiled.as_text()`)."""
  program = instructions.parse(text)
  collectives: dict[str, Collective] = {}
  for name, times in program.times().items():
    for op in program.computations[name].values():
      kind = op.opcode.removesuffix('-start')
      if kind in KINDS:
        # The parts of one that overlaps with other work form a chain.
        chain = op.attribute(r'(chain_id="\d+")')
        key = chain or f'{name} {op.name}'
        if key not in collectives or collectives[key].count < times:
          collectives[key] = _read(op, kind, times)
  return list(collectives.values())


def _read(op: instructions.Instruction, kind: str,
          times: int) -> Collective:
  arrays = layouts.arrays(op.shape)
  if op.opcode == 'all-gather-start':  # (what goes in, what comes out)
    arrays = arrays[len(arrays) // 2:]
  elif op.opcode == 'collective-permute-start':  # (in, out, two contexts)
    arrays = arrays[1:2]
  elements, devices = sum(x.elements for x in arrays), _group(op)
  if kind == 'reduce-scatter':
    elements *= devices
  return Collective(kind, arrays[0].dtype, elements, devices, times)


def _group(op: instructions.Instruction) -> int:
  """Number of devices in a group.

  Groups are written as '{{0,1},{2,3}}', '[16,16]<=[256]', or axes of a mesh,
  "mesh['a'=2,'b'=8] {'a'}", or a part of an axis, "{'b':(1)4}".
  """
  if op.opcode.startswith('collective-permute'):
    return 2
  listed = op.attribute(r'replica_groups=\{\{([\d,]*)\}')
  if listed:
    return len(listed.split(','))
  rows = op.attribute(r'replica_groups=\[\d+,(\d+)\]')
  if rows:
    return int(rows)
  axes = re.search(r'replica_groups=mesh\[(.*?)\][^{]*\{(.*?)\}', op.rest)
  if axes:
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes.group(1)))
    return math.prod(
        int(part or sizes[name]) for name, part in re.findall(
            r"'(\w+)'(?::\(\d+\)(\d+))?", axes.group(2)))
  unknown = op.attribute(r'(replica_groups=.{,200})')
  if unknown:
    raise ValueError(f'{op.name}: cannot read {unknown}')
  return 1
