"""Real kills, and disks that are really full: minutes, run by make test-all.

A run in a process of its own is killed (SIGKILL) at each operation on a file
of its workdir, those of orbax among them, and started again. A disk of a few
kilobytes fills up wherever it does.
"""

import itertools
import multiprocessing
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import traceback

import pytest

from tests.reliability import fake

pytestmark = pytest.mark.slow

_CONTEXT = multiprocessing.get_context('forkserver')
_CONTEXT.set_forkserver_preload([__name__])
# What Python tells of files that change; a write follows each open.
_EVENTS = {'os.rename', 'os.mkdir', 'os.remove', 'os.rmdir', 'os.link',
           'os.symlink', 'os.truncate', 'os.chmod', 'os.utime'}


def _changes(event: str, args: tuple, folder: str) -> bool:
  """Whether an audit event is a change below `folder`."""
  if event == 'open':
    path, mode, flags = args
    writes = (mode is not None and set(mode) & set('wax+')) or (
        flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    return bool(writes) and str(path).startswith(folder)
  return event in _EVENTS and any(
      str(arg).startswith(folder) for arg in args
      if isinstance(arg, str | bytes | os.PathLike))


def _start(folder: str, kill_at: int, limit: int, out):
  """A run in this process; sends how it ended."""
  count = itertools.count(1)

  def hook(event, args):
    if _changes(event, args, folder) and next(count) == kill_at:
      os.kill(os.getpid(), signal.SIGKILL)

  if kill_at:
    sys.addaudithook(hook)
  if limit:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
  with pytest.MonkeyPatch.context() as monkeypatch:
    fake.install(monkeypatch)
    try:
      out.send(('ended', fake.train(folder).step, next(count)))
    except ValueError as error:  # UserError is one
      out.send((type(error).__name__, str(error), 0))
    except Exception:  # noqa: BLE001 (a fault, shown by the test)
      out.send(('fault', traceback.format_exc(), 0))


def start(folder: pathlib.Path, *, kill_at: int = 0, limit: int = 0):
  """(exit code, what it sent); None: it was killed before."""
  reader, writer = _CONTEXT.Pipe(duplex=False)
  process = _CONTEXT.Process(
      target=_start, args=(str(folder), kill_at, limit, writer))
  process.start()
  writer.close()
  try:
    sent = reader.recv()
  except EOFError:
    sent = None
  process.join(60)
  return process.exitcode, sent


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory):
  folder = tmp_path_factory.mktemp('unbroken') / 'run'
  code, sent = start(folder)
  assert code == 0 and sent[:2] == ('ended', fake.STEPS)
  return folder


def test_a_kill_at_each_change_of_a_file(tmp_path, unbroken):
  killed = 0
  for number in itertools.count(1):
    folder = tmp_path / str(number)
    code, sent = start(folder, kill_at=number)
    if code != -signal.SIGKILL:
      break  # the run has fewer changes
    killed += 1
    code, sent = start(folder)
    assert code == 0 and sent[:2] == ('ended', fake.STEPS), (number, sent)
    assert fake.left(folder) == fake.left(unbroken), number
    shutil.rmtree(folder)
  print(f'{killed} kills survived')
  assert code == 0 and sent[0] == 'ended' and killed >= 50


@pytest.mark.parametrize('limit', [1, 100, 300, 1000, 3000, 10_000])
def test_files_that_may_not_grow(tmp_path, unbroken, limit):
  folder = tmp_path / 'run'
  code, sent = start(folder, limit=limit)
  assert code == 0 and sent[0] in ('UserError', 'ended'), sent
  if sent[0] == 'UserError':
    assert str(folder) in sent[1], sent
  assert start(folder)[1][:2] == ('ended', fake.STEPS)
  assert fake.left(folder) == fake.left(unbroken)


@pytest.mark.parametrize('kib', [4, 16, 32, 64, 100, 150, 200, 300])
def test_a_disk_that_is_full(tmp_path, unbroken, kib):
  disk = tmp_path / 'disk'
  disk.mkdir()
  mounted = subprocess.run(
      ['mount', '-t', 'tmpfs', '-o', f'size={kib}k', 'tmpfs', str(disk)],
      capture_output=True, text=True)
  if mounted.returncode:
    pytest.skip(f'no tmpfs can be mounted: {mounted.stderr.strip()}')
  try:
    folder = disk / 'run'
    code, sent = start(folder)
    assert code == 0 and sent[0] in ('UserError', 'ended'), sent
    if sent[0] == 'UserError':
      assert str(folder) in sent[1], sent
    subprocess.run(['mount', '-o', 'remount,size=100m', str(disk)], check=True)
    assert start(folder)[1][:2] == ('ended', fake.STEPS)
    assert fake.left(folder) == fake.left(unbroken)
  finally:
    subprocess.run(['umount', str(disk)], check=True)
