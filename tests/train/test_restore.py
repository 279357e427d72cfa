"""A checkpoint belongs to no topology: any mesh, any processes resume it."""

import functools
import os
import pathlib
import pickle
import socket
import subprocess
import sys
import tempfile

import numpy as np
import pytest

from tests.train import resumed
from tests.train import test_step

ROOT = pathlib.Path(__file__).parents[2]
SAVED_AT, END = 2, 5


@functools.cache
def never_stopped():
  with tempfile.TemporaryDirectory() as folder:
    return resumed.steps(pathlib.Path(folder), (1, 1), 0, END)


def assert_same(got, want):
  for a, b in zip(got, want, strict=True):
    for name in a:
      if name.startswith('loss'):
        np.testing.assert_allclose(a[name], b[name], rtol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize('before, after', [
    ((1, 1), (2, 4)), ((2, 4), (1, 1))])
def test_another_mesh_resumes(tmp_path, before, after):
  got = resumed.steps(tmp_path, before, 0, SAVED_AT)[0]
  got += resumed.steps(tmp_path, after, SAVED_AT, END)[0]
  assert_same(got, never_stopped()[0])


def in_two_processes(out, *parts):
  with socket.socket() as s:
    s.bind(('localhost', 0))
    port = s.getsockname()[1]
  env = os.environ | {
      'JAX_COORDINATOR_ADDRESS': f'localhost:{port}',
      'JAX_NUM_PROCESSES': '2', 'JAX_PLATFORMS': 'cpu',
      'CACHE': str(ROOT / '.jax_cache'), 'PYTHONPATH': str(ROOT)}
  workers = [subprocess.Popen(
      [sys.executable, '-m', 'tests.train.two_processes', str(out), *parts],
      cwd=ROOT, env=env | {'JAX_PROCESS_ID': str(i)}, text=True,
      stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for i in range(2)]
  try:
    texts = [w.communicate(timeout=300)[0] for w in workers]
  finally:
    for worker in workers:  # those that wait for each other would stay
      worker.kill()
  assert all(w.returncode == 0 for w in workers), '\n'.join(texts)
  return pickle.loads(out.read_bytes())


@pytest.mark.slow  # make test has several devices, tests/train/test_step.py
def test_two_processes_do_not_change_the_result_and_resume(tmp_path):
  """One start of them for all, because each compiles for a minute."""
  one_first, two_first = tmp_path / 'one_first', tmp_path / 'two_first'
  before = resumed.steps(one_first, (1, 1), 0, SAVED_AT)[0]
  after, begun, whole = in_two_processes(
      tmp_path / 'out.pkl', f'{one_first}:{SAVED_AT}:{END}',
      f'{two_first}:0:{SAVED_AT}', f'{tmp_path / "whole"}:0:{END}')
  test_step.assert_same(whole, never_stopped(), steps=END)
  assert_same(before + after[0], never_stopped()[0])
  ended = resumed.steps(two_first, (1, 1), SAVED_AT, END)[0]
  assert_same(begun[0] + ended, never_stopped()[0])
