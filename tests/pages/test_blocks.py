"""Every block of README and docs runs as it stands, see sandbox.py."""

import re
import subprocess

import pytest

from tests.pages import blocks
from tests.pages import sandbox as sandbox_lib

# What a page's installers may name, beside the extras of pyproject.toml.
_PACKAGES = {'libtpu', 'tensorboard', 'gcsfs'}


@pytest.fixture(scope='module')
def extras():
  text = (blocks.ROOT / 'pyproject.toml').read_text()
  section = text.split('[project.optional-dependencies]')[1].split('\n[')[0]
  return set(re.findall(r'^(\w+) = \[', section, re.MULTILINE))


@pytest.mark.slow
@pytest.mark.parametrize(
    'path', [path for path in blocks.PAGES if any(
        block.language in ('sh', 'python') for block in blocks.of_page(path))],
    ids=lambda path: path.stem)
def test_blocks_run(path, tmp_path, extras):
  sandbox = sandbox_lib.Sandbox(tmp_path)
  try:
    sandbox.run(path)
  finally:
    sandbox.close()
  for program, *words in sandbox.fakes.calls():
    if program == 'make':
      done = subprocess.run(['make', '-n', *words], cwd=blocks.ROOT)
      assert done.returncode == 0, words
    elif program == 'pip':
      installed = words[-1]
      named = re.fullmatch(r'(?:\.|dinojax)(?:\[(.*)\])?', installed)
      assert (set(filter(None, (named[1] or '').split(','))) <= extras if named
              else installed in _PACKAGES), words


@pytest.mark.parametrize('word, expected', [
    ('--config=vits', '--config=vits:smoke'),
    ('--config=configs/vitl.py:v3', '--config=configs/vitl.py:v3,smoke'),
    ('--recipe=dinov3:smoke', '--recipe=dinov3:smoke'),
    ('--config=plankton.py', '--config=plankton.py'),
    ('--config.data.train=folder:DIR', '--config.data.train=folder:DIR'),
    ('--topology=v5e:16x16', '--topology=cpu:2')])
def test_words_are_made_smaller(word, expected):
  assert sandbox_lib.smaller(word) == expected
