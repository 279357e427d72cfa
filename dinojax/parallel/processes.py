"""Several processes as one program: start, stop together, divide rows."""

from collections.abc import Mapping
import contextlib
import importlib.util
import os
import re
import signal
import threading
from typing import Any

import jax
from jax._src import distributed
from jax.experimental import multihost_utils
import numpy as np

from dinojax.core import errors
from dinojax.core import signals
from dinojax.parallel import mesh as mesh_lib

# All processes end within seconds of each other. One that failed waits as long
# for the others, which know nothing yet; jax's own five minutes are idle ones.
_SHUTDOWN_SECONDS = 60
_MEET_MS = 7 * 24 * 3600 * 1000
_met: list[int] = []  # times that all have met: a barrier has a name once
_GPUS = '/proc/driver/nvidia/gpus'  # a folder each


def initialize():
  """Joins the other processes of the run, if there are any.

  TPU pods, GKE, Slurm, OpenMPI and indexed Kubernetes jobs are found by
  themselves; elsewhere set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
  JAX_PROCESS_ID, as launch/local.sh does. JAX_NUM_PROCESSES=1 trains alone.

  Raises:
    UserError: a launcher that was recognised, but says too little.
  """
  arguments = launched(os.environ, on_tpu='tpu' in (
      jax.config.jax_platforms or '').split(','))
  if arguments is not None:
    jax.distributed.initialize(
        **arguments, shutdown_timeout_seconds=_SHUTDOWN_SECONDS)


def launched(env: Mapping[str, str], *, on_tpu: bool) -> dict[str, Any] | None:
  """Arguments of jax.distributed.initialize; None: this process is alone.

  jax would find most clusters by itself, but takes a shell inside an
  allocation for the program, and then waits for processes that nobody starts.

  Args:
    env: variables that launchers set.
    on_tpu: True if jax will use TPUs of this machine.
  """
  if 'JAX_COORDINATOR_ADDRESS' in env:
    return _told(env)
  if env.get('JAX_NUM_PROCESSES') == '1':
    return None
  if _number(env, 'OMPI_COMM_WORLD_SIZE') > 1:
    # Before Slurm: mpirun starts its own helpers by srun.
    return _open_mpi(env)
  if _number(env, 'SLURM_STEP_NUM_TASKS') > 1:
    return _slurm(env)
  if on_tpu:
    return {} if _may_be_pod(env) else None
  if 'KUBERNETES_SERVICE_HOST' in env and 'JOB_COMPLETION_INDEX' in env:
    return _kubernetes()
  return None


def _told(env: Mapping[str, str]) -> dict[str, Any]:
  """Arguments from JAX_* variables alone: no cluster is detected."""
  names = ('JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
  for name in names:
    if name not in env:
      raise errors.UserError(
          f'JAX_COORDINATOR_ADDRESS={env["JAX_COORDINATOR_ADDRESS"]} is set, '
          f'but {name} is not: set it, or unset JAX_COORDINATOR_ADDRESS')
  count, index = (_number(env, name) for name in names)
  if not 0 <= index < count:
    raise errors.UserError(
        f'JAX_PROCESS_ID={index} is not below JAX_NUM_PROCESSES={count}: '
        'number the processes from 0')
  return dict(
      coordinator_address=env['JAX_COORDINATOR_ADDRESS'], num_processes=count,
      process_id=index, cluster_detection_method='deactivate')


def _open_mpi(env: Mapping[str, str]) -> dict[str, Any]:
  """OpenMPI 4 says where its first process is; 5 no longer does.

  As with Slurm, jax would give every process one GPU.
  """
  if 'OMPI_MCA_orte_hnp_uri' not in env:
    raise errors.UserError(
        f'OMPI_COMM_WORLD_SIZE={env["OMPI_COMM_WORLD_SIZE"]}, but this '
        'OpenMPI does not say where process 0 is: set '
        'JAX_COORDINATOR_ADDRESS=HOST:PORT, '
        'JAX_NUM_PROCESSES=$OMPI_COMM_WORLD_SIZE and '
        'JAX_PROCESS_ID=$OMPI_COMM_WORLD_RANK in each process')
  return _shared(_num_gpus(env), _number(env, 'OMPI_COMM_WORLD_LOCAL_SIZE'),
                 _number(env, 'OMPI_COMM_WORLD_LOCAL_RANK'))


def _slurm(env: Mapping[str, str]) -> dict[str, Any]:
  """One process a node, or more that share its GPUs equally.

  SLURM_NTASKS counts the tasks of the allocation, also in its shell; only
  the step of `srun` is this program. jax gives every task one GPU: a node
  with one task would train on one of its eight.
  """
  out = {'num_processes': _number(env, 'SLURM_STEP_NUM_TASKS')}
  if not _num_gpus(env):
    return out
  sharing = 1  # --gpus-per-task: what a task sees is its own
  if 'SLURM_GPUS_PER_TASK' not in env:
    # '2(x3),1' are three nodes of two tasks and one of one.
    counts = [int(tasks) for tasks, nodes in re.findall(
        r'(\d+)(?:\(x(\d+)\))?', env['SLURM_STEP_TASKS_PER_NODE'])
        for _ in range(int(nodes or 1))]
    sharing = counts[_number(env, 'SLURM_NODEID')]
  part = _number(env, 'SLURM_LOCALID') if sharing > 1 else 0
  return out | _shared(_num_gpus(env), sharing, part)


def _num_gpus(env: Mapping[str, str]) -> int:
  """Number of GPUs that a process of this machine sees."""
  if 'CUDA_VISIBLE_DEVICES' in env:
    return len([x for x in env['CUDA_VISIBLE_DEVICES'].split(',') if x])
  return len(os.listdir(_GPUS)) if os.path.isdir(_GPUS) else 0


def _shared(num_gpus: int, sharing: int, part: int) -> dict[str, Any]:
  """The GPUs of one of the processes that share them; {}: there are none."""
  if not num_gpus:
    return {}
  if num_gpus % max(sharing, 1):
    raise errors.UserError(
        f'{sharing} tasks of a node cannot share its {num_gpus} GPUs '
        'equally: use --ntasks-per-node=1, or a divisor of the GPUs')
  each = num_gpus // max(sharing, 1)
  return {'local_device_ids': list(range(part * each, (part + 1) * each))}


def _may_be_pod(env: Mapping[str, str]) -> bool:
  """Tells whether the TPUs of this machine may be part of a larger slice.

  GKE says how many hosts there are. A TPU VM does not, but Google's metadata
  server does, which jax asks; it sets TPU_SKIP_MDS_QUERY where there is none.
  """
  hosts = env.get('TPU_PROCESS_ADDRESSES', env.get('TPU_WORKER_HOSTNAMES'))
  if hosts is not None:
    return len(hosts.split(',')) > 1 or (
        _number(env, 'MEGASCALE_NUM_SLICES') > 1)
  return 'TPU_SKIP_MDS_QUERY' not in env


def _kubernetes() -> dict[str, Any]:
  """An indexed job: jax asks Kubernetes for its size and first pod."""
  if importlib.util.find_spec('kubernetes') is None:
    raise errors.UserError(
        'this is a pod of an indexed Kubernetes job, and jax needs the '
        'package kubernetes to find the others: `pip install kubernetes`, or '
        'set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID; '
        'for a job of one pod, JAX_NUM_PROCESSES=1')
  return {}


def _number(env: Mapping[str, str], name: str) -> int:
  text = env.get(name, '0')
  if not text.isdecimal():
    raise errors.UserError(f'{name}={text} is not a whole number: set it to '
                           'one, or unset it')
  return int(text)


def is_first() -> bool:
  """Tells whether this process is the one that writes logs and pictures."""
  return jax.process_index() == 0


def of_first(text: str) -> str:
  """The text that the first process has, on all of them.

  What is read from files that others write may differ by the moment.
  """
  if jax.process_count() == 1:
    return text
  letters = np.frombuffer(text.encode(), np.uint8)
  length = int(multihost_utils.broadcast_one_to_all(np.int32(len(letters))))
  padded = np.zeros(length, np.uint8)
  if is_first():
    padded[:] = letters
  return np.asarray(
      multihost_utils.broadcast_one_to_all(padded)).tobytes().decode()


def to_devices(rows, mesh: jax.sharding.Mesh):
  """This process's rows of a batch as global arrays, split over devices."""
  sharding = jax.NamedSharding(mesh, mesh_lib.ROWS)
  return jax.make_array_from_process_local_data(sharding, rows)


def agree(is_well: bool) -> bool:
  """Tells whether `is_well` is True on all processes; each must ask."""
  if jax.process_count() == 1:
    return is_well
  return bool(multihost_utils.process_allgather(np.array(is_well)).all())


def meet():
  """Waits for all processes, however long the work of one takes.

  A collective that one process enters minutes late gives up; what it does
  itself until then, others cannot know.
  """
  if jax.process_count() > 1:
    _met.append(len(_met))
    distributed.global_state.client.wait_at_barrier(
        f'dinojax_meet_{len(_met)}', _MEET_MS)


def of_all(data: bytes) -> list[bytes]:
  """The bytes of every process, in their order; each must ask."""
  if jax.process_count() == 1:
    return [data]
  counts = np.asarray(multihost_utils.process_allgather(
      np.array([len(data)], np.int32))).reshape(-1)
  padded = np.zeros(max(int(counts.max()), 1), np.uint8)
  padded[:len(data)] = np.frombuffer(data, np.uint8)
  rows = np.asarray(multihost_utils.process_allgather(padded))
  return [row[:count].tobytes() for row, count in zip(
      rows, counts, strict=True)]


def first_raises(error: errors.UserError | None):
  """Ends all processes with the error that the first one has, if any."""
  text = of_first(str(error) if error else '')
  if text:
    raise errors.UserError(text) from error


class StopSignal:
  """SIGTERM, SIGHUP or Ctrl-C seen, on this process or any other.

  The first signal asks for a save and a clean end; a second Ctrl-C stops at
  once. Use as a context manager around the steps, when there is something to
  save; what comes before is core/signals'.
  """

  # jax wants numbers that rise: from one run to the next, steps do not.
  _times_asked = 0

  def __init__(self):
    self._seen = self._agreed = False
    self._previous = {}
    self._held = contextlib.ExitStack()

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      for number in signals.catchable():
        if number == signal.SIGTERM and jax.process_count() > 1:
          continue  # jax.distributed agrees on a common step for this one
        self._previous[number] = signal.signal(number, self._note)
    self._held.enter_context(signals.held())
    return self

  def __exit__(self, *_):
    self._held.close()
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _note(self, number, frame):
    if self._seen:
      if number == signal.SIGINT and not signals.is_watched():
        raise KeyboardInterrupt
      return
    self._seen = True
    if jax.process_count() > 1:
      signal.raise_signal(signal.SIGTERM)  # only this one reaches the others

  def reached(self) -> bool:
    """Tells whether all processes stop now; each asks after every step."""
    if jax.process_count() > 1:
      StopSignal._times_asked += 1
      self._agreed |= multihost_utils.reached_preemption_sync_point(
          StopSignal._times_asked)
    return self.seen

  @property
  def seen(self) -> bool:
    """True if all processes know of a signal; asks none of them."""
    return self._agreed if jax.process_count() > 1 else self._seen
