"""Multiplications and additions of dots and convolutions, as compiled.

A TPU compiler writes most matrix products as convolutions; both are counted
alike: 2 for each product of elements that are there.
"""

from collections.abc import Mapping
import dataclasses
import math
import re

import numpy as np

from dinojax.planning import instructions
from dinojax.planning import layouts

ROWS = 8  # sublanes: rows enter a matrix unit in eights


@dataclasses.dataclass(frozen=True)
class Product:
  """Matrix products [m, k] · [k, n], `count` of them.

  Attributes:
    rows: m.
    depth: k, summed over.
    columns: n.
    count: number of products; a fraction where a convolution's border is
      left out.
  """

  rows: int
  depth: int
  columns: int
  count: float = 1.0

  @property
  def flops(self) -> float:
    """FLOPs without padding."""
    return 2.0 * self.rows * self.depth * self.columns * self.count

  def padded_flops(self, side: int) -> float:
    """FLOPs with tiles filled up, for a matrix unit of side × side.

    A tile of [k, n] stays in the unit while rows stream through it, in
    eights.
    """
    fill = lambda size, part: -(-size // part) * part
    return 2.0 * self.count * fill(self.rows, ROWS) * (
        fill(self.depth, side) * fill(self.columns, side))


def product(op: instructions.Instruction,
            shapes: Mapping[str, str]) -> Product | None:
  """Reads the matrix product of a dot or convolution; None for all others.

  Args:
    op: any instruction.
    shapes: shapes of its operands as text, by name.
  """
  if op.opcode not in ('dot', 'convolution'):
    return None
  left, right = (layouts.arrays(shapes[name])[0].sizes
                 for name in op.operands[:2])
  if op.opcode == 'dot':
    return _dot(op, left, right)
  out = layouts.arrays(op.shape)[0].sizes
  return _convolution(op, left, right, out)


def _dot(op, left, right) -> Product:
  dimensions = lambda key: [int(n) for n in (op.attribute(
      rf'\b{key}=\{{([\d,]*)\}}') or '').split(',') if n]
  batch = math.prod(left[i] for i in dimensions('lhs_batch_dims'))
  depth = math.prod(left[i] for i in dimensions('lhs_contracting_dims'))
  return Product(math.prod(left) // (batch * depth), depth,
                 math.prod(right) // (batch * depth), batch)


def _convolution(op, left, right, out) -> Product:
  labels = op.attribute(r'dim_labels=(\S+?)(?:,|$)')
  of_left, of_right, of_out = re.split('_|->', labels)
  groups = int(op.attribute(r'feature_group_count=(\d+)') or 1)
  batch_groups = int(op.attribute(r'batch_group_count=(\d+)') or 1)
  window = op.attribute(r'window=\{([^}]*)\}') or ''
  depth = left[of_left.index('f')] // groups
  columns = out[of_out.index('f')]
  rows = left[of_left.index('b')] // batch_groups
  count, used = 1.0, 1.0
  for label in (label for label in of_out if label.isdigit()):
    size, kernel, places = (x[names.index(label)] for x, names in (
        (left, of_left), (right, of_right), (out, of_out)))
    taps = _taps(window, int(label), size, kernel, places)
    if kernel > 1 and taps == places:  # every place has a kernel of its own
      count *= places
    else:
      rows *= places
      used *= taps / places
  whole = max(round(used), 1)
  return Product(rows, depth * whole, columns // groups,
                 count * groups * used / whole)


def _taps(window: str, place: int, size: int, kernel: int, out: int) -> int:
  """Pairs of an output's and a window's place that meet an element."""
  def part(key: str, default: str) -> str:
    match = re.search(rf'\b{key}=(\S+)', window)
    return match.group(1).split('x')[place] if match else default

  stride, dilation = int(part('stride', '1')), int(part('rhs_dilate', '1'))
  spread = int(part('lhs_dilate', '1'))
  low = int(part('pad', '0_0').split('_')[0])
  at = (np.arange(out)[:, None] * stride - low
        + np.arange(kernel)[None, :] * dilation)
  return int(np.sum(
      (at >= 0) & (at % spread == 0) & (at // spread < size)))
