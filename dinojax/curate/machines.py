"""Machines that a curation is planned for: chips, cores, FLOPs a second."""

import dataclasses
import math

from dinojax.core import chips
from dinojax.core import errors
from dinojax.curate import assumptions

CPU_FLOPS = 5e10  # of a core, float32, as measured with both of two at work
# bfloat16 passes in the time of a float32 product: six of TPUs, and of GPUs
# the quotient of an H100's peaks.
_FLOAT32_PASSES = {'tpu': 6, 'gpu': 15, 'cpu': 1}


@dataclasses.dataclass(frozen=True)
class Machine:
  """Accelerators and hosts.

  Attributes:
    name: as it was given.
    chips: accelerators; 0: none.
    chip: their peaks; None: none.
    cores: cores of all hosts.
    hosts: machines.
  """

  name: str
  chips: int
  chip: chips.Chip | None
  cores: int
  hosts: int

  @property
  def kind(self) -> str:
    """'tpu', 'gpu' or 'cpu'."""
    if self.chip is None:
      return 'cpu'
    return 'tpu' if self.chip.name.startswith(('v', 'tpu')) else 'gpu'

  def flops(self, settings: assumptions.Settings, *, float32: bool,
            alone: bool) -> float:
    """FLOPs a second; float32 or bfloat16, of all machines or of one."""
    share = 1 / self.hosts if alone else 1.0
    if self.chip is None:
      return self.cores * CPU_FLOPS * share
    passes = _FLOAT32_PASSES[self.kind] if float32 else 1
    return (self.chips * self.chip.bf16_flops * settings.utilization * share
            / passes)


def parse(text: str, settings: assumptions.Settings) -> Machine:
  """Reads a machine's name.

  Args:
    text: a TPU slice, 'v5e:16x16'; GPUs by their number, 'H100-SXM:64'; cores,
      'cpu:96'.
    settings: how many cores and chips a machine has.

  Raises:
    UserError: none of them.
  """
  name, _, rest = text.partition(':')
  sizes = rest.split('x')
  if not all(size.isdecimal() and int(size) for size in sizes) or (
      name != 'cpu' and name not in chips.CHIPS):
    raise errors.UserError(
        f'--machine={text} is not understood: give a TPU slice as v5e:16x16, '
        f'GPUs as H100-SXM:64 ({", ".join(chips.CHIPS)} are known), or cores '
        'as cpu:96')
  count = math.prod(map(int, sizes))
  if name == 'cpu':
    return Machine(text, 0, None, count, 1)
  return Machine(text, count, chips.CHIPS[name],
                 count * settings.cores_per_chip,
                 -(-count // settings.chips_per_host))
