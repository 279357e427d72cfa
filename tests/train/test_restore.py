"""A checkpoint belongs to no topology: any mesh, any processes resume it."""

import os
import pathlib
import pickle
import socket
import subprocess
import sys

import numpy as np
import pytest

from tests.train import resumed

ROOT = pathlib.Path(__file__).parents[2]
SAVED_AT, END = 2, 5


@pytest.fixture(scope='module')
def never_stopped(tmp_path_factory):
  return resumed.steps(tmp_path_factory.mktemp('whole'), (1, 1), 0, END)


def assert_same(got, want):
  for a, b in zip(got, want, strict=True):
    for name in a:
      if name.startswith('loss'):
        np.testing.assert_allclose(a[name], b[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize('before, after', [
    ((1, 1), (2, 4)), ((2, 4), (1, 1))])
def test_another_mesh_resumes(tmp_path, never_stopped, before, after):
  got = resumed.steps(tmp_path, before, 0, SAVED_AT)
  got += resumed.steps(tmp_path, after, SAVED_AT, END)
  assert_same(got, never_stopped)


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
  texts = [w.communicate(timeout=300)[0] for w in workers]
  assert all(w.returncode == 0 for w in workers), '\n'.join(texts)
  return pickle.loads(out.read_bytes())


def test_another_number_of_processes_resumes(tmp_path, never_stopped):
  one_first, two_first = tmp_path / 'one_first', tmp_path / 'two_first'
  before = resumed.steps(one_first, (1, 1), 0, SAVED_AT)
  after, begun = in_two_processes(
      tmp_path / 'out.pkl', f'{one_first}:{SAVED_AT}:{END}',
      f'{two_first}:0:{SAVED_AT}')
  assert_same(before + after, never_stopped)
  ended = resumed.steps(two_first, (1, 1), SAVED_AT, END)
  assert_same(begun + ended, never_stopped)
