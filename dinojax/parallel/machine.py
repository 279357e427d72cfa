"""The machine: devices, processors, memory and disks, with checks.

What is asked of the machine and what follows from the answers are apart:
checks are functions of facts.
"""

from collections.abc import Collection, Mapping, Sequence
import os
import pathlib
import platform
import re
import shutil

import jax

from dinojax import __version__
from dinojax.core import findings
from dinojax.core import versions

Found = list[findings.Finding]

_GIB = 2**30
_PREFIXES = ('JAX_', 'XLA_', 'LIBTPU_', 'TPU_VISIBLE', 'CUDA_VISIBLE',
             'OMP_NUM')
# Mantissas of 8 bits have matrix units from Ampere on.
_BFLOAT16_CAPABILITY = 8.0
# Share of the cores that others may use without spoiling what is timed.
_BUSY = 0.5
# PCI vendor and devices. Source: jax's hardware_utils.
_GOOGLE = '0x1ae0'
_TPUS = frozenset(
    '0x0027 0x0056 0x005e 0x0062 0x0063 0x006f 0x0076'.split())


def look(folder: str, compile_cache: str) -> Found:
  """Everything about this machine that needs no config.

  Args:
    folder: on the disk that a run would write to.
    compile_cache: folder of compiled programs; empty: none.
  """
  return [
      findings.ok('system', f'dinojax {__version__}, Python '
                  f'{platform.python_version()}, {platform.platform()}'),
      *devices(), *accelerators(
          seen=() if failure() else {d.platform for d in jax.devices()},
          forced=os.environ.get('JAX_PLATFORMS', ''),
          nvidia=has_nvidia(), tpu=has_tpu(),
          plugins=versions.companions()),
      processors(num_cores(), memory_gib(), os.getloadavg()[0]),
      *disk(folder, free_gib(folder)), cache(compile_cache),
      *environment(os.environ)]


def failure() -> str:
  """Why JAX does not start; '' when it does."""
  try:
    jax.devices()
  except (RuntimeError, AssertionError) as error:
    # The latter where JAX_PLATFORMS names what is not there.
    return (str(error).splitlines() or ['it finds no device'])[0]
  return ''


def devices() -> Found:
  """What JAX computes on."""
  reason = failure()
  if reason:
    forced = os.environ.get('JAX_PLATFORMS', '')
    return [findings.error(
        'devices', f'JAX does not start: {reason}',
        f'unset JAX_PLATFORMS, which is {forced!r}, or install what it names'
        if forced else 'reinstall jax with the extra of this machine')]
  seen = jax.devices()
  kinds: dict[str, list] = {}
  for device in seen:
    kinds.setdefault(device.device_kind, []).append(device)
  found = []
  for kind, same in kinds.items():
    memory = device_gib(same[0])
    text = f'{len(same)} × {kind}'
    found.append(findings.ok(
        'devices', text + (f', {memory:.1f} GiB each' if memory else '')))
    found += capability(kind, getattr(same[0], 'compute_capability', None))
  return found


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
      _read('/proc/meminfo'), *map(_cgroup, ('v2', 'v1')))])


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


def _cgroup(version: str) -> tuple[str, str, str]:
  """Limit, usage and statistics of the container's memory."""
  folder, names = {
      'v2': ('/sys/fs/cgroup', ('max', 'current', 'stat')),
      'v1': ('/sys/fs/cgroup/memory', (
          'limit_in_bytes', 'usage_in_bytes', 'stat'))}[version]
  limit, used, statistics = (
      _read(f'{folder}/memory.{name}') for name in names)
  return limit, used, statistics


def capability(kind: str, version: str | None) -> Found:
  """Graphics cards that compute bfloat16 slowly."""
  if version is None or float(version) >= _BFLOAT16_CAPABILITY:
    return []
  return [findings.warn(
      'bfloat16', f'{kind} (compute capability {version}) has no matrix units '
      'for it', "set --config.model.dtype=float32 and compare the step's "
      'speed')]


def accelerators(*, seen: Collection[str], forced: str, nvidia: bool,
                 tpu: bool, plugins: Sequence[str]) -> Found:
  """Accelerators that are there and not used.

  Args:
    seen: platforms of JAX's devices.
    forced: the environment's JAX_PLATFORMS.
    nvidia: whether its driver is there.
    tpu: whether a TPU is there.
    plugins: packages by which JAX would reach them.
  """
  found = []
  for name, there, kind, extra in (
      ('NVIDIA GPU', nvidia, 'gpu', 'cuda13'), ('TPU', tpu, 'tpu', 'tpu')):
    if not there or kind in seen:
      continue
    package = {'gpu': 'jax-cuda', 'tpu': 'libtpu'}[kind]
    if forced:
      fix = f'unset JAX_PLATFORMS, which is {forced!r}'
    elif any(plugin.startswith(package) for plugin in plugins):
      fix = (f'its package is installed but does not start; JAX_PLATFORMS='
             f'{"cuda" if kind == "gpu" else kind} dinojax doctor says why')
    else:
      fix = f'pip install -e ".[{extra}]"'
    found.append(findings.warn(
        name, 'is in this machine, and JAX does not use it', fix))
  return found


def has_nvidia() -> bool:
  """Whether NVIDIA's driver is there, in a container or in WSL too."""
  places = ('/proc/driver/nvidia/version', '/dev/nvidiactl')
  return any(map(os.path.exists, places)) or bool(shutil.which('nvidia-smi'))


def has_tpu() -> bool:
  """Whether a TPU is attached; Linux only."""
  return any(
      _read(vendor) == _GOOGLE and _read(vendor.with_name('device')) in _TPUS
      for vendor in pathlib.Path('/sys/bus/pci/devices').glob('*/vendor'))


def processors(cores: int, memory: float, load: float) -> findings.Finding:
  """Cores, memory in GiB, and how busy they are without us."""
  text = f'{cores} cores to use, {memory:.0f} GiB of memory'
  if load < _BUSY * cores:
    return findings.ok('processors', text)
  return findings.warn(
      'processors', f'{text}; other programs use them (load {load:.1f})',
      'stop those, or take the speeds below as too low')


def num_cores() -> int:
  """Cores that this process may use: affinity and container limits."""
  count = (len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity')
           else os.cpu_count() or 1)
  quota, _, period = _read('/sys/fs/cgroup/cpu.max').partition(' ')
  if quota.isdigit() and period.isdigit():
    count = min(count, max(int(quota) // int(period), 1))
  return count


def memory_gib() -> float:
  """Memory of the machine, or of the container if that has less."""
  total = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  limits = [limit for limit, *_ in map(_cgroup, ('v2', 'v1'))]
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
  """Whether it may be made and written; not known of object stores."""
  place = _nearest(folder)
  return place is None or (place.is_dir() and os.access(place, os.W_OK))


def _nearest(folder: str) -> pathlib.Path | None:
  """It, or the first parent that exists; None: not on this machine."""
  if '://' in folder:
    return None
  place = pathlib.Path(folder).absolute()
  while not place.exists():
    place = place.parent
  return place


def disk(folder: str, free: float | None) -> Found:
  """Space for a run."""
  if free is None:
    return []
  text = f'{free:.1f} GiB free for {folder}'
  if free < 1:
    return [findings.warn('disk', text, 'free some, or use another --workdir')]
  return [findings.ok('disk', text)]


def cache(folder: str) -> findings.Finding:
  """Compiled programs that are kept."""
  if not folder:
    return findings.skip('compile cache', 'none: every start compiles again')
  files = [p for p in pathlib.Path(folder).glob('*') if p.is_file()]
  size = sum(p.stat().st_size for p in files) / _GIB
  return findings.ok(
      'compile cache', f'{folder}: {len(files)} files, {size:.2f} GiB')


def environment(variables: Mapping[str, str]) -> Found:
  """Variables that change what JAX does."""
  return [findings.ok(name, value) for name, value
          in sorted(variables.items()) if name.startswith(_PREFIXES)]
