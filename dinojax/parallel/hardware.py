"""Facts of this machine: devices, processors, memory, disks.

Nothing here judges them: that is the doctor's.
"""

from collections.abc import Iterator
import os
import pathlib
import re
import shutil

import jax

_GIB = 2**30
# PCI vendor and devices. Source: jax's hardware_utils.
_GOOGLE = '0x1ae0'
_TPUS = frozenset(
    '0x0027 0x0056 0x005e 0x0062 0x0063 0x006f 0x0076'.split())


def failure() -> str:
  """Why JAX does not start; '' when it does."""
  try:
    jax.devices()
  except (RuntimeError, AssertionError) as error:
    # The latter where JAX_PLATFORMS names what is not there.
    return (str(error).splitlines() or ['it finds no device'])[0]
  return ''


def devices() -> list[jax.Device]:
  """All devices of all processes that JAX computes on."""
  return jax.devices()


def device_gib(device: jax.Device) -> float | None:
  """Memory that programs may use; None: that of the machine."""
  limit = (device.memory_stats() or {}).get('bytes_limit')
  return limit and limit / _GIB


def available_gib(device: jax.Device) -> float:
  """Memory of a device that is free; CPU devices share the machine's."""
  stats = device.memory_stats() or {}
  if limit := stats.get('bytes_limit'):
    return (limit - stats.get('bytes_in_use', 0)) / _GIB
  same = [d for d in jax.local_devices() if d.platform == device.platform]
  return free_memory_gib() / max(len(same), 1)


def free_memory_gib() -> float:
  """Memory that programs may still take: of the machine and the container."""
  return min([memory_gib(), *free_in(
      _read('/proc/meminfo'), *map(_memory_of, groups('memory')))])


def free_in(meminfo: str, *cgroups: tuple[str, str, str]) -> list[float]:
  """GiB free by each account that there is.

  Args:
    meminfo: text of /proc/meminfo, or ''.
    *cgroups: texts of limit, usage and statistics, whose file caches are
      given back when they are needed; '' where there is none.
  """
  free = [int(kib) / 2**20 for kib in re.findall(
      r'^MemAvailable:\s+(\d+) kB', meminfo, re.MULTILINE)]
  for limit, used, statistics in cgroups:
    if limit.isdigit() and used.isdigit():
      cached = [int(n) for n in re.findall(
          r'^(?:total_)?(?:in)?active_file (\d+)', statistics, re.MULTILINE)]
      # The older kind counts itself first, then all that is inside.
      cached = sum(cached[-2:])
      free.append((int(limit) - max(int(used) - cached, 0)) / _GIB)
  return free


def groups(controller: str, root: pathlib.Path = pathlib.Path('/')
           ) -> Iterator[pathlib.Path]:
  """Control groups of this process, outermost first; each one's limits hold.

  A container sees its own as the root. A job of Slurm, and what systemd
  starts, is inside of one below it.

  Args:
    controller: 'memory' or 'cpu'.
    root: the root of the file system.
  """
  mount = root / 'sys/fs/cgroup'
  for line in _read(root / 'proc/self/cgroup').splitlines():
    _, controllers, path = line.split(':', 2)
    if controllers and controller not in controllers.split(','):
      continue
    folder = mount / controller if controllers else mount
    yield folder
    for part in pathlib.PurePosixPath(path).parts[1:]:
      folder = folder / part
      if part == '..' or not folder.is_dir():  # of the machine outside
        break
      yield folder


def _memory_of(group: pathlib.Path) -> tuple[str, str, str]:
  """Limit, usage and statistics of a group's memory, of either version."""
  texts = [_read(group / f'memory.{name}') for name in (
      'max', 'current', 'stat')]
  if not texts[0]:
    texts[:2] = [_read(group / f'memory.{name}') for name in (
        'limit_in_bytes', 'usage_in_bytes')]
  return tuple(texts)


def has_nvidia() -> bool:
  """Tells whether NVIDIA's driver is there, in a container or WSL too."""
  places = ('/proc/driver/nvidia/version', '/dev/nvidiactl')
  return any(map(os.path.exists, places)) or bool(shutil.which('nvidia-smi'))


def has_tpu() -> bool:
  """Tells whether a TPU is attached; Linux only."""
  return any(
      _read(vendor) == _GOOGLE and _read(vendor.with_name('device')) in _TPUS
      for vendor in pathlib.Path('/sys/bus/pci/devices').glob('*/vendor'))


def num_cores() -> int:
  """Cores that this process may use: affinity and container limits."""
  count = (len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity')
           else os.cpu_count() or 1)
  for group in groups('cpu'):
    quota, _, period = _read(group / 'cpu.max').partition(' ')
    if not quota:
      quota, period = (_read(group / f'cpu.cfs_{name}_us')
                       for name in ('quota', 'period'))
    if quota.isdigit() and period.isdigit():
      count = min(count, max(int(quota) // int(period), 1))
  return count


def memory_gib() -> float:
  """Memory of the machine, or of the container if that has less."""
  total = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  limits = [limit for limit, *_ in map(_memory_of, groups('memory'))]
  return min([total, *(int(x) for x in limits if x.isdigit())]) / _GIB


def _read(path: str | pathlib.Path) -> str:
  """A file's text, '' where there is none."""
  path = pathlib.Path(path)
  return path.read_text().strip() if path.exists() else ''


def free_gib(folder: str) -> float | None:
  """Space left on the disk of a folder, or of its nearest parent."""
  place = _nearest(folder)
  return place and shutil.disk_usage(place).free / _GIB


def is_writable(folder: str) -> bool:
  """Tells whether a folder may be made and written; True for object stores."""
  place = _nearest(folder)
  return place is None or (place.is_dir() and os.access(place, os.W_OK))


def _nearest(folder: str) -> pathlib.Path | None:
  """The folder or its first parent that exists; None: an object store."""
  if '://' in folder:
    return None
  place = pathlib.Path(folder).absolute()
  while not place.exists():
    place = place.parent
  return place
