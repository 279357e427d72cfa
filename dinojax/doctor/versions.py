"""Installed packages against what dinojax was tested with."""

from collections.abc import Iterable, Mapping
import importlib.metadata
import importlib.util
import pathlib
import platform

from packaging import requirements

from dinojax.core import plugins
from dinojax.doctor import findings

Findings = list[findings.Finding]

# What decides numbers and speed; the other requirements only when they differ.
_SHOWN = ('jax', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy',
          'pillow')
_PYTHON = 'Programming Language :: Python :: '


def look() -> Findings:
  """Installed packages against requirements.txt."""
  wanted = _wanted()
  if wanted is None:
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
  return python(platform.python_version(), _pythons()) + packages(
      wanted, installed) + [
          findings.ok(name, importlib.metadata.version(name))
          for name in plugins.installed()]


def _wanted() -> list[str] | None:
  """The requirements: of the source tree that runs, or of what is installed.

  None: neither is there.
  """
  path = pathlib.Path(__file__).parents[2] / 'requirements.txt'
  if (path.parent / 'pyproject.toml').exists() and path.exists():
    lines = [line.partition('#')[0].strip()
             for line in path.read_text().splitlines()]
    return [line for line in lines if line]
  try:
    return importlib.metadata.requires('dinojax') or []
  except importlib.metadata.PackageNotFoundError:
    return None


def _pythons() -> list[str]:
  """Pythons that dinojax was tested with; [] where that is not known."""
  try:
    known = importlib.metadata.metadata('dinojax').get_all('Classifier') or []
  except importlib.metadata.PackageNotFoundError:
    return []
  return [line.removeprefix(_PYTHON) for line in known
          if line.startswith(_PYTHON)]


def python(have: str, tested: Iterable[str]) -> Findings:
  """Warns if this Python is not among those tested, '3.11' and so on."""
  tested = list(tested)
  if not tested or have.rpartition('.')[0] in tested:
    return []
  return [findings.warn(
      'Python', f'{have}, tested with {", ".join(tested)}',
      f'an environment of Python {tested[-1]}')]


def packages(wanted: Iterable[str], installed: Mapping[str, str]) -> Findings:
  """Compares installed packages with the requirements.

  Args:
    wanted: lines of requirements.txt; those of extras are left out.
    installed: versions of installed packages, by name.
  """
  package_findings = []
  for text in wanted:
    need = requirements.Requirement(text)
    if need.marker and not need.marker.evaluate({'extra': ''}):
      continue
    have = installed.get(need.name)
    if have is None:
      package_findings.append(findings.error(
          need.name, 'is not installed', f'pip install "{need}"'))
    elif not need.specifier.contains(have, prereleases=True):
      package_findings.append(findings.warn(
          need.name, f'{have}, tested with {need.specifier}',
          f'pip install "{need}"'))
    elif need.name in _SHOWN:
      package_findings.append(findings.ok(need.name, have))
  return package_findings
