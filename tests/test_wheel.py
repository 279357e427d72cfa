"""What wheel, sdist and image hold, and that a wheel works elsewhere."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]
BUILDING, RUNNING = re.split(
    r'^FROM .*', (ROOT / 'Dockerfile').read_text(), flags=re.MULTILINE)[1:]


def copied(stage):
  """What a stage of the image takes of this repository."""
  return [word for line in re.findall(
      r'^COPY (?!--from)(.*)', stage, re.MULTILINE)
      for word in line.split()[:-1]]


def build(kind, source, out):
  """Runs setuptools as pip and `python -m build` do; the file."""
  done = subprocess.run(
      [sys.executable, '-c', 'import sys\nfrom setuptools import build_meta\n'
       f'build_meta.build_{kind}(sys.argv[1])', out], cwd=source, text=True,
      capture_output=True, timeout=120)
  assert done.returncode == 0, done.stderr
  told = [line for line in done.stderr.splitlines() if 'warning' in
          line.lower() and 'byte-compiling is disabled' not in line]
  assert not told, told
  path, = pathlib.Path(out).iterdir()
  return path


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  """What the image builds its wheel from, and nothing else."""
  pytest.importorskip(
      'setuptools', reason='builds a wheel: pip install -e ".[test]"')
  folder = tmp_path_factory.mktemp('source')
  for name in copied(BUILDING):
    if (ROOT / name).is_dir():
      shutil.copytree(ROOT / name, folder / name, symlinks=True,
                      ignore=shutil.ignore_patterns('__pycache__'))
    else:
      shutil.copy(ROOT / name, folder)
  return folder


@pytest.fixture(scope='module')
def wheel(source, tmp_path_factory):
  return build('wheel', source, tmp_path_factory.mktemp('wheel'))


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


def test_an_sdist_makes_the_same_wheel(source, wheel, tmp_path):
  (tmp_path / 'sdist').mkdir()
  with tarfile.open(build('sdist', source, tmp_path / 'sdist')) as packed:
    packed.extractall(tmp_path, filter='data')
    names = packed.getnames()
  folder, = tmp_path.glob('dinojax-*')
  tops = {name.split('/')[1] for name in names if '/' in name}
  assert tops == {'dinojax', 'dinojax.egg-info', 'PKG-INFO', 'setup.cfg',
                  *copied(BUILDING)} - {'configs'}  # a link to it is files
  (tmp_path / 'wheel').mkdir()
  again = build('wheel', folder, tmp_path / 'wheel')
  inside = lambda path: {
      item.filename: item.CRC for item in zipfile.ZipFile(path).infolist()
      if not item.filename.endswith('RECORD')}
  assert inside(again) == inside(wheel)


def test_the_image_installs_that_wheel(wheel):
  made, = re.findall(r'--outdir (\S+)', BUILDING)
  assert f'\nCOPY --from=build {made} {made}\n' in RUNNING
  pattern, extra = re.search(
      r'pip install .*\\\n +"\$\(echo (\S+)\)\$\{EXTRA:\+\[\$\{EXTRA\}\]\}"',
      RUNNING).groups()[0], re.search(r'^ARG EXTRA=(.*)', RUNNING, re.M)[1]
  assert extra == '""'
  assert pathlib.PurePath(f'{made}/{wheel.name}').match(pattern)
  head = zipfile.ZipFile(wheel).read(next(
      name for name in zipfile.ZipFile(wheel).namelist()
      if name.endswith('METADATA'))).decode()
  asked = re.findall(r'EXTRA=(\w+)', (ROOT / 'Dockerfile').read_text())
  assert asked and {*asked} <= {*re.findall(r'^Provides-Extra: (\w+)', head,
                                           re.MULTILINE)}
  # What is installed before, so that code alone changes the last layer.
  needed = (ROOT / 'requirements.txt').read_text()
  for line in re.findall(r'^Requires-Dist: ([\w-]+)[^;]*$', head, re.MULTILINE):
    assert line in needed


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
