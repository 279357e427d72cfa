"""Several processes on one machine: how they start, and end together."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.launch import fakes

# Stands in for Python: says what it was given, and stays until SIGTERM, or
# until the file `end_I` holds the exit code of process I.
_PROGRAM = f'''#!{sys.executable} -SE
import os, pathlib, signal, sys, time
if sys.argv[1] == '-c':
  exec(sys.argv[2])
  sys.exit()
here, index = pathlib.Path(__file__).parent, os.environ['JAX_PROCESS_ID']
names = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID',
         'JAX_NUM_CPU_DEVICES', 'CUDA_VISIBLE_DEVICES')
words = sys.argv[1:] + [f'{{n}}={{os.environ[n]}}' for n in names
                        if n in os.environ]
def stop(*_):
  time.sleep(3 * int(index))  # one takes longer than another
  (here / f'saved_{{index}}').touch()
  sys.exit(int(os.environ.get('STOPPED', '0')))
signal.signal(signal.SIGTERM, stop)
(here / f'pid_{{index}}').write_text(str(os.getpid()))
(here / f'words_{{index}}').write_text('\\n'.join(words))
print('process', index, flush=True)
end = here / f'end_{{index}}'
while not (end.exists() and end.read_text()):
  time.sleep(0.02)
sys.exit(int(end.read_text()))
'''


def hear_ctrl_c():
  """Tests in the background ignore it, and so would what they start."""
  signal.signal(signal.SIGINT, signal.SIG_DFL)


class Program:
  """local.sh around a program that does as it is told."""

  def __init__(self, folder):
    self.folder = folder
    python = folder / 'python'
    python.write_text(_PROGRAM)
    python.chmod(0o755)
    self.fake = fakes.Fakes(folder)

  def environment(self, **variables):
    return self.fake.environment() | {
        'PYTHON': str(self.folder / 'python'), 'JAX_PLATFORMS': 'cpu',
        'LOG_DIR': str(self.folder)} | variables

  def start(self, count, *arguments, **variables):
    process = subprocess.Popen(
        ['bash', str(fakes.LAUNCH / 'local.sh'), str(count), *arguments],
        env=self.environment(**variables), text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=hear_ctrl_c)
    for i in range(count):
      while not (self.folder / f'words_{i}').exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return process

  def end(self, index, code):
    (self.folder / f'end_{index}').write_text(str(code))

  def words(self, index):
    return (self.folder / f'words_{index}').read_text().split('\n')


@pytest.fixture
def program(tmp_path):
  return Program(tmp_path)


def test_processes_know_each_other(program):
  process = program.start(2, '--config=a', '--workdir=b c',
                          DEVICES_PER_PROCESS='4')
  program.end(0, 0)
  program.end(1, 0)
  out, error = process.communicate(timeout=60)
  assert process.returncode == 0, error
  assert out == 'process 0\n'  # the log of process 1 is a file
  assert (program.folder / 'process_1.log').read_text() == 'process 1\n'
  addresses = set()
  for i in range(2):
    *command, address, count, index, devices = program.words(i)
    assert command == ['-m', 'dinojax.main', '--config=a', '--workdir=b c']
    assert (count, index, devices) == (
        'JAX_NUM_PROCESSES=2', f'JAX_PROCESS_ID={i}', 'JAX_NUM_CPU_DEVICES=4')
    addresses.add(address)
  address, = addresses
  assert re.fullmatch(r'JAX_COORDINATOR_ADDRESS=localhost:\d+', address)


@pytest.mark.parametrize('visible, want', [
    ('4,5,6,7', ['4,5', '6,7']), ('1,0', ['1', '0'])])
def test_gpus_are_divided(program, visible, want):
  process = program.start(2, '--config=a', CUDA_VISIBLE_DEVICES=visible,
                          JAX_PLATFORMS='cuda')
  program.end(0, 0)
  program.end(1, 0)
  assert process.wait(timeout=60) == 0
  process.communicate()
  for i, gpus in enumerate(want):
    assert program.words(i)[-1] == f'CUDA_VISIBLE_DEVICES={gpus}'


def test_nvidia_smi_counts_the_gpus(program):
  smi = program.folder / 'nvidia-smi'
  smi.write_text('#!/bin/sh\nprintf "0\\n1\\n2\\n"\n')
  smi.chmod(0o755)
  done = program.fake.run('local.sh', '2', '--config=a')
  assert done.returncode == 2
  assert '3 GPUs cannot be divided among 2 processes' in done.stderr
  done = program.fake.run('local.sh', '3', '--config=a', DRY_RUN='1')
  assert [re.search(r'CUDA_VISIBLE_DEVICES=(\S+)', line).group(1)
          for line in done.stdout.splitlines()] == ['0', '1', '2']


@pytest.mark.parametrize('number, code', [
    (signal.SIGTERM, 143),
    pytest.param(signal.SIGINT, 0, marks=pytest.mark.slow, id='interrupt'),
    pytest.param(signal.SIGHUP, 0, marks=pytest.mark.slow, id='hangup')])
def test_a_signal_reaches_all_and_all_save(program, number, code):
  process = program.start(2, '--config=a', STOPPED=str(code))
  process.send_signal(number)
  _, error = process.communicate(timeout=60)
  assert process.returncode == code, error
  assert error.count('saves first') == 1
  assert all((program.folder / f'saved_{i}').exists() for i in range(2))


def test_a_second_ctrl_c_ends_all_at_once(program):
  process = program.start(2, '--config=a')
  for _ in range(2):
    process.send_signal(signal.SIGINT)
    time.sleep(1)
  _, error = process.communicate(timeout=60)
  assert process.returncode == 130, error
  assert not (program.folder / 'saved_1').exists()  # it had no time


def test_one_that_fails_ends_the_others(program):
  process = program.start(3, '--config=a')
  program.end(1, 7)
  began = time.monotonic()
  _, error = process.communicate(timeout=60)
  assert time.monotonic() - began < 30
  assert process.returncode == 7
  assert 'process 1 of 3 ended with exit code 7' in error
  assert 'process 1\n' in error  # the end of its log
  for i in range(3):  # nothing is left behind
    with pytest.raises(ProcessLookupError):
      os.kill(int((program.folder / f'pid_{i}').read_text()), 0)


@pytest.mark.parametrize('words, text', [
    ([], 'launch/local.sh 2 --config='), (['two'], "'two' is not a number"),
    (['0', '--config=a'], "'0' is not a number"),
    (['2'], 'no arguments for the program')])
def test_what_is_missing_is_said(program, words, text):
  done = program.fake.run('local.sh', *words)
  assert done.returncode == 2 and text in done.stderr


# --- With the program itself.

STEPS = 400  # more than pass between a line on the screen and the signal


def start(workdir):
  root = fakes.ROOT
  return subprocess.Popen(
      ['bash', str(fakes.LAUNCH / 'local.sh'), '2',
       f'--config={root}/configs/demo.py:smoke', f'--workdir={workdir}',
       f'--compile_cache={root / ".jax_cache"}',
       f'--config.train.total_steps={STEPS}', '--config.data.num_threads=1',
       '--config.knn.every_steps=1000', '--config.checkpoint.every_steps=1000'],
      cwd=root, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
      preexec_fn=hear_ctrl_c,
      env=os.environ | {
          'PYTHON': sys.executable, 'JAX_PLATFORMS': 'cpu',
          'PYTHONPATH': str(root), 'LOG_DIR': str(workdir)})


def until(process, text):
  lines = []
  for line in process.stdout:
    lines.append(line)
    if re.match(text, line):
      return ''.join(lines)
  raise AssertionError(''.join(lines))


@pytest.mark.slow
def test_two_processes_save_the_same_step_and_resume(tmp_path):
  process = start(tmp_path)
  until(process, 'step 3/')
  process.send_signal(signal.SIGINT)
  text, _ = process.communicate(timeout=300)
  assert process.returncode == 0, text
  step = int(re.search(r'stopped by a signal: saved step (\d+)', text).group(1))
  assert step < STEPS
  process = start(tmp_path)
  until(process, rf'resumed from step {step} ')
  until(process, rf'step {step + 1}/')
  process.terminate()
  text, _ = process.communicate(timeout=300)
  assert process.returncode == 0 and 'saved step' in text, text
