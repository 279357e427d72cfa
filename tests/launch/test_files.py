"""The scripts, the Dockerfile and docs/launch.md fit the rest of the house."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import pytest

from tests.launch import fakes

ROOT = fakes.ROOT
SCRIPTS = sorted(path.name for path in fakes.LAUNCH.glob('*.sh'))
EXTRAS = tomllib.loads((ROOT / 'pyproject.toml').read_text())[
    'project']['optional-dependencies'].keys()
DOCKERFILE = (ROOT / 'Dockerfile').read_text()
# Of this repository: what is copied from one image to the other has its test
# in tests/test_wheel.py.
COPIED = sorted({word for line in re.findall(
    r'^COPY (?!--from)(.*)', DOCKERFILE, re.M) for word in line.split()[:-1]})


def test_shellcheck_finds_nothing():
  places = [str(pathlib.Path(sys.executable).parent), os.environ['PATH']]
  program = shutil.which('shellcheck', path=os.pathsep.join(places))
  assert program, 'pip install -e ".[test]" brings shellcheck'
  done = subprocess.run(
      [program, *SCRIPTS], cwd=fakes.LAUNCH, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout


def test_the_guide_names_every_script():
  text = (ROOT / 'docs/launch.md').read_text()
  assert set(re.findall(r'launch/(\w+\.sh)', text)) == set(SCRIPTS)


@pytest.mark.parametrize('script', SCRIPTS)
def test_every_script_explains_itself(script):
  done = subprocess.run(['bash', str(fakes.LAUNCH / script), '--help'],
                        capture_output=True, text=True)
  assert done.returncode == 0
  assert f'launch/{script}' in done.stdout
  assert 'DRY_RUN=1' in done.stdout
  assert 'set -euo' not in done.stdout and '\n#' not in done.stdout
  assert os.access(fakes.LAUNCH / script, os.X_OK)
  bare = subprocess.run(['bash', str(fakes.LAUNCH / script)],
                        capture_output=True, text=True)
  assert bare.returncode == 2 and bare.stderr == done.stdout


def test_the_image_holds_what_exists():
  assert COPIED
  for name in COPIED:
    assert (ROOT / name).exists(), name
  sent = re.findall(r'^!(.*)', (ROOT / '.dockerignore').read_text(), re.M)
  assert sorted(sent) == COPIED
  # requirements.txt and the readme are read by pyproject.toml.
  assert {'pyproject.toml', 'requirements.txt', 'README.md'} < set(COPIED)


def test_the_extras_of_the_image_exist():
  named = re.findall(r'--build-arg EXTRA=(\w+)', DOCKERFILE)
  assert named and set(named) <= set(EXTRAS)


def test_tpu_machines_get_what_the_image_gets():
  text = (fakes.LAUNCH / 'tpu.sh').read_text()
  packed, = re.findall(r'--exclude=__pycache__ \\\n(.*)\n', text)
  # They install the folder as it is.
  assert sorted([*packed.split(), 'MANIFEST.in']) == COPIED


def test_the_program_runs_as_nobody_special():
  user, = re.findall(r'^ARG RUN_AS=(.*)', DOCKERFILE, re.M)
  assert int(user) > 0 and '\nUSER ${RUN_AS}\n' in DOCKERFILE
  assert DOCKERFILE.rstrip().endswith(
      'ENTRYPOINT ["python", "-m", "dinojax.main"]')
  assert re.search(r'^FROM python:\d+\.\d+\.\d+-slim', DOCKERFILE, re.M)
