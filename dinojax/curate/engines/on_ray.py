"""Tasks on a Ray cluster: one a task of Ray's, tried again when a node dies.

Only numbers travel: tasks read and write files of a disk that all nodes share.
What is done is known by these files, never by Ray's word.
"""

from collections.abc import Mapping, Sequence
import importlib.metadata
import os
import socket
from typing import Any

from dinojax.core import errors
from dinojax.curate.engines import in_process
from dinojax.curate.engines import work

_TRIES = 3  # of a task whose worker or node dies
_AHEAD = 3  # tasks for each core that the cluster knows of
_CONNECT_S = 10.0
_START = ('start one with `ray start --head`, and give its '
          '--address=HOST:PORT')


class OnRay:
  """Runs tasks on the cluster at an address."""

  def __init__(self, address: str, resources: Mapping[str, float]):
    """Connects, and checks that every node can do the tasks.

    Args:
      address: 'auto' or HOST:PORT of a cluster that is up.
      resources: accelerators of a task that uses all of a machine, by Ray's
        names, such as {'TPU': 4} or {'GPU': 1}; {}: all of its cores.

    Raises:
      UserError: Ray is not installed, nothing is at the address, or the
        cluster has another version of dinojax, or none.
    """
    try:
      import ray
    except ImportError as error:
      raise errors.UserError(
          '--engine=ray needs Ray: pip install "dinojax[ray]", here and on '
          'the nodes') from error
    self._ray, self._resources = ray, dict(resources)
    # What is cancelled has failed, and Ray would tell of each at length.
    os.environ.setdefault('RAY_IGNORE_UNHANDLED_ERRORS', '1')
    _check_port(address)
    try:
      ray.init(address=address, ignore_reinit_error=True,
               log_to_driver=False, logging_level='ERROR')
    except (ConnectionError, ValueError, RuntimeError) as error:
      raise errors.UserError(
          f'no Ray cluster is at {address} '
          f'({(str(error).splitlines() or [""])[0]}): {_START}') from error
    self._check_version()

  def map(self, tasks: Sequence[work.Task], told: in_process.Told, *,
          whole: bool = False):
    """Does tasks, see InProcess.map."""
    at_work: dict[Any, work.Task] = {}
    try:
      self._map(tasks, told, whole, at_work)
    except BaseException:
      for reference in at_work:  # nobody waits for the others any more
        self._ray.cancel(reference)
      raise

  def _map(self, tasks: Sequence[work.Task], told: in_process.Told,
           whole: bool, at_work: dict[Any, work.Task]):
    """Does tasks; `at_work` are those that the cluster has."""
    remote = self._ray.remote(in_process.patient).options(
        max_retries=_TRIES, **(self._of_machine() if whole
                               else {'num_cpus': 1}))
    waiting, dead = iter(tasks), []
    room = max(_AHEAD * int(self._ray.cluster_resources().get('CPU', 1)), 1)
    while True:
      while len(at_work) < room and (
          task := next(waiting, None)) is not None:
        at_work[remote.remote(task)] = task
      if not at_work:
        break
      (ready, *_), _ = self._ray.wait(list(at_work), num_returns=1)
      task = at_work.pop(ready)
      try:
        told(task, self._ray.get(ready))
      except self._ray.exceptions.RayTaskError as error:
        raise self._sentence(task, error) from error
      except self._ray.exceptions.RayError as error:
        # Its worker or node died each time; the others go on.
        dead.append((task, error))
    if dead:
      task, error = dead[0]
      raise errors.UserError(
          f'{len(dead)} tasks lost their worker {_TRIES + 1} times, the first '
          f'is {task.title} ({(str(error).splitlines() or [""])[0]}); all '
          'others are done: give its nodes more memory, and start the same '
          'command again') from error

  def _of_machine(self) -> dict[str, Any]:
    """Options of a task that uses all of a machine."""
    if self._resources:
      out = dict(self._resources)
      gpus = out.pop('GPU', 0)
      return {'num_cpus': 1, 'num_gpus': gpus, 'resources': out}
    return {'num_cpus': min(
        node['Resources'].get('CPU', 1) for node in self._ray.nodes()
        if node['Alive'])}

  def _sentence(self, task: work.Task, error: Exception) -> Exception:
    """The error of a task as the user is to read it."""
    cause = error.cause
    if isinstance(cause, errors.UserError):
      return cause
    if isinstance(cause, ModuleNotFoundError):
      return errors.UserError(
          f'{task.title} needs the module {cause.name}, which a node of the '
          'cluster lacks: install the same packages on all of them')
    return error

  def _check_version(self):
    """Asks a node which dinojax it has.

    Raises:
      UserError: another one than here, or none.
    """
    mine = importlib.metadata.version('dinojax')
    ask = self._ray.remote(importlib.metadata.version).options(num_cpus=1)
    try:
      theirs = self._ray.get(ask.remote('dinojax'))
    except self._ray.exceptions.RayTaskError as error:
      raise errors.UserError(
          f'a node of the cluster has no dinojax: install {mine} on all of '
          'them') from error
    if theirs != mine:
      raise errors.UserError(
          f'a node of the cluster has dinojax {theirs}, and here is {mine}: '
          'install the same on all of them')


def _check_port(address: str):
  """Refuses an address at which nothing listens, which Ray asks for minutes.

  Raises:
    UserError: nothing is there.
  """
  if address == 'auto':
    address = os.environ.get('RAY_ADDRESS', '')
  host, _, port = address.rpartition(':')
  if not port.isdecimal() or not host or '/' in host:
    return  # Ray finds it by itself, or says what is wrong
  try:
    socket.create_connection((host.strip('[]'), int(port)), _CONNECT_S).close()
  except (OSError, OverflowError) as error:
    raise errors.UserError(
        f'no Ray cluster is at {address} ({error}): {_START}') from error
