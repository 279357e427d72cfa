"""What accelerators can do, for estimates before one is rented."""

import dataclasses

from dinojax.core import errors


@dataclasses.dataclass(frozen=True)
class Chip:
  """Published peaks of one chip.

  Attributes:
    name: as topologies are named.
    bf16_flops: a second, dense.
    hbm_gib: memory.
    hbm_bytes: a second.
    link_bytes: a second, all links of a chip together.
    cores: devices that JAX shows for a chip.
  """

  name: str
  bf16_flops: float
  hbm_gib: float
  hbm_bytes: float
  link_bytes: float
  cores: int = 1


# Source: cloud.google.com/tpu/docs, system architecture, a page a generation.
CHIPS = {chip.name: chip for chip in (
    Chip('v4', 275e12, 32, 1.228e12, 300e9, cores=2),
    Chip('v5e', 197e12, 16, 0.819e12, 200e9),
    Chip('v5p', 459e12, 95, 2.765e12, 600e9),
    Chip('v6e', 918e12, 32, 1.640e12, 448e9))}


def of_topology(topology: str) -> Chip:
  """The chip of a topology's name, 'v5e:16x16'.

  Raises:
    UserError: unknown.
  """
  name = topology.partition(':')[0]
  if name not in CHIPS:
    raise errors.UserError(
        f'--topology={topology} names no chip that is known: use one of '
        f'{", ".join(CHIPS)}, as in v5e:16x16, or cpu:8')
  return CHIPS[name]
