"""Several processes as one program: start, stop together, divide rows."""

import os
import signal
import threading

import jax
from jax.experimental import multihost_utils

from dinojax.parallel import mesh as mesh_lib


def initialize():
  """Joins the other processes of the run, if there are any.

  Clusters that jax knows (Slurm, GKE, TPU pods, OpenMPI) are found by
  themselves; elsewhere set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
  JAX_PROCESS_ID, as launch/local.sh does.
  """
  address = os.environ.get('JAX_COORDINATOR_ADDRESS')
  if address:
    jax.distributed.initialize(
        address, int(os.environ['JAX_NUM_PROCESSES']),
        int(os.environ['JAX_PROCESS_ID']))
  elif _on_cluster():
    jax.distributed.initialize()


def _on_cluster() -> bool:
  """Whether more than one process was started by a known launcher."""
  counts = ('SLURM_NTASKS', 'OMPI_COMM_WORLD_SIZE')
  if any(int(os.environ.get(name, '1')) > 1 for name in counts):
    return True
  workers = os.environ.get('TPU_WORKER_HOSTNAMES', '')
  return len(workers.split(',')) > 1


def is_first() -> bool:
  """Whether this process writes logs and pictures."""
  return jax.process_index() == 0


def to_devices(rows, mesh: jax.sharding.Mesh):
  """This process's rows of a batch as global arrays, split over devices."""
  sharding = jax.NamedSharding(mesh, mesh_lib.ROWS)
  return jax.make_array_from_process_local_data(sharding, rows)


class StopSignal:
  """SIGTERM or Ctrl-C seen, on this process or any other.

  The first signal asks for a save and a clean end; a second Ctrl-C stops at
  once. Use as a context manager around the loop.
  """

  def __init__(self):
    self._seen = False
    self._previous = {}

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGINT, signal.SIGTERM):
        if number == signal.SIGTERM and jax.process_count() > 1:
          continue  # jax.distributed agrees on a common step for this one
        self._previous[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *_):
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _note(self, number, frame):
    if self._seen and number == signal.SIGINT:
      raise KeyboardInterrupt
    self._seen = True

  def reached(self, step: int) -> bool:
    """Whether all processes should stop after `step`."""
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._seen
