"""What a wheel holds, and that it works where it is installed."""

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = ('pyproject.toml', 'requirements.txt', 'README.md', 'LICENSE')


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  pytest.importorskip(
      'setuptools', reason='builds a wheel: pip install -e ".[test]"')
  source = tmp_path_factory.mktemp('source')
  for name in PROJECT:
    shutil.copy(ROOT / name, source)
  keep = shutil.ignore_patterns('__pycache__')
  for name in ('dinojax', 'configs'):
    shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=keep)
  out = tmp_path_factory.mktemp('wheel')
  subprocess.run(
      [sys.executable, '-c', 'import sys\nfrom setuptools import build_meta\n'
       'build_meta.build_wheel(sys.argv[1])', out], cwd=source, check=True,
      capture_output=True, timeout=120)
  (path,) = out.glob('dinojax-*.whl')
  return path


@pytest.fixture(scope='module')
def elsewhere(wheel, tmp_path_factory):
  """A folder with a package called configs, and the installed wheel."""
  target = tmp_path_factory.mktemp('target')
  subprocess.run(
      [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps',
       '--no-index', f'--target={target}', wheel], check=True, timeout=120)
  folder = tmp_path_factory.mktemp('project')
  (folder / 'configs').mkdir()
  (folder / 'configs/__init__.py').write_text('raise ImportError("mine")\n')
  return folder, target


def run(elsewhere, *words):
  folder, target = elsewhere
  done = subprocess.run(
      [sys.executable, '-m', 'dinojax', *words], cwd=folder, text=True,
      capture_output=True, timeout=300, env={
          **os.environ, 'PYTHONPATH': str(target), 'JAX_PLATFORMS': 'cpu'})
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_a_wheel_has_one_package_and_every_config(wheel):
  names = zipfile.ZipFile(wheel).namelist()
  assert {name.split('/')[0] for name in names
          if '.dist-info' not in name} == {'dinojax'}
  inside = {name.removeprefix('dinojax/') for name in names}
  ours = {str(path.relative_to(ROOT))
          for path in (ROOT / 'configs').rglob('*.py')}
  assert ours and ours <= inside


def test_configs_are_listed_and_copied_beside_a_package_of_that_name(
    elsewhere):
  assert '\n  vits ' in run(elsewhere, 'configs')
  assert 'mine.py' in run(elsewhere, 'configs', '--copy=vitb', '--out=mine.py')
  text = (elsewhere[0] / 'mine.py').read_text()
  assert '--config=mine.py' in text and '--config=vitb' not in text


@pytest.mark.slow  # a minute: compiles; it adds that a wheel trains
@pytest.mark.parametrize('config', ['vits:smoke', 'taken.py:smoke'])
def test_a_wheel_trains_beside_a_package_called_configs(elsewhere, config):
  if config.startswith('taken'):  # copy.py would hide a module of Python
    run(elsewhere, 'configs', '--copy=vits', '--out=taken.py')
  workdir = elsewhere[0] / 'runs' / config.partition(':')[0]
  run(elsewhere, 'train', f'--config={config}', f'--workdir={workdir}')
  assert (workdir / 'results.json').exists()
