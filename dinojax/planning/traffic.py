"""Bytes that an instruction of a compiled program moves to and from a memory.

Counts operands and results that lie there, with tiles filled up: only the
slice of an array that is sliced, only the update of one that is updated in
place, and nothing that stays inside a fusion.
"""

from collections.abc import Mapping

from dinojax.planning import instructions
from dinojax.planning import layouts

_SLICES = ('dynamic-slice', 'slice', 'gather')
# Operand that is updated in place, and the one that holds the update.
_UPDATES = {'dynamic-update-slice': 1, 'scatter': 2}
_SAME = ('bitcast', 'get-tuple-element')


def moved_bytes(program: instructions.Program,
                op: instructions.Instruction, shapes: Mapping[str, str],
                space: int = layouts.HBM) -> float:
  """Bytes that one run of an instruction moves to and from a memory.

  Args:
    program: program that the instruction is part of.
    op: any instruction but those that run other computations; fusions may.
    shapes: shapes of its operands by name; unknown ones count nothing.
    space: the memory, see layouts.
  """
  if op.opcode == 'copy-start':  # (to, from, a context)
    return sum(x.bytes_in(space) for x in layouts.arrays(op.shape)[:2])
  if op.opcode.endswith('-start'):
    return _started(op, shapes, space)
  read = sum(
      min(_lying(shapes.get(name, ''), space), _read(program, op, place))
      for place, name in enumerate(op.operands)
      if name not in op.operands[:place] or op.opcode == 'fusion')
  written = sum(
      min(array.bytes_in(space), part) for array, part in zip(
          layouts.arrays(op.shape), _written(program, op, shapes),
          strict=False))
  return read + written


def _lying(shape: str, space: int) -> float:
  return sum(x.bytes_in(space) for x in layouts.arrays(shape))


def _padded(shape: str) -> float:
  return sum(x.padded_bytes for x in layouts.arrays(shape))


def _started(op, shapes, space: int) -> float:
  """Bytes of an asynchronous slice, at each end that lies in the memory."""
  places = layouts.arrays(op.shape)
  size = min((x.padded_bytes for x in places if x.elements > 1), default=0.0)
  ends = [_lying(shapes.get(name, ''), space) > 0
          for name in op.operands[:1]]
  arrives = [x for x in places if x.padded_bytes == size][-1:]
  return size * (sum(ends) + sum(x.space == space for x in arrives))


def _read(program, op, place: int) -> float:
  """The most bytes that an instruction reads of an operand."""
  if op.opcode in _SLICES:
    return _padded(op.shape) if place == 0 else float('inf')
  if op.opcode in _UPDATES:
    return 0.0 if place == 0 else float('inf')
  if op.opcode != 'fusion':
    return float('inf')
  inside = program.computations.get(op.called[0], {})
  for name, inner in inside.items():
    if inner.opcode == 'parameter' and inner.rest.startswith(f'({place})'):
      return _read_inside(program, inside, name)
  return float('inf')


def _read_inside(program, inside, name: str) -> float:
  """The most bytes that a fusion's instructions read of one of its values."""
  total = 0.0
  if inside[name].root:
    return float('inf')
  for user in inside.values():
    if name in user.operands:
      if user.opcode in _SAME:
        total += _read_inside(program, inside, user.name)
      else:
        total += max(_read(program, user, place)
                     for place, operand in enumerate(user.operands)
                     if operand == name)
  return total


def _written(program, op, shapes) -> list[float]:
  """The most bytes that an instruction writes of each result."""
  if op.opcode in _UPDATES:
    update = op.operands[_UPDATES[op.opcode]]
    return [_padded(shapes.get(update, ''))]
  if op.opcode == 'fusion':
    inside = program.computations.get(op.called[0], {})
    inner = {x.name: x.shape for x in inside.values()}
    for x in inside.values():
      if x.root:
        return _written_inside(program, inside, inner, x)
  return [x.padded_bytes for x in layouts.arrays(op.shape)]


def _written_inside(program, inside, shapes, op) -> list[float]:
  if op.opcode == 'tuple':
    return [part for name in op.operands for part in _written_inside(
        program, inside, shapes, inside[name])]
  if op.opcode == 'bitcast' and op.operands[0] in inside:
    return _written_inside(program, inside, shapes, inside[op.operands[0]])
  return _written(program, op, shapes)
