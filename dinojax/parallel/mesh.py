"""The device mesh: axes ('data', 'fsdp'), explicit, always there."""

from collections.abc import Sequence
import functools
import logging

import jax
from jax import P

from dinojax.core import errors

# JAX tells newcomers of every platform that they do not have.
logging.getLogger('jax._src.xla_bridge').setLevel(logging.WARNING)

DATA, FSDP = 'data', 'fsdp'
AXES = (DATA, FSDP)
# Images, and everything made from them, are split over all devices.
ROWS = P(AXES)


def make(data: int = -1, fsdp: int = 1,
         devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
  """A mesh of `data` × `fsdp` devices; -1 takes what the other leaves.

  Parameters are sharded over `fsdp` and replicated over `data`; images are
  split over both. Axes are explicit: a sharding mistake is a type error, on
  one device as well.

  Raises:
    UserError: the sizes do not use every device.
  """
  devices = jax.devices() if devices is None else list(devices)
  total = len(devices)
  if fsdp == -1:
    fsdp = total // max(data, 1)
  elif data == -1:
    data = total // fsdp
  if data * fsdp != total:
    raise errors.UserError(
        f'mesh.data={data} × mesh.fsdp={fsdp} is not the number of devices, '
        f'{total}: set mesh.fsdp to a divisor of {total} and mesh.data to -1')
  return jax.make_mesh((data, fsdp), AXES, devices=devices)


def one_device() -> list[jax.Device]:
  """The first device of this process, for work that needs no other."""
  return jax.local_devices()[:1]


def of_process() -> jax.sharding.Mesh:
  """A mesh of this process's devices, for work that it does by itself."""
  return make(devices=jax.local_devices())


def accelerators() -> jax.sharding.Mesh | None:
  """A mesh of this process's accelerators; None: it has none."""
  mesh = of_process()
  return None if platform(mesh) == 'cpu' else mesh


def host_device() -> list[jax.Device]:
  """This process's processor, whose memory holds what no chip does."""
  return jax.local_devices(backend='cpu')[:1]


def platform(mesh: jax.sharding.Mesh) -> str:
  """'cpu', 'gpu' or 'tpu': of the mesh, not of the host that compiles."""
  return mesh.devices.flat[0].platform


def activate(mesh: jax.sharding.Mesh):
  """Makes `mesh` the mesh of the program; usable as a context manager."""
  return jax.set_mesh(mesh)


def compiler_options(mesh: jax.sharding.Mesh, *,
                     deterministic: bool = False) -> dict[str, str | bool]:
  """XLA options for the programs of a run: those that measured faster.

  A compiler fails on an option that it does not know, so each GPU option is
  tried first.

  Args:
    mesh: devices that the programs run on.
    deterministic: True excludes GPU operations that give other bits at every
      run; CPUs and TPUs have none.

  Raises:
    UserError: the compiler cannot do without such operations.
  """
  if platform(mesh) == 'cpu' and jax.__version_info__ < (0, 11):
    # A training step spends 10 to 20 % less time with the older matrix
    # products than with those of YNNPACK.
    return {'xla_cpu_experimental_ynn_fusion_type':
            'LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION'}
  if platform(mesh) != 'gpu':
    return {}
  options = {}
  # Gradients of weights are long sums, which XLA cuts in pieces of equal
  # length, padding copies of both operands; cuBLAS cuts them itself. 6 % of
  # a step of ViT-S on an H200.
  if _knows('xla_gpu_experimental_force_split_k', '1'):
    options['xla_gpu_experimental_force_split_k'] = '1'
  if deterministic:
    if not _knows('xla_gpu_exclude_nondeterministic_ops', True):
      raise errors.UserError(
          f'train.deterministic=True: the compiler of jax {jax.__version__} '
          'has no such option; install the versions of constraints.txt, or '
          'set it to False')
    options['xla_gpu_exclude_nondeterministic_ops'] = True
  return options


@functools.cache
def _knows(option: str, value: str | bool) -> bool:
  """Tells whether the compiler takes an option, tried on a local device."""
  try:
    with activate(make(devices=one_device())):
      jax.jit(lambda x: x + 1).lower(0).compile({option: value})
  except jax.errors.JaxRuntimeError as error:
    if 'No such compile option' not in str(error):
      raise
    return False
  return True
