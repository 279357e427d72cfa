"""A real Ray cluster of two nodes: the same bytes, whatever dies in it."""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import pytest

from dinojax.core import errors
from dinojax.curate.engines import on_ray
from dinojax.runs import curation
from tests.curate import test_chain
from tests.curate import test_recipe

ray = pytest.importorskip('ray')
pytestmark = pytest.mark.slow  # half a minute until a cluster is up
pile, finished = test_recipe.pile, test_recipe.finished


def _node(folder, *words):
  """A node in a session of its own, which ends as one."""
  return subprocess.Popen(
      [sys.executable, '-m', 'ray.scripts.scripts', 'start', *words,
       '--node-ip-address=127.0.0.1', '--object-store-memory=100000000',
       '--disable-usage-stats', '--num-cpus=1', '--block'],
      stdout=open(folder / 'log', 'ab'), stderr=subprocess.STDOUT,
      start_new_session=True, env=os.environ | {
          'JAX_NUM_CPU_DEVICES': '8',  # as the tests have: sums hang on them
          'PYTHONPATH': os.pathsep.join(path for path in sys.path if path)})


def _end(node):
  os.killpg(node.pid, signal.SIGKILL)
  node.wait()


def _free_port():
  with socket.socket() as listener:
    listener.bind(('127.0.0.1', 0))
    return listener.getsockname()[1]


@pytest.fixture(scope='module')
def cluster():
  """Address, and the second of its nodes."""
  # Paths of sockets are short, so not below pytest's folder.
  folder, port = pathlib.Path(tempfile.mkdtemp(prefix='r')), _free_port()
  head = _node(folder, '--head', f'--port={port}', f'--temp-dir={folder}',
               '--include-dashboard=false')
  address, second = f'127.0.0.1:{port}', None
  try:
    end = time.monotonic() + 120
    while b'Ray runtime started' not in (folder / 'log').read_bytes():
      assert time.monotonic() < end and head.poll() is None, (
          folder / 'log').read_text()
      time.sleep(0.5)
    second = _node(folder, f'--address={address}')
    ray.init(address=address, log_to_driver=False, logging_level='ERROR')
    while len([n for n in ray.nodes() if n['Alive']]) < 2:
      assert time.monotonic() < end, (folder / 'log').read_text()
      time.sleep(0.5)
    yield address, second
  finally:
    ray.shutdown()
    for node in (second, head):
      if node is not None and node.poll() is None:
        _end(node)
    shutil.rmtree(folder, ignore_errors=True)


def test_a_curation_is_that_of_one_process(cluster, pile, finished, tmp_path):
  curation.curate(curation.Request(
      test_recipe.config(pile), str(tmp_path), engine='ray',
      address=cluster[0]))
  assert test_recipe.contents(tmp_path) == test_recipe.contents(finished[0])


def test_a_worker_that_dies_costs_nothing(cluster, tmp_path):
  accident = tmp_path / 'accident'
  accident.mkdir()
  engine = on_ray.OnRay(cluster[0], {})
  test_chain.run(tmp_path / 'want')
  test_chain.run(tmp_path / 'got', test_chain.Numbers(accident=str(accident)),
                 test_chain.Sum(), engine=engine)
  assert (accident / 'once').exists()
  assert test_chain.contents(tmp_path / 'got') == test_chain.contents(
      tmp_path / 'want')


def test_a_task_that_dies_each_time_is_named_and_others_are_done(
    cluster, tmp_path):
  accident = tmp_path / 'always'
  accident.mkdir()
  (accident / 'once').touch()
  with pytest.raises(errors.UserError, match=r'numbers/write/000003') as raised:
    test_chain.run(
        tmp_path / 'work', test_chain.Numbers(accident=str(accident)),
        engine=on_ray.OnRay(cluster[0], {}))
  assert 'all others are done' in str(raised.value)
  assert len(list((tmp_path / 'work').rglob('*.done'))) == 4


def test_errors_are_those_of_the_task(cluster, tmp_path):
  with pytest.raises(errors.UserError, match='No space left on device'):
    test_chain.run(tmp_path, test_chain.Full(),
                   engine=on_ray.OnRay(cluster[0], {}))


def test_a_node_that_dies_costs_nothing(cluster, pile, finished, tmp_path):
  address, second = cluster
  done = lambda: len(list(tmp_path.rglob('*.done')))

  def kill():
    while done() < 8:
      time.sleep(0.05)
    _end(second)

  killer = threading.Thread(target=kill)
  killer.start()
  curation.curate(curation.Request(
      test_recipe.config(pile), str(tmp_path), engine='ray', address=address))
  killer.join()
  assert test_recipe.contents(tmp_path) == test_recipe.contents(finished[0])


def test_an_address_without_a_cluster_is_told_at_once():
  began = time.monotonic()
  with pytest.raises(errors.UserError, match='no Ray cluster is at 127.0.0.1'):
    on_ray.OnRay(f'127.0.0.1:{_free_port()}', {})
  assert time.monotonic() - began < 10
