"""Installed packages against what dinojax was tested with."""

from collections.abc import Iterable, Mapping
import importlib.metadata
import importlib.util

from packaging import requirements

from dinojax.core import findings

Found = list[findings.Finding]

# What decides numbers and speed; the other requirements only when they differ.
_SHOWN = ('jax', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy',
          'pillow')
# What comes with jax, and by which it reaches accelerators.
_COMPANIONS = ('jaxlib', 'jax-cuda13-plugin', 'jax-cuda12-plugin', 'libtpu')


def look() -> Found:
  """Installed packages against requirements.txt."""
  try:
    wanted = importlib.metadata.requires('dinojax') or ()
  except importlib.metadata.PackageNotFoundError:
    return [findings.warn(
        'dinojax', 'is not installed, so its requirements are not known',
        'pip install -e . in its folder')]
  installed = {}
  for text in wanted:
    name = requirements.Requirement(text).name
    try:
      installed[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return packages(wanted, installed) + [
      findings.ok(name, importlib.metadata.version(name))
      for name in companions()]


def companions() -> list[str]:
  """Those that are installed."""
  return [name for name in _COMPANIONS
          if importlib.util.find_spec(name.replace('-', '_'))]


def packages(wanted: Iterable[str], installed: Mapping[str, str]) -> Found:
  """Which requirements differ.

  Args:
    wanted: as in requirements.txt; those of extras are left out.
    installed: versions by the same names.
  """
  found = []
  for text in wanted:
    need = requirements.Requirement(text)
    if need.marker and not need.marker.evaluate({'extra': ''}):
      continue
    have = installed.get(need.name)
    if have is None:
      found.append(findings.error(
          need.name, 'is not installed', f'pip install "{need}"'))
    elif not need.specifier.contains(have, prereleases=True):
      found.append(findings.warn(
          need.name, f'{have}, tested with {need.specifier}',
          f'pip install "{need}"'))
    elif need.name in _SHOWN:
      found.append(findings.ok(need.name, have))
  return found
