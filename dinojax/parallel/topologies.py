"""Devices that need not be here: to compile for them."""

import os

import jax
from jax.experimental import topologies as jax_topologies

from dinojax.core import chips
from dinojax.core import errors

# Several processes may compile; none of them opens a TPU. libtpu asks its
# machine for the rest, and complains at length where there is no TPU.
_LIBTPU = {'ALLOW_MULTIPLE_LIBTPU_LOAD': '1', 'TPU_SKIP_MDS_QUERY': '1',
           'TPU_WORKER_HOSTNAMES': 'localhost',
           'TPU_ACCELERATOR_TYPE': 'v5litepod-8'}


def devices(topology: str) -> list:
  """Devices of a topology that need not be here.

  Args:
    topology: 'v5e:16x16', or 'cpu:8'.

  Raises:
    UserError: unknown, libtpu is not installed, or JAX has started here with
      fewer CPU devices.
  """
  if topology.startswith('cpu:') and topology[4:].isdecimal():
    return _cpus(int(topology[4:]))
  chips.of_topology(topology)
  for name, value in _LIBTPU.items():
    os.environ.setdefault(name, value)
  try:
    import libtpu  # noqa: F401  jax finds it by itself
  except ImportError as error:
    raise errors.UserError(
        f'--topology={topology} needs the TPU compiler: `pip install '
        'libtpu`; it runs on any machine') from error
  try:
    return list(jax_topologies.get_topology_desc(
        platform='tpu', topology_name=topology).devices)
  except (RuntimeError, ValueError) as error:
    raise errors.UserError(
        f'--topology={topology} is not known to libtpu: '
        f'{str(error).splitlines()[0][:200]}; sizes are such as v5e:2x4, '
        'v5e:16x16, v5p:4x4x4, v6e:4x4') from error


def _cpus(count: int) -> list:
  """So many CPU devices of this process; it gets them if it has none yet."""
  try:
    jax.config.update('jax_num_cpu_devices', max(count, 1))
  except RuntimeError:  # JAX has started, with those that it has
    pass
  cpus = jax.devices('cpu')
  if not 1 <= count <= len(cpus):
    raise errors.UserError(
        f'--topology=cpu:{count}: this process has {len(cpus)} CPU devices; '
        f'ask for cpu:1 to cpu:{len(cpus)}, or for more in a new process')
  return cpus[:count]
