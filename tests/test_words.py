"""Sentences that users and readers see stand alone.

`python -m tests.test_words [PATH…]` lists what begins with a fragment.
"""

import ast
from collections.abc import Iterator
import dataclasses
import importlib
import pathlib
import re
import sys

from absl import flags

from dinojax import commands
from dinojax.core import config as config_lib
from dinojax.core import fields
from dinojax.train import sections

ROOT = pathlib.Path(__file__).parents[1]
# First words of what only goes on with something said before it.
FRAGMENTS = frozenset((
    'of', 'that', 'which', 'what', 'whether', 'those', 'likewise', 'whose'))
# Names that do not say what they hold.
EMPTY = frozenset(('one', 'own', 'said', 'found'))
_SECTION = re.compile(r'(Args|Attributes|Returns|Raises|Yields|Source|Differs)'
                      r'\b.*')
_ENTRY = re.compile(r'  \*{0,2}\w[\w, *]*: (.*)')


def is_fragment(text: str) -> bool:
  """Whether a text begins as only the end of a sentence does."""
  first = re.match(r'\W*(\w+)', text)
  return bool(first) and first[1].lower() in FRAGMENTS


def texts_of(docstring: str) -> Iterator[str]:
  """The summary, and what is said of every argument and attribute."""
  lines, section = docstring.splitlines(), ''
  yield lines[0]
  for line in lines[1:]:
    if not line.startswith(' '):
      heading = _SECTION.fullmatch(line)
      section = heading[1] if heading else ''
    elif section in ('Args', 'Attributes') and (entry := _ENTRY.match(line)):
      yield entry[1]


def fragments(path: pathlib.Path) -> Iterator[str]:
  """The fragments in docstrings and raised messages of a file."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
      texts = texts_of(ast.get_docstring(node) or ' ')
    elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
      texts = [text for argument in node.exc.args[:1]
               if (text := _beginning(argument))]
    else:
      continue
    for text in texts:
      if is_fragment(text):
        line = getattr(node, 'lineno', 1)
        yield f'{path.relative_to(ROOT)}:{line}: {text.strip()}'


def _beginning(node: ast.expr) -> str:
  """A text's first characters, where they are not a value."""
  if isinstance(node, ast.JoinedStr) and node.values:
    node = node.values[0]
  return str(node.value) if isinstance(node, ast.Constant) else ''


def empty_names(path: pathlib.Path) -> Iterator[str]:
  """Variables, arguments, attributes and functions with an empty name."""
  for node in ast.walk(ast.parse(path.read_text())):
    name = (node.id if isinstance(node, ast.Name) else
            node.arg if isinstance(node, ast.arg) else
            node.attr if isinstance(node, ast.Attribute) else
            getattr(node, 'name', ''))
    if str(name).lstrip('_').lower() in EMPTY:
      yield f'{path.relative_to(ROOT)}:{node.lineno}: {name}'


def files(*below: str) -> list[pathlib.Path]:
  """Files of the package and its configs."""
  return sorted(path for folder in below or ('dinojax', 'configs')
                for path in ([ROOT / folder] if folder.endswith('.py')
                             else (ROOT / folder).rglob('*.py')))


def test_a_fragment_is_known():
  for text in ('Of the short side.', 'What is stored', 'whether it is there',
               '`that` is'):
    assert is_fragment(text)
  for text in ('Length of the short side.', 'Offers', 'Thatcher', '', '[b, d]'):
    assert not is_fragment(text)
  assert list(texts_of('Reads.\n\nArgs:\n  a: of b.\n    more: x.\n  *c: d.\n\n'
                       'Returns:\n  e: of f.')) == ['Reads.', 'of b.', 'd.']


def test_docstrings_and_messages_stand_alone():
  lines = [line for path in files() for line in fragments(path)]
  assert not lines, '\n'.join(lines)


def test_names_say_what_they_hold():
  names = [name for path in files('dinojax', 'configs', 'bench')
           for name in empty_names(path)]
  assert not names, '\n'.join(names)


def test_texts_of_config_fields_stand_alone():
  def walk(cls):
    for name, text in fields.texts(cls).items():
      assert text and not is_fragment(text), f'{cls.__name__}.{name}: {text}'
    for hint in config_lib._hints(cls).values():
      for inner in config_lib.families_of(hint):
        if dataclasses.is_dataclass(inner) and inner is not config_lib.Duration:
          walk(inner)

  walk(sections.Settings)


def test_help_of_flags_stands_alone():
  for name in commands.COMMANDS:
    values = flags.FlagValues()
    importlib.import_module(f'dinojax.commands.{name}').define(values, [])
    for flag in values:
      text = values[flag].help
      assert text and not is_fragment(text), f'dinojax {name} --{flag}: {text}'


if __name__ == '__main__':
  for path in files(*sys.argv[1:]):
    print(*fragments(path), sep='\n', end='\n' if list(fragments(path)) else '')
