"""The least time of a compiled step on a chip, instruction by instruction.

An instruction takes as long as the slower of its matrix products, tiles
filled up, and its traffic to HBM; they run one after the other. Loops count
with their trips and kernels with the cost that they state. The vector unit
is taken to keep up, collectives are counted elsewhere (`links`).
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import math

from dinojax.core import chips
from dinojax.planning import collectives
from dinojax.planning import instructions
from dinojax.planning import layouts
from dinojax.planning import matrix
from dinojax.planning import origins
from dinojax.planning import traffic

# Kernels of attention, and the products of [tokens, tokens, head] they make.
_ATTENTION = {'vit_attention': 2, 'vit_attention_backward': 5}
_FREE = ('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast',
         'after-all', 'partition-id', 'replica-id', 'opt-barrier', 'domain',
         'add-dependency')


@dataclasses.dataclass(frozen=True)
class Work:
  """Work of an instruction each time it runs.

  Attributes:
    name: name of the instruction.
    op_name: JAX's name stack.
    origin: function that it comes from, see origins.
    kind: opcode, or the name of a kernel.
    count: number of runs in a step.
    flops: FLOPs of its matrix products.
    padded_flops: the same with tiles filled up.
    hbm_bytes: bytes read from and written to HBM.
    cycles: cycles that the TPU's compiler expects; 0: it does not say.
    host_bytes: bytes read from and written to the host's memory.
  """

  name: str
  op_name: str
  origin: str
  kind: str
  count: int
  flops: float
  padded_flops: float
  hbm_bytes: float
  cycles: int = 0
  host_bytes: float = 0.0

  def seconds(self, chip: chips.Chip) -> float:
    """Least time of all its runs in a step, in seconds."""
    return self.count * chip.cores * max(
        self.padded_flops / chip.bf16_flops, self.hbm_bytes / chip.hbm_bytes)

  def expected_seconds(self, chip: chips.Chip) -> float:
    """Seconds of all its runs as the compiler expects, at least `seconds`.

    The compiler's cycles include the vector unit and VMEM; the roofline's
    seconds do not.
    """
    return max(self.seconds(chip), self.count * self.cycles / chip.clock_hz)


def work(text: str, side: int = 128) -> list[Work]:
  """Lists the work of a step, instruction by instruction, without collectives.

  Args:
    text: `compiled.as_text()`.
    side: side of the chip's matrix tiles, in elements.
  """
  program, origin = instructions.parse(text), origins.Origins(text)
  return [dataclasses.replace(item, origin=origin.of(int(item.origin or 0)))
          for item in _run(program, program.entry, 1, side)]


def _run(program: instructions.Program, name: str, count: int,
         side: int) -> Iterator[Work]:
  """Work of a computation and of those it calls; of branches the dearest."""
  inside = program.computations.get(name, {})
  shapes = {op.name: op.shape for op in inside.values()}
  for op in inside.values():
    if op.opcode == 'while':
      for body in op.called:
        yield from _run(program, body, count * program.trips(op), side)
    elif op.opcode == 'conditional':
      yield from max(
          (list(_run(program, branch, count, side))
           for branch in op.branches),
          key=lambda items: (_sum(items, lambda x: x.padded_flops),
                             _sum(items, lambda x: x.hbm_bytes)), default=[])
    elif op.opcode in ('call', 'async-start'):
      for called in op.called:
        yield from _run(program, called, count, side)
    elif not _is_free(op.opcode):
      yield _of(program, op, shapes, count, side)


def _is_free(opcode: str) -> bool:
  """Moves nothing, or is counted where it starts, or by its links."""
  return (opcode in _FREE or opcode.endswith(('-done', '-update'))
          or opcode.removesuffix('-start') in collectives.KINDS)


def _of(program, op: instructions.Instruction, shapes: Mapping[str, str],
        count: int, side: int) -> Work:
  kernel = _kernel(op, shapes, side)
  if kernel:
    return dataclasses.replace(kernel, count=count)
  products = list(_products(program, op, shapes))
  return Work(
      op.name, op.op_name, _frame(op), op.opcode, count,
      sum(p.flops for p in products),
      sum(p.padded_flops(side) for p in products),
      traffic.moved_bytes(program, op, shapes),
      int(op.attribute(r'"estimated_cycles":"(\d+)"') or 0),
      traffic.moved_bytes(program, op, shapes, layouts.HOST))


def _products(program, op, shapes) -> Iterator[matrix.Product]:
  """Yields the products of an instruction and, for a fusion, of those in it."""
  product = matrix.product(op, shapes)
  if product:
    yield product
  if op.opcode == 'fusion':
    for called in op.called:
      inside = program.computations.get(called, {})
      inner = {x.name: x.shape for x in inside.values()}
      for x in inside.values():
        yield from _products(program, x, inner)


def _kernel(op, shapes, side: int) -> Work | None:
  """A Pallas kernel by the cost that it states, None for anything else.

  The bytes that it states are those of its buffers, or more where it reads
  one again: the share of those that lie in HBM counts, with their padding.
  """
  stated = [op.attribute(rf'"cost_estimate":\{{.*?"{key}":"(\d+)"')
            for key in ('flops', 'bytes_accessed', 'transcendentals')]
  if op.opcode != 'custom-call' or stated[0] is None:
    return None
  flops, moved, transcendentals = (float(x or 0) for x in stated)
  name = op.op_name.removesuffix('/pallas_call').rpartition('/')[2]
  buffers = [array for shape in (
      *(shapes[x] for x in set(op.operands) if x in shapes), op.shape)
             for array in layouts.arrays(shape)]
  whole = sum(array.num_bytes for array in buffers)
  in_hbm = sum(array.bytes_in(layouts.HBM) for array in buffers)
  padding = 1.0
  if name in _ATTENTION and transcendentals:
    tokens = layouts.arrays(op.shape)[0].sizes[-2]
    head = round(flops / transcendentals / 2 / _ATTENTION[name])
    product = matrix.Product(tokens, head, tokens)
    padding = product.padded_flops(side) / product.flops
  return Work(op.name, op.op_name, _frame(op), name or 'kernel', 1, flops,
              flops * padding, moved * in_hbm / max(whole, 1.0))


def _frame(op: instructions.Instruction) -> str:
  """The number of its stack frame, until `work` knows the function."""
  return op.attribute(r'stack_frame_id=(\d+)') or ''


def total(items: list[Work], chip: chips.Chip) -> dict[str, float]:
  """Sums of a step, of one device: FLOPs, bytes, seconds.

  `expected_s` is there where the chip's clock is known.
  """
  flops = chip.bf16_flops / chip.cores
  bandwidth = chip.hbm_bytes / chip.cores
  padded = _sum(items, lambda x: x.padded_flops)
  moved = _sum(items, lambda x: x.hbm_bytes)
  expected = {'expected_s': math.fsum(
      x.expected_seconds(chip) for x in items)} if chip.clock_hz else {}
  return {
      'flops': executed(items), 'padded_flops': padded, 'hbm_bytes': moved,
      'host_bytes': _sum(items, lambda x: x.host_bytes),
      'matrix_s': padded / flops, 'hbm_s': moved / bandwidth,
      'busy_s': math.fsum(x.seconds(chip) for x in items),
      **expected}


def executed(items: list[Work]) -> float:
  """FLOPs of matrix products in a step, of one device, without padding."""
  return _sum(items, lambda x: x.flops)


def _sum(items: list[Work], value: Callable[[Work], float]) -> float:
  return math.fsum(item.count * value(item) for item in items)
