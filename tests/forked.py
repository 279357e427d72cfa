"""Commands in processes of their own that are forked, not started.

A server has imported everything but the commands themselves and opened no
device; a start is a fork of it and saves the four seconds of processor time
that the imports take.
"""

import atexit
import importlib
import multiprocessing
from multiprocessing import forkserver
import os
import pathlib
import sys

from dinojax import commands

ROOT = pathlib.Path(__file__).parents[1]
CACHE = ROOT / '.jax_cache'
_CONTEXT = multiprocessing.get_context('forkserver')
_CONTEXT.set_forkserver_preload([
    *(f'dinojax.commands.{name}' for name in commands.COMMANDS),
    'dinojax.commands.call', 'dinojax.runs.autoconfig', 'configs.demo',
    'dinojax.doctor.report', 'dinojax.features.embedding',
    'dinojax.features.tables', 'dinojax.interop.checking', __name__])


def _command(argv: list[str], cwd: str, env: dict[str, str], out):
  """What the process does: as `python -m` and argv[0] from `cwd`."""
  os.dup2(out.fileno(), 1)
  os.dup2(out.fileno(), 2)
  out.close()
  sys.stdout = open(1, 'w', buffering=1, closefd=False)
  sys.stderr = open(2, 'w', buffering=1, closefd=False)
  os.environ.clear()
  os.environ.update(env)
  os.chdir(cwd)
  sys.argv = argv
  try:
    room, _, name = argv[0].rpartition('.')
    if room == 'dinojax.commands':
      sys.exit(commands.run(name, argv[1:]))
    importlib.import_module(argv[0]).entry()
  finally:
    atexit._run_exitfuncs()  # a process of multiprocessing skips them


class Command:
  """A running command, used as a subprocess.Popen; its output is one text."""

  def __init__(self, argv: list[str], cwd: str | pathlib.Path = ROOT,
               module: str = 'dinojax.main', **env: str):
    """Starts `python -m module argv` in a folder, with more environment."""
    reader, writer = _CONTEXT.Pipe(duplex=False)
    self._process = _CONTEXT.Process(target=_command, args=(
        [module, *argv], str(cwd), os.environ | env, writer))
    self._process.start()
    writer.close()
    self.stdout = open(os.dup(reader.fileno()))
    reader.close()

  @property
  def pid(self) -> int:
    return self._process.pid

  @property
  def returncode(self) -> int | None:
    return self._process.exitcode

  def poll(self) -> int | None:
    return self._process.exitcode

  def wait(self, timeout: float | None = None) -> int:
    """The exit code, once it has one."""
    self._process.join(timeout)
    if self._process.exitcode is None:
      self._process.kill()
      raise TimeoutError(f'no end after {timeout} s')
    return self._process.exitcode

  def send_signal(self, number: int):
    if self._process.exitcode is None:
      os.kill(self._process.pid, number)

  def communicate(self, timeout: float | None = None) -> tuple[str, None]:
    """What it still writes, until it ends."""
    text = self.stdout.read()
    self.wait(timeout)
    return text, None


def stop():
  """Ends the server, so that its memory counts among the children's."""
  forkserver._forkserver._stop()


def run(argv: list[str], cwd: str | pathlib.Path = ROOT,
        module: str = 'dinojax.main', **env: str) -> tuple[int, str]:
  """Exit code and output of a command."""
  process = Command(argv, cwd, module, **env)
  text, _ = process.communicate(timeout=300)
  return process.returncode, text
