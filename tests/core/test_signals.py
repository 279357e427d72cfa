"""Signals, sent to programs of a few lines."""

import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from dinojax.core import signals

WAIT = 'import sys, time; print("ready", flush=True); time.sleep(20)'
HEAD = 'from dinojax.core import signals; '


def begun(code, **options):
  process = subprocess.Popen(
      [sys.executable, '-c', code], stdout=subprocess.PIPE,
      stderr=subprocess.PIPE, text=True, **options)
  assert process.stdout.readline() == 'ready\n'
  return process


def ended(process, seconds=5):
  """Exit code and stderr; the test fails if there is no end."""
  try:
    _, text = process.communicate(timeout=seconds)
  finally:
    process.kill()
  return process.returncode, text


@pytest.mark.parametrize('number, name', signals.NAMES.items())
def test_a_signal_ends_with_a_sentence(number, name):
  process = begun(f'{HEAD}signals.watch("begin again"); {WAIT}')
  process.send_signal(number)
  assert ended(process) == (
      128 + number, f'stopped by {name}: begin again\n')


def test_an_end_waits_for_nothing_that_python_waits_for():
  """Neither for a handler's turn, nor for threads, nor for exit functions."""
  process = begun(
      f'{HEAD}signals.watch("so", 7); import atexit, hashlib, threading, time; '
      'atexit.register(time.sleep, 20); '
      'threading.Thread(target=time.sleep, args=(20,)).start(); '
      'print("ready", flush=True); '
      'hashlib.pbkdf2_hmac("sha256", b"", b"", 10 ** 9)')
  began = time.monotonic()
  process.terminate()
  assert ended(process) == (7, 'stopped by SIGTERM: so\n')
  assert time.monotonic() - began < 2


def test_who_holds_ends_by_itself_and_a_second_ctrl_c_at_once():
  code = (f'{HEAD}signals._AGAIN_S = 0.2; signals.watch("so")\n'
          f'with signals.held(): {WAIT}')
  process = begun(code)
  process.send_signal(signal.SIGINT)
  process.send_signal(signal.SIGINT)  # the launcher's, of the same key
  time.sleep(0.3)
  assert process.poll() is None
  process.send_signal(signal.SIGTERM)  # only Ctrl-C is impatience
  time.sleep(0.1)
  assert process.poll() is None
  process.send_signal(signal.SIGINT)
  code, text = ended(process)
  assert code == 130
  first, second = text.splitlines()
  assert first.startswith('Ctrl-C: saving after this step')
  assert second.startswith('stopped at once by a second Ctrl-C')


def test_what_nohup_made_deaf_stays_deaf():
  code = f'{HEAD}signals.watch("so"); {WAIT}'
  process = begun('import os, signal, sys\n'
                  'signal.signal(signal.SIGHUP, signal.SIG_IGN)\n'
                  f'os.execv(sys.executable, [sys.executable, "-c", {code!r}])')
  process.send_signal(signal.SIGHUP)
  time.sleep(0.2)
  assert process.poll() is None
  process.terminate()
  assert ended(process)[0] == 128 + signal.SIGTERM


def test_workers_end_with_the_program():
  code = (f'{HEAD}import multiprocessing, time\n'
          'signals.watch("so")\n'
          'child = multiprocessing.get_context("fork").Process(\n'
          '    target=time.sleep, args=(60,), daemon=True)\n'
          'child.start()\n'
          'print("ready", flush=True); print(child.pid, flush=True)\n'
          'time.sleep(20)')
  process = begun(code)
  pid = int(process.stdout.readline())
  process.terminate()
  ended(process)
  for _ in range(50):
    try:
      state = open(f'/proc/{pid}/stat').read().split()[2]
    except FileNotFoundError:
      return
    if state == 'Z':
      return
    time.sleep(0.1)
  pytest.fail('the worker lives')


WATCH = """
import signal
from dinojax.core import signals
before = signal.getsignal(signal.SIGTERM)
unwatch = signals.watch('so')
assert signals.is_watched()
inner = signals.watch('other words')
inner()
assert signals.is_watched()  # who did not begin it does not end it
unwatch()
assert not signals.is_watched()
assert signal.getsignal(signal.SIGTERM) is before
"""


def test_a_watch_gives_the_signals_back():
  subprocess.run([sys.executable, '-c', WATCH], check=True, timeout=20)


def test_a_sentence_clears_the_live_line_of_a_terminal():
  controller, terminal = pty.openpty()
  process = begun(f'{HEAD}signals.watch("so"); {WAIT}', env=os.environ)
  process.kill()
  process = subprocess.Popen(
      [sys.executable, '-c', f'{HEAD}signals.tell("words")'], stderr=terminal)
  process.wait(5)
  assert os.read(controller, 100) == b'\r\x1b[2K\x1b[?25hwords\r\n'


@pytest.mark.parametrize('argv, code', [
    ([], 0), (['--stopped_exit_code=75'], 75), (['-stopped_exit_code', '3'], 3),
    (['--stopped_exit_code'], 0), (['--stopped_exit_code=x'], 0)])
def test_the_exit_code_is_known_before_the_flags(argv, code):
  assert signals.stopped_exit_code(['train', *argv]) == code
