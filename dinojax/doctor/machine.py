"""The machine, judged: checks are functions of the facts of parallel.hardware.
"""

from collections.abc import Collection, Mapping, Sequence
import os
import pathlib
import platform

from dinojax import __version__
from dinojax.core import plugins
from dinojax.doctor import findings
from dinojax.parallel import hardware

Findings = list[findings.Finding]

_PREFIXES = ('JAX_', 'XLA_', 'LIBTPU_', 'TPU_VISIBLE', 'CUDA_VISIBLE',
             'OMP_NUM')
# Mantissas of 8 bits have matrix units from Ampere on.
_BFLOAT16_CAPABILITY = 8.0
# Share of the cores that others may use without spoiling what is timed.
_BUSY = 0.5


def look(folder: str, compile_cache: str) -> Findings:
  """Everything about this machine that needs no config.

  Args:
    folder: folder on the disk that a run would write to.
    compile_cache: folder of compiled programs; empty: none.
  """
  return [
      findings.ok('system', f'dinojax {__version__}, Python '
                  f'{platform.python_version()}, {platform.platform()}'),
      *devices(), *accelerators(
          seen=() if hardware.failure() else {
              d.platform for d in hardware.devices()},
          forced=os.environ.get('JAX_PLATFORMS', ''),
          nvidia=hardware.has_nvidia(), tpu=hardware.has_tpu(),
          plugins=plugins.installed()),
      processors(
          hardware.num_cores(), hardware.memory_gib(), os.getloadavg()[0]),
      *disk(folder, hardware.free_gib(folder)), cache(compile_cache),
      *environment(os.environ)]


def devices() -> Findings:
  """Devices that JAX computes on, or why it does not start."""
  reason = hardware.failure()
  if reason:
    forced = os.environ.get('JAX_PLATFORMS', '')
    return [findings.error(
        'devices', f'JAX does not start: {reason}',
        f'unset JAX_PLATFORMS, which is {forced!r}, or install what it names'
        if forced else 'reinstall jax with the extra of this machine')]
  seen = hardware.devices()
  kinds: dict[str, list] = {}
  for device in seen:
    kinds.setdefault(device.device_kind, []).append(device)
  device_findings = []
  for kind, same in kinds.items():
    memory = hardware.device_gib(same[0])
    text = f'{len(same)} × {kind}'
    device_findings.append(findings.ok(
        'devices', text + (f', {memory:.1f} GiB each' if memory else '')))
    device_findings += capability(
        kind, getattr(same[0], 'compute_capability', None))
  return device_findings


def capability(kind: str, version: str | None) -> Findings:
  """Graphics cards that compute bfloat16 slowly."""
  if version is None or float(version) >= _BFLOAT16_CAPABILITY:
    return []
  return [findings.warn(
      'bfloat16', f'{kind} (compute capability {version}) has no matrix units '
      'for it', "set --config.model.dtype=float32 and compare the step's "
      'speed')]


def accelerators(*, seen: Collection[str], forced: str, nvidia: bool,
                 tpu: bool, plugins: Sequence[str]) -> Findings:
  """Accelerators that are there and not used.

  Args:
    seen: platforms of JAX's devices.
    forced: the environment's JAX_PLATFORMS.
    nvidia: True if the machine has NVIDIA's driver.
    tpu: True if the machine has a TPU.
    plugins: packages by which JAX would reach accelerators.
  """
  problems = []
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
    problems.append(findings.warn(
        name, 'is in this machine, and JAX does not use it', fix))
  return problems


def processors(cores: int, memory: float, load: float) -> findings.Finding:
  """Cores, memory in GiB, and how busy they are without us."""
  text = f'{cores} cores to use, {memory:.0f} GiB of memory'
  if load < _BUSY * cores:
    return findings.ok('processors', text)
  return findings.warn(
      'processors', f'{text}; other programs use them (load {load:.1f})',
      'stop those, or take the speeds below as too low')


def disk(folder: str, free: float | None) -> Findings:
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
  size = sum(p.stat().st_size for p in files) / 2**30
  return findings.ok(
      'compile cache', f'{folder}: {len(files)} files, {size:.2f} GiB')


def environment(variables: Mapping[str, str]) -> Findings:
  """Variables that change what JAX does."""
  return [findings.ok(name, value) for name, value
          in sorted(variables.items()) if name.startswith(_PREFIXES)]
