"""Seconds that collectives need on the links of a TPU slice.

A collective is taken to be a ring over one axis of the torus: it has both
links of the axis where that closes to a ring, else one; the links of the
other axes stand still.
"""

from collections.abc import Iterable
import math

from dinojax.core import chips
from dinojax.planning import collectives

# Source: "How to scale your model" (jax-ml.github.io/scaling-book/sharding):
# a hop costs about 1 µs, whatever it carries.
HOP_S = 1e-6


def axes(topology: str) -> tuple[int, ...]:
  """Chips along every axis: 'v5e:16x16' is (16, 16)."""
  return tuple(int(n) for n in topology.partition(':')[2].split('x')
               if n.isdigit())


def used(chip: chips.Chip, topology: str, devices: int) -> int:
  """Links of a chip that send at once: 2 in a ring, 1 in an open row.

  Args:
    chip: the chip of the topology.
    topology: such as 'v5e:16x16'.
    devices: number of devices in a group; it is a ring if it fills whole
      axes that close.
  """
  sizes = axes(topology)
  closes = [bool(chip.wrap) and n % chip.wrap == 0 for n in sizes]
  members = max(devices // chip.cores, 1)
  if members in sizes:
    along = [closed for n, closed in zip(sizes, closes, strict=True)
             if n == members]
    return 2 if all(along) else 1
  whole = any(math.prod(sizes[i:j]) == members for i in range(len(sizes))
              for j in range(i + 2, len(sizes) + 1))
  return 2 if whole and all(closes) else 1


def seconds(chip: chips.Chip, topology: str,
            collectives: Iterable[collectives.Collective]) -> float:
  """Seconds that the collectives of a step take, one after the other."""
  total = 0.0
  for collective in collectives:
    if collective.devices > 1:
      lanes = used(chip, topology, collective.devices)
      rounds = 2 if collective.kind == 'all-reduce' else 1
      hops = 1 if collective.kind == 'collective-permute' else (
          math.ceil((collective.devices - 1) / lanes) * rounds)
      speed = lanes * chip.link_bytes / chip.cores
      total += max(
          collective.sent_bytes / speed, collective.count * hops * HOP_S)
  return total
