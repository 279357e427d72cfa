"""The rules of the house, read from the source."""

import ast
import functools
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 'dinojax'
# Rooms from the lowest floor to the roof; those of a floor do not see each
# other. Files beside the rooms (main, __init__) are on the roof.
FLOORS = (
    ('core',), ('parallel', 'augment', 'data'), ('kernels',),
    ('losses', 'metrics'), ('models',), ('features', 'interop', 'engine'),
    ('train', 'probes'), ('evals', 'curate'), ('configs',), ('planning',),
    ('runs',), ('doctor',), ('commands',))
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
# Beyond the order.
UNSEEN = {'train': {'interop', 'probes'}, 'probes': {'interop', 'train'}}


@functools.cache
def modules():
  return [(path, ast.parse(path.read_text()))
          for path in sorted(PACKAGE.rglob('*.py'))]


def imports(tree):
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def name_of(path):
  """'dinojax.core.text' of its file."""
  parts = path.relative_to(ROOT).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def room(name):
  """The room of a module of ours; files beside the rooms are on the roof."""
  parts = name.split('.')
  return parts[1] if parts[1:] and parts[1] in FLOOR else 'commands'


@functools.cache
def graph():
  """The modules of ours that each module imports, wherever it does so."""
  known = {name_of(path) for path, _ in modules()}
  dependencies = {}
  for path, tree in modules():
    dependencies[name_of(path)] = used = set()
    for name in imports(tree):
      while name and name not in known:
        name = name.rpartition('.')[0]
      if name not in ('', 'dinojax', name_of(path)):
        used.add(name)
  return dependencies


def test_every_file_has_a_floor():
  for path, _ in modules():
    parts = path.relative_to(PACKAGE).parts
    assert parts[0] in FLOOR or parts in (
        ('__init__.py',), ('__main__.py',), ('main.py',)), path


def test_imports_go_downwards():
  for name, used in graph().items():
    for other in used:
      above, below = room(name), room(other)
      assert below not in UNSEEN.get(above, ()), f'{name} imports {other}'
      assert above == below or FLOOR[below] < FLOOR[above], (
          f'{name} imports {other}')


def test_no_import_goes_in_a_circle():
  state = {}

  def visit(name, path):
    assert state.get(name) != 'open', ' → '.join([*path, name])
    if name not in state:
      state[name] = 'open'
      for other in sorted(graph()[name]):
        visit(other, (*path, name))
      state[name] = 'done'

  for name in graph():
    visit(name, ())


def test_workers_and_core_open_no_device():
  for room in ('data',):
    for path, tree in modules():
      if path.relative_to(PACKAGE).parts[0] == room:
        assert not any(re.match(r'(jax|flax)(\.|$)', n)
                       for n in imports(tree)), path


def test_torch_is_imported_only_where_weights_are_exchanged():
  for path, tree in modules():
    if path.relative_to(PACKAGE).parts[0] != 'interop':
      assert not any(re.match(r'(torch|transformers|timm)(\.|$)', n)
                     for n in imports(tree)), path


def test_devices_are_asked_for_only_where_the_mesh_is_made():
  for path, _ in modules():
    parts = path.relative_to(PACKAGE).parts
    if len(parts) > 1 and parts[0] != 'parallel':
      text = path.read_text()
      assert 'jax.devices(' not in text, path
      assert 'default_backend' not in text, path


def test_home_folders_are_expanded_by_one_rule():
  for path, tree in modules():
    if path.relative_to(PACKAGE).parts != ('core', 'paths.py'):
      names = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
      assert 'expanduser' not in names, path


def test_mesh_axes_are_named_in_one_room():
  for path, _ in modules():
    if path.relative_to(PACKAGE).parts[0] not in ('parallel',):
      text = path.read_text()
      assert not re.search(r"""P\(\s*['"(]""", text), path


def test_files_and_functions_are_short():
  for path, tree in modules():
    assert len(path.read_text().splitlines()) <= 400, path
    for node in ast.walk(tree):
      if isinstance(node, ast.FunctionDef):
        length = node.end_lineno - node.lineno + 1
        assert length <= 60, f'{path}: {node.name} has {length} lines'


def test_nothing_unfinished():
  for path, _ in modules():
    assert not re.search(
        'TODO|FIXME|XXX|raise NotImplementedError', path.read_text()), path


def test_nobody_asks_which_family_a_backbone_is_of():
  """A family is its file, a line of models/families.py, its names in interop.
  """
  words = re.compile(r'\bViTConfig\b|\bConvNeXtConfig\b|\bis_?convnext\b')
  for path, tree in modules():
    if room(name_of(path)) in ('models', 'interop', 'configs'):
      continue
    for node in ast.walk(tree):
      if isinstance(node, ast.Name | ast.Attribute):
        text = node.id if isinstance(node, ast.Name) else node.attr
        assert not words.search(text), f'{path}:{node.lineno}: {text}'
