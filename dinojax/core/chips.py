"""Published peaks of accelerators, for estimates before one is rented."""

import dataclasses

from dinojax.core import errors


@dataclasses.dataclass(frozen=True)
class Chip:
  """Published peaks of one chip.

  Attributes:
    name: name in topologies, or the name that the chip is sold by.
    kinds: names that JAX's device_kind has for it, in lower case.
    bf16_flops: dense bfloat16 FLOPs a second.
    hbm_gib: GiB of memory, as sold; programs get a little less.
    hbm_bytes: bytes a second from and to the memory.
    link_bytes: bytes a second, one way, of one link of a TPU's torus, or of
      all links of a GPU together; 0 without links.
    links: number of links of a TPU.
    wrap: a TPU's torus is a ring along axes whose length is a multiple of it.
    matrix_side: side of the tiles that a TPU's matrix unit multiplies.
    cores: devices that JAX shows for a chip.
    clock_hz: clock rate of a TPU's cores, 0 if unknown.
    host_bytes: bytes a second, one way, between a TPU and its host's memory.
  """

  name: str
  kinds: tuple[str, ...]
  bf16_flops: float
  hbm_gib: float
  hbm_bytes: float
  link_bytes: float
  links: int = 1
  wrap: int = 0
  matrix_side: int = 128
  cores: int = 1
  clock_hz: float = 0.0
  host_bytes: float = 15e9


# Source: cloud.google.com/tpu/docs, system architecture, a page a generation
# (v4, v5e, v5p, v6e, tpu7x). Links: its bidirectional bandwidth a chip ÷ 2 ÷
# links; v4, whose page has none, wrap and matrix_side: "How to scale your
# model" (jax-ml.github.io/scaling-book/tpus), whose other links agree. Clocks:
# the peak ÷ (4 matrix units of 128 × 128, twice) of a core. tpu7x's
# matrix_side is v6e's. The host's PCIe is from there as well; tpu7x's is taken
# to be like the slowest.
_TPUS = (
    Chip('v4', ('tpu v4',), 275e12, 32, 1.2e12, 45e9, 6, wrap=4, cores=2,
         clock_hz=1.05e9),
    Chip('v5e', ('tpu v5 lite', 'tpu v5e'), 197e12, 16, 0.819e12, 50e9, 4,
         wrap=16, clock_hz=1.5e9),
    Chip('v5p', ('tpu v5', 'tpu v5p'), 459e12, 95, 2.765e12, 100e9, 6,
         wrap=4, clock_hz=1.75e9),
    Chip('v6e', ('tpu v6 lite', 'tpu v6e'), 918e12, 32, 1.638e12, 100e9, 4,
         wrap=16, matrix_side=256, host_bytes=32e9),
    Chip('tpu7x', ('tpu7x',), 2307e12, 192, 7.38e12, 100e9, 6, wrap=4,
         matrix_side=256, cores=2))

# Source: NVIDIA's data sheets of the four, as others quote them; not checked
# against the sheets. Tensor-core figures are printed there "with sparsity", the
# A100's aside: dense is half of them. NVLink is printed for both directions.
_GPUS = (
    Chip('A100-80GB', ('nvidia a100-sxm4-80gb',), 312e12, 80, 2.039e12,
         300e9),
    Chip('H100-SXM', ('nvidia h100 80gb hbm3',), 989.5e12, 80, 3.35e12,
         450e9),
    Chip('H200', ('nvidia h200',), 989.5e12, 141, 4.8e12, 450e9),
    Chip('L4', ('nvidia l4',), 121e12, 24, 0.3e12, 0))

CHIPS = {chip.name: chip for chip in _TPUS + _GPUS}


def of_topology(topology: str) -> Chip:
  """The chip of a topology's name, 'v5e:16x16'.

  Raises:
    UserError: unknown.
  """
  name = topology.partition(':')[0]
  known = {chip.name: chip for chip in _TPUS}
  if name not in known:
    raise errors.UserError(
        f'--topology={topology} names no chip that is known: use one of '
        f'{", ".join(known)}, as in v5e:16x16, or cpu:8')
  return known[name]


def of_device_kind(kind: str) -> Chip | None:
  """The chip that JAX calls so, its `device_kind`."""
  for chip in CHIPS.values():
    if kind.lower() in chip.kinds:
      return chip
  return None
