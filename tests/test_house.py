"""The rules of the house, read from the source."""

import ast
import functools
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 'dinojax'
# What each room may import, itself included.
BASE = {'core'}
LOWER = BASE | {'kernels', 'parallel', 'losses', 'data', 'augment'}
ALLOWED = {
    'core': BASE, 'kernels': BASE | {'kernels'},
    'parallel': BASE | {'parallel'}, 'losses': BASE | {'losses', 'parallel'},
    'data': BASE | {'data'}, 'augment': BASE | {'augment'},
    'models': LOWER | {'models'}, 'train': LOWER | {'models', 'train'},
    'evals': LOWER | {'models', 'train', 'evals'},
    'interop': LOWER | {'models', 'interop'},
    # The cards of published sizes are figures of configs.
    'planning': LOWER | {'models', 'train', 'planning', 'configs'},
    'checks': LOWER | {'models', 'train', 'checks', 'job', 'weights'}}


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


def test_imports_go_downwards():
  for path, tree in modules():
    room = path.relative_to(PACKAGE).parts[0]
    if room.endswith('.py'):
      continue  # entry points may import everything
    for name in imports(tree):
      match = re.match(r'dinojax\.(\w+)', name)
      if match and match.group(1) != '__version__':
        assert match.group(1) in ALLOWED[room], f'{path} imports {name}'


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
