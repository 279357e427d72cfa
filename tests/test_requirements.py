"""What pip would install on each Python fits together; nothing is installed."""

import pathlib
import tomllib

from packaging import requirements
from packaging import specifiers
from packaging import utils
from packaging import version
import pytest

ROOT = pathlib.Path(__file__).parents[1]
PYTHONS = ('3.11', '3.12', '3.13')
# The Pythons that a release of jax has wheels for, from its metadata.
JAX = {'0.10.2': '>=3.11', '0.11.0': '>=3.12', '0.11.1': '>=3.12',
       '0.11.2': '>=3.12', '0.12.0': '>=3.12', '0.12.0.1': '>=3.12'}
# The releases of jax that a flax imports with, as tried.
FITS = {'0.12.8': '>=0.10.2,<0.11.1', '0.12.12': '>=0.11.1,<0.13'}


def lines(name):
  text = (ROOT / name).read_text()
  return [requirements.Requirement(line.partition('#')[0].strip())
          for line in text.splitlines() if line.partition('#')[0].strip()]


def wanted(python, name='requirements.txt'):
  """The requirements of a Python, by name; a name twice is a mistake."""
  environment = {'python_version': python, 'extra': '',
                 'python_full_version': f'{python}.0'}
  chosen = [r for r in lines(name)
            if r.marker is None or r.marker.evaluate(environment)]
  requirements_by_name = {utils.canonicalize_name(r.name): r for r in chosen}
  assert len(requirements_by_name) == len(chosen), name
  return requirements_by_name


def releases(python, specifier):
  return [jax for jax, pythons in JAX.items()
          if specifiers.SpecifierSet(pythons).contains(f'{python}.0')
          and specifier.contains(jax)]


@pytest.mark.parametrize('python', PYTHONS)
def test_every_jax_that_is_allowed_fits_the_flax(python):
  requirements_by_name = wanted(python)
  flax = str(requirements_by_name['flax'].specifier).removeprefix('==')
  allowed = releases(python, requirements_by_name['jax'].specifier)
  assert allowed
  for jax in allowed:
    assert specifiers.SpecifierSet(FITS[flax]).contains(jax), (flax, jax)


@pytest.mark.parametrize('python', PYTHONS)
def test_constraints_are_a_version_of_everything_that_is_required(python):
  fixed = wanted(python, 'constraints.txt')
  for name, need in wanted(python).items():
    (pin,) = fixed[name].specifier
    assert pin.operator == '==' and need.specifier.contains(pin.version), name


def test_every_requirement_is_bounded():
  for need in lines('requirements.txt'):
    assert {'==', '<'} & {s.operator for s in need.specifier}, need


def test_no_floor_admits_a_decoder_with_known_holes():
  for python in PYTHONS:
    assert not wanted(python)['pillow'].specifier.contains('12.2.0')


def test_these_are_the_pythons_of_the_package():
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  allowed = specifiers.SpecifierSet(project['requires-python'])
  assert not allowed.contains('3.10.9')
  for python in PYTHONS:
    assert allowed.contains(version.Version(python))
    assert f'Programming Language :: Python :: {python}' in (
        project['classifiers'])
