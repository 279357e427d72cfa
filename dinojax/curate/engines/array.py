"""A slice of the tasks, for job arrays: no member knows of another.

Every member is started with the same command and its own number. It does its
share of a phase, and stops where it needs what others have not done yet.
"""

from collections.abc import Sequence

from dinojax.core import errors
from dinojax.curate.engines import in_process
from dinojax.curate.engines import work


class Array:
  """Every so many-th task of a list."""

  def __init__(self, index: int, count: int, num_workers: int):
    """Keeps which tasks are those of this member.

    Raises:
      UserError: a number that no member has.
    """
    if count < 1 or not 0 <= index < count:
      raise errors.UserError(
          f'--index={index} is not in an array of {count}: members are '
          f'--index=0 … {max(count, 1) - 1} of --count={count}')
    self._index, self._count = index, count
    self._inner = in_process.InProcess(num_workers)

  def map(self, tasks: Sequence[work.Task], told: in_process.Told, *,
          whole: bool = False):
    """Does the tasks of this member, see InProcess.map.

    Raises:
      UserError: others have not done theirs.
    """
    mine = [task for task in tasks if task.index % self._count == self._index]
    if mine:
      self._inner.map(mine, told, whole=whole)
    missing = [task for task in tasks
               if task.place.done(task.phase, task.index) is None]
    if missing:
      raise errors.UserError(
          f'this member has done its tasks; {len(missing)} of {len(tasks)} of '
          f'{missing[0].stage.name}/{missing[0].phase} are those of other '
          'members: start the same command again when they are done')
