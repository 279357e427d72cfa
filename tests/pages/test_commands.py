"""What README and docs name exists: commands, flags, targets, programs."""

import importlib
import importlib.util
import re

import pytest

from dinojax import commands
from dinojax.commands import call
from dinojax.runs import catalog
from tests.pages import blocks

ROOT = blocks.ROOT
PAGES = pytest.mark.parametrize(
    'path', blocks.PAGES, ids=lambda path: path.stem)


def known_config(word):
  """The word; of a config of the reader's own, one that there is; N is 1."""
  word = re.sub('=N$', '=1', word)
  for flag, usual in (('config', 'vits'), ('recipe', 'dinov3')):
    if word.startswith(f'--{flag}='):
      name = word.partition('=')[2].partition(':')[0]
      known = catalog.recipes() if flag == 'recipe' else {
          **catalog.configs(), **catalog.files('curation')}
      if name not in known and not (ROOT / name).is_file():
        return f'--{flag}={usual}'
  return word


@PAGES
def test_a_fence_says_what_it_holds(path):
  text = path.read_text()
  assert len(re.findall('^```', text, re.MULTILINE)) == 2 * len(
      blocks.of_page(path))
  for block in blocks.of_page(path):
    assert block.language in blocks.LANGUAGES or block.language.startswith(
        '{'), (path.name, block.line, block.language)


@PAGES
def test_commands_are_what_the_program_takes(path, monkeypatch, capsys):
  """Their names, their flags, and the keys and values of their configs."""
  monkeypatch.chdir(ROOT)
  for name, *words in blocks.commands(path):
    assert name in commands.COMMANDS, (path, name)
    words = [known_config(word) for word in words
             if '…' not in word or word.startswith(('--config=', '--recipe='))]
    if any(word.startswith('--help') for word in words):
      continue
    module = importlib.import_module(f'dinojax.commands.{name}')
    parsed = call.parse(module, name, words)
    message = capsys.readouterr().err
    # A sentence may name a command without what it needs.
    assert not isinstance(parsed, int) or not [
        w for w in words if w.startswith('--')] or (
            'missing' in message.lower()), (path.name, name, words, message)


@PAGES
def test_targets_scripts_and_modules_exist(path):
  targets = re.search(
      r'^\.PHONY: (.*)$', (ROOT / 'Makefile').read_text(), re.MULTILINE)[1]
  for target, *_ in blocks.commands(path, 'make'):
    assert target in targets.split(), (path.name, target)
  for module, *_ in blocks.commands(path, 'python -m'):
    assert importlib.util.find_spec(module), (path.name, module)
  for text in blocks.inline(path):
    for script in re.findall(r'(?:launch|bench)/\w+\.\w+', text):
      assert (ROOT / script).is_file(), (path.name, script)


def test_pages_show_commands():
  assert sum(len(list(blocks.commands(path))) for path in blocks.PAGES) > 60
