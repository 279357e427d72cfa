"""Who belongs to a run, as launchers tell it, and how all stop together."""

import os
import pathlib
import signal
import socket
import subprocess
import sys

import pytest

from dinojax.core import errors
from dinojax.parallel import processes

# As `srun` sets it for two nodes of two tasks each, on the second node.
SRUN = {'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '4', 'SLURM_STEP_NUM_TASKS': '4',
        'SLURM_STEP_NODELIST': 'n[1-2]', 'SLURM_STEP_TASKS_PER_NODE': '2(x2)',
        'SLURM_PROCID': '3', 'SLURM_LOCALID': '1', 'SLURM_NODEID': '1'}
# As `salloc` leaves it in the shell of an allocation of four tasks.
SALLOC = SRUN | {'SLURM_STEP_NUM_TASKS': '1', 'SLURM_STEP_TASKS_PER_NODE': '1',
                 'SLURM_PROCID': '0', 'SLURM_LOCALID': '0'}
TOLD = {'JAX_COORDINATOR_ADDRESS': 'a:1', 'JAX_NUM_PROCESSES': '2',
        'JAX_PROCESS_ID': '1'}
POD = {'KUBERNETES_SERVICE_HOST': '10.0.0.1', 'JOB_COMPLETION_INDEX': '0'}
OPEN_MPI = {'OMPI_COMM_WORLD_SIZE': '2', 'OMPI_COMM_WORLD_RANK': '0'}
# A training loop without the training.
LOOP = '''
import time
import jax
from dinojax.parallel import processes
processes.initialize()
with processes.StopSignal() as stop:
  step = 1
  while not stop.reached():
    print('step', step, flush=True)
    time.sleep(0.05)
    step += 1
print('stopped at', step, jax.process_count(), flush=True)
jax.distributed.shutdown()
'''


@pytest.mark.parametrize('env, on_tpu', [
    ({}, False),
    (SALLOC, False),
    ({'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '4'}, False),  # a batch script
    ({'OMPI_COMM_WORLD_SIZE': '1'}, False),
    (SRUN | {'JAX_NUM_PROCESSES': '1'}, False),
    ({'KUBERNETES_SERVICE_HOST': '10.0.0.1'}, False),  # a notebook's pod
    ({'TPU_WORKER_HOSTNAMES': 'a,b'}, False),  # JAX_PLATFORMS=cpu on a pod
    ({'TPU_WORKER_HOSTNAMES': 'localhost'}, True),
    (POD | {'TPU_WORKER_HOSTNAMES': 'localhost'}, True),
    ({'TPU_SKIP_MDS_QUERY': '1'}, True),
])
def test_a_process_on_its_own_waits_for_nobody(env, on_tpu):
  assert processes.launched(env, on_tpu=on_tpu) is None


@pytest.mark.parametrize('env, on_tpu', [
    ({}, True),  # a TPU VM: the metadata server knows
    ({'TPU_WORKER_HOSTNAMES': 'a,b'}, True),  # GKE
    ({'TPU_PROCESS_ADDRESSES': 'a:1,b:1'}, True),
    ({'TPU_WORKER_HOSTNAMES': 'a', 'MEGASCALE_NUM_SLICES': '2'}, True),
    (OPEN_MPI | {'OMPI_MCA_orte_hnp_uri': 'x'}, False),
    # mpirun inside Slurm starts its helpers by srun.
    (SRUN | OPEN_MPI | {'OMPI_MCA_orte_hnp_uri': 'x'}, False),
])
def test_jax_finds_the_rest_of_a_cluster(env, on_tpu):
  assert processes.launched(env, on_tpu=on_tpu) == {}


@pytest.mark.parametrize('tasks, rank, devices', [
    (1, 0, [0, 1, 2, 3]), (2, 1, [2, 3]), (4, 2, [2])])
def test_processes_of_open_mpi_share_the_gpus_of_a_node(tasks, rank, devices):
  env = OPEN_MPI | {
      'OMPI_MCA_orte_hnp_uri': 'x', 'CUDA_VISIBLE_DEVICES': '0,1,2,3',
      'OMPI_COMM_WORLD_LOCAL_SIZE': str(tasks),
      'OMPI_COMM_WORLD_LOCAL_RANK': str(rank)}
  assert processes.launched(env, on_tpu=False) == {'local_device_ids': devices}


def test_variables_of_jax_come_before_any_cluster():
  assert processes.launched(SALLOC | TOLD, on_tpu=True) == dict(
      coordinator_address='a:1', num_processes=2, process_id=1,
      cluster_detection_method='deactivate')


@pytest.mark.parametrize('changes, devices', [
    ({}, None),
    ({'CUDA_VISIBLE_DEVICES': '0,1'}, [1]),
    ({'CUDA_VISIBLE_DEVICES': '0,1,2,3'}, [2, 3]),
    ({'CUDA_VISIBLE_DEVICES': '0,1', 'SLURM_GPUS_PER_TASK': '2'}, [0, 1]),
    # One task on this node, which drives all its GPUs; three on the
    # other.
    ({'CUDA_VISIBLE_DEVICES': '0,1,2,3', 'SLURM_LOCALID': '0',
      'SLURM_STEP_TASKS_PER_NODE': '3,1'}, [0, 1, 2, 3]),
])
def test_tasks_of_slurm_share_the_gpus_of_a_node(changes, devices):
  got = processes.launched(SRUN | changes, on_tpu=False)
  assert got.pop('num_processes') == 4
  assert got.pop('local_device_ids', None) == devices
  assert not got


@pytest.mark.parametrize('env, text', [
    ({'JAX_COORDINATOR_ADDRESS': 'a:1'}, 'JAX_NUM_PROCESSES is not: set it'),
    (TOLD | {'JAX_PROCESS_ID': '2'}, 'not below JAX_NUM_PROCESSES=2'),
    (TOLD | {'JAX_PROCESS_ID': 'two'}, 'JAX_PROCESS_ID=two is not a whole'),
    (OPEN_MPI, 'JAX_PROCESS_ID=$OMPI_COMM_WORLD_RANK'),
    (SRUN | {'CUDA_VISIBLE_DEVICES': '0,1,2'}, '--ntasks-per-node=1'),
])
def test_what_a_launcher_leaves_out_is_said(env, text):
  with pytest.raises(errors.UserError) as caught:
    processes.launched(env, on_tpu=False)
  assert text in str(caught.value)


def test_an_indexed_job_needs_the_package_that_asks_kubernetes(monkeypatch):
  installed = lambda name: name if have else None
  monkeypatch.setattr(processes.importlib.util, 'find_spec', installed)
  have = True
  assert processes.launched(POD, on_tpu=False) == {}
  have = False
  with pytest.raises(errors.UserError, match='pip install kubernetes'):
    processes.launched(POD, on_tpu=False)
  assert processes.launched(
      POD | {'JAX_NUM_PROCESSES': '1'}, on_tpu=False) is None


def test_what_comes_after_the_last_step_is_seen():
  with processes.StopSignal() as stop:
    assert not stop.reached()
    signal.raise_signal(signal.SIGTERM)
    assert stop.seen


def test_ctrl_c_is_noted_once_and_obeyed_twice():
  before = signal.getsignal(signal.SIGINT)
  with processes.StopSignal() as stop:
    assert not stop.reached()
    signal.raise_signal(signal.SIGINT)
    assert stop.reached()
    with pytest.raises(KeyboardInterrupt):
      signal.raise_signal(signal.SIGINT)
  assert signal.getsignal(signal.SIGINT) is before


TELL = '''
import jax
from dinojax.parallel import processes
processes.initialize()
print('told', processes.of_first('é' * (jax.process_index() + 2)), flush=True)
jax.distributed.shutdown()
'''


def start_loops(environments, program=LOOP):
  root = pathlib.Path(__file__).parents[2]
  return [subprocess.Popen(
      [sys.executable, '-c', program], text=True, cwd=root,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE,
      env=os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(root)} | env)
      for env in environments]


def test_all_go_by_what_the_first_process_read():
  with socket.socket() as s:
    s.bind(('localhost', 0))
    port = s.getsockname()[1]
  both = start_loops([
      {'JAX_COORDINATOR_ADDRESS': f'localhost:{port}',
       'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': str(i)} for i in range(2)],
      TELL)
  texts = [process.communicate(timeout=120) for process in both]
  assert all(out.endswith('told éé\n') for out, _ in texts), texts


@pytest.mark.parametrize('number', [
    signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_to_one_process_stops_all_at_the_same_step(number):
  with socket.socket() as s:
    s.bind(('localhost', 0))
    port = s.getsockname()[1]
  loops = start_loops([
      {'JAX_COORDINATOR_ADDRESS': f'localhost:{port}',
       'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': str(i)} for i in range(2)])
  while loops[1].stdout.readline() != 'step 3\n':
    assert loops[1].poll() is None, loops[1].stderr.read()
  loops[1].send_signal(number)
  texts = [loop.communicate(timeout=120) for loop in loops]
  assert [loop.returncode for loop in loops] == [0, 0], texts
  (first, second) = (out.splitlines()[-1] for out, _ in texts)
  assert first == second
  assert first.startswith('stopped at') and first.endswith(' 2')


def test_tasks_of_slurm_find_each_other():
  with socket.socket() as s:
    s.bind(('localhost', 0))
    port = s.getsockname()[1]
  step = {'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '2',
          'SLURM_STEP_NUM_TASKS': '2', 'SLURM_STEP_NODELIST': 'localhost',
          'SLURM_STEP_TASKS_PER_NODE': '2', 'SLURM_NODEID': '0',
          'JAX_COORDINATOR_PORT': str(port)}
  loops = start_loops([
      step | {'SLURM_PROCID': str(i), 'SLURM_LOCALID': str(i)}
      for i in range(2)])
  for loop in loops:
    assert loop.stdout.readline() == 'step 1\n', loop.communicate()
  for loop in loops:
    loop.terminate()
  texts = [loop.communicate(timeout=120) for loop in loops]
  assert [loop.returncode for loop in loops] == [0, 0], texts
  assert all(out.endswith(' 2\n') for out, _ in texts)
