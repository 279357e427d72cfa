"""Files that later starts read: whole or not at all."""

import ast
import errno
import os
import pathlib
import stat

import pytest

from dinojax.core import atomic
from dinojax.core import errors

PACKAGE = pathlib.Path(__file__).parents[2] / 'dinojax'
# What no later start reads, or what cannot be written aside: a log that is
# appended to, locks, members of archives, one-off outputs.
MAY_WRITE = {
    'core/atomic.py', 'core/log.py', 'core/output.py', 'features/store.py',
    'runs/curation.py',
    'features/tables.py', 'interop/files.py', 'runs/catalog.py',
    'parallel/holder.py',
    'data/rasters.py'}  # a library writes beside, and it is replaced whole


def test_a_file_is_replaced_whole(tmp_path):
  path = tmp_path / 'a.json'
  atomic.write_text(path, 'Größe')
  atomic.write_bytes(path, b'new')
  assert path.read_bytes() == b'new'
  assert os.listdir(tmp_path) == ['a.json']
  mask = os.umask(0)
  os.umask(mask)
  assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize('call', ['fsync', 'replace'])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, call):
  path = tmp_path / 'a.json'
  atomic.write_text(path, 'old')

  def full(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(os, call, full)
  with pytest.raises(OSError, match='No space'):
    atomic.write_text(path, 'new')
  assert path.read_text() == 'old' and os.listdir(tmp_path) == ['a.json']


def test_a_disk_that_cannot_sync_is_written_all_the_same(
    tmp_path, monkeypatch):
  def unknown(_):
    raise OSError(errno.EINVAL, 'Invalid argument')

  monkeypatch.setattr(os, 'fsync', unknown)
  atomic.write_text(tmp_path / 'a', 'text')
  assert (tmp_path / 'a').read_text() == 'text'


def test_the_data_are_on_the_disk_before_the_name(tmp_path, monkeypatch):
  order = []
  real = {name: getattr(os, name) for name in ('fsync', 'replace')}
  for name, call in real.items():
    monkeypatch.setattr(
        os, name, lambda *a, name=name, call=call: (
            order.append(name), call(*a)))
  atomic.write_text(tmp_path / 'a', 'text')
  assert order == ['fsync', 'replace', 'fsync']


@pytest.mark.parametrize('data', [
    b'', b'\0' * 20, b'[1]', b'{"a": ', b'\xff\xfe', b'[' * 100_000])
def test_what_cannot_be_read_is_named(tmp_path, data):
  path = tmp_path / 'a.json'
  path.write_bytes(data)
  with pytest.raises(errors.UserError, match=r'a\.json is .*; remove it'):
    atomic.read_json(path, 'remove it')


def writes(tree):
  """Lines of a module that write a file in place."""
  for node in ast.walk(tree):
    if not isinstance(node, ast.Call):
      continue
    name = getattr(node.func, 'attr', getattr(node.func, 'id', ''))
    owner = getattr(getattr(node.func, 'value', None), 'id', '')
    if name in ('write_text', 'write_bytes') and owner != 'atomic':
      yield node.lineno
    modes = [a.value for a in (*node.args, *(k.value for k in node.keywords))
             if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    if name == 'open' and any(
        set(mode) <= set('rwaxbt+') and set(mode) & set('wax')
        for mode in modes):
      yield node.lineno


def test_files_are_written_in_one_place():
  for path in sorted(PACKAGE.rglob('*.py')):
    if str(path.relative_to(PACKAGE)) not in MAY_WRITE:
      lines = list(writes(ast.parse(path.read_text())))
      assert not lines, f'{path}:{lines}: use core/atomic.py'
