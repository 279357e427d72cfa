"""Tasks in processes of this machine.

A process that dies (no memory, a decoder that crashes) takes the others of its
pool along. The tasks that were in work are then tried again, each alone, so
that the guilty one is known and the others are done.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
import itertools
import multiprocessing
import os
import signal
import threading

from dinojax.core import errors
from dinojax.curate.engines import work

_TRIES = 3  # of a task that ends its process, or meets a disk that is away
_AHEAD = 3  # tasks a worker that are handed out

Told = Callable[[work.Task, work.Counts], None]


class InProcess:
  """Runs tasks in worker processes that are spawned, or in this one."""

  def __init__(self, num_workers: int):
    """Keeps the number of processes; 0 and 1: tasks are done in this one."""
    self._num_workers = num_workers

  def map(self, tasks: Sequence[work.Task], told: Told, *,
          whole: bool = False):
    """Does tasks in any order; `told` hears of each that is done.

    Args:
      tasks: tasks of one phase.
      told: called with each.
      whole: True where a task uses all cores and devices: one after the
        other, in this process.

    Raises:
      UserError: of a task, or tasks that end their process again and again;
        the others are done then.
    """
    if whole or self._num_workers <= 1 or len(tasks) == 1:
      for task in tasks:
        told(task, patient(task))
      return
    waiting, dead = iter(tasks), []
    while suspects := self._pool(waiting, told):
      dead += [task for task in suspects if not self._alone(task, told)]
    if dead:
      raise errors.UserError(
          f'{len(dead)} tasks end their process each time, the first is '
          f'{dead[0].title}: there is too little memory for so many workers, '
          'or a library crashes on a file; all others are done. Try '
          '--workers=1, which shows the error where it happens')

  def _pool(self, waiting: Iterator[work.Task], told: Told
            ) -> list[work.Task]:
    """Does tasks until none is left or a process dies; those in work then."""
    with _workers(self._num_workers) as pool:
      at_work: dict[futures.Future, work.Task] = {}
      try:
        while True:
          room = _AHEAD * self._num_workers - len(at_work)
          for task in itertools.islice(waiting, room):
            at_work[pool.submit(patient, task)] = task
          if not at_work:
            return []
          for future in futures.wait(
              at_work, return_when=futures.FIRST_COMPLETED).done:
            counts = future.result()
            told(at_work.pop(future), counts)
      except futures.process.BrokenProcessPool:
        return list(at_work.values())
      except BaseException:
        pool.shutdown(wait=True, cancel_futures=True)
        raise

  def _alone(self, task: work.Task, told: Told) -> bool:
    """Does one task in a process of its own; False: it ended it each time."""
    for _ in range(_TRIES - 1):
      try:
        with _workers(1) as pool:
          counts = pool.submit(patient, task).result()
        told(task, counts)
        return True
      except futures.process.BrokenProcessPool:
        continue
    return False


def patient(task: work.Task) -> work.Counts:
  """Does a task; a disk that is away for a moment is asked again."""
  for _ in range(_TRIES - 1):
    try:
      return work.do(task)
    except OSError:
      continue
  try:
    return work.do(task)
  except OSError as error:
    raise errors.UserError(
        f'{task.title}: {error.filename or task.place.folder}: '
        f'{error.strerror or error}, {_TRIES} times; start the same command '
        'again when that is mended') from error


def _workers(count: int) -> futures.ProcessPoolExecutor:
  return futures.ProcessPoolExecutor(
      count, multiprocessing.get_context('spawn'), _begin)


def _begin():
  """Leaves Ctrl-C to the main process, and ends when that ends."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)

  def watch():
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()
