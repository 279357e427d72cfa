"""`make test-pythons`: a fresh install and the tests on every other Python.

For each Python from 3.11 on that is found: a new environment, `pip install`,
an import of every module, a training run, `dinojax.load`, then the tests
without PyTorch, which has no small build for every Python. Interpreters are
those of PATH, of pyenv and of uv; PYTHONS="python3.12 /opt/…/python3.13"
names others. SUITE=0 leaves the tests out.
"""

import importlib
import json
import os
import pathlib
import pkgutil
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]
OLDEST = (3, 11)
_VERSION = 'import sys; print(*sys.version_info[:2], sys.prefix)'


def interpreters() -> dict[tuple[int, int], str]:
  """One program for each Python other than this, from OLDEST on."""
  named = os.environ.get('PYTHONS', '').split()
  home = pathlib.Path.home()
  pyenv = pathlib.Path(os.environ.get('PYENV_ROOT') or home / '.pyenv')
  uv = home / '.local/share/uv/python'
  folders = [pathlib.Path(p) for p in os.get_exec_path()] + sorted(
      [*pyenv.glob('versions/*/bin'), *uv.glob('*/bin')], reverse=True)
  candidates = [shutil.which(name) or name for name in named] or [
      str(path) for folder in folders if folder.is_dir()
      for path in sorted(folder.iterdir())
      if re.fullmatch(r'python3\.\d+', path.name)]
  programs: dict[tuple[int, int], str] = {}
  for program in candidates:
    done = subprocess.run([program, '-c', _VERSION], text=True,
                          capture_output=True, check=False)
    if done.returncode:  # a shim of a version that is not chosen
      continue
    major, minor = map(int, done.stdout.split()[:2])
    if (major, minor) >= OLDEST and (
        named or (major, minor) != sys.version_info[:2]):
      programs.setdefault((major, minor), program)
  return programs


def import_all() -> list[str]:
  """Imports every module of the package; those that fail, and why."""
  import dinojax
  failed = []
  for module in pkgutil.walk_packages(dinojax.__path__, 'dinojax.'):
    if module.name.endswith('__main__'):
      continue
    try:
      importlib.import_module(module.name)
    except Exception as error:  # versions that do not fit raise anything
      failed.append(f'{module.name}: {type(error).__name__}: {error}')
  return failed


_LOAD = """
import dinojax, numpy as np
model = dinojax.load('run')
features = model(np.zeros((1, 48, 48, 3), np.float32))
assert np.isfinite(np.asarray(features.cls, np.float32)).all()
"""


def steps(python: pathlib.Path, suite: bool) -> dict[str, list]:
  """What is run in an environment, by name."""
  pip = [python, '-m', 'pip', 'install', '--quiet', '--editable']
  every = {
      'install': [*pip, ROOT],
      'import': [python, __file__, '--imports'],
      'smoke': [python, '-m', 'dinojax', 'train', '--config=demo:smoke',
                '--workdir=run'],
      'load': [python, '-c', _LOAD]}
  if suite:
    every |= {'install tests': [*pip, f'{ROOT}[test]'],
              'tests': [python, '-m', 'pytest', ROOT, f'--rootdir={ROOT}',
                        # As `make test`.
                        *'-n 2 --dist loadfile --no-loadscope-reorder'.split()]}
  return every


def check(program: str, folder: pathlib.Path) -> dict[str, float]:
  """Seconds of each step in a new environment; inf: it failed, as printed."""
  subprocess.run([program, '-m', 'venv', folder / 'venv'], check=True)
  python = folder / 'venv/bin/python'
  took = {}
  for name, words in steps(python, os.environ.get('SUITE') != '0').items():
    began = time.monotonic()
    done = subprocess.run(
        words, cwd=ROOT if name == 'tests' else folder, check=False,
        env=os.environ | {'DINOJAX_TORCH': '0', 'JAX_PLATFORMS': 'cpu'})
    took[name] = round(time.monotonic() - began, 1)
    print(f'  {name}: {took[name]} s, exit {done.returncode}', flush=True)
    if done.returncode:
      return took | {name: float('inf')}
  return took


def main() -> int:
  """Checks all; 1 where something failed or no other Python is there."""
  programs = interpreters()
  if not programs:
    print('no other Python from 3.11 on: name some with PYTHONS="…"')
    return 1
  failed = False
  for (major, minor), program in sorted(programs.items()):
    print(f'Python {major}.{minor}: {program}', flush=True)
    with tempfile.TemporaryDirectory() as folder:
      took = check(program, pathlib.Path(folder))
    print(json.dumps({'python': f'{major}.{minor}', **took}), flush=True)
    failed |= float('inf') in took.values()
  return int(failed)


if __name__ == '__main__':
  if sys.argv[1:] == ['--imports']:
    wrong = import_all()
    sys.exit('\n'.join(wrong) if wrong else 0)
  sys.exit(main())
