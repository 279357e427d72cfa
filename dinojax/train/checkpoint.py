"""Checkpoints of a run: named parts, written behind the training.

A step is complete or absent: orbax writes to a temporary folder and renames
it. Parts are student, teacher, opt, meta and what else a state holds, so that
an evaluation reads one of them alone.
"""

from collections.abc import Iterable
import logging
import os
import time

from etils import epath
import jax
from orbax.checkpoint import v1 as ocp

from dinojax.core import errors
from dinojax.train import state as state_lib

FOLDER = 'checkpoints'


def _not_orbax(record: logging.LogRecord) -> bool:
  """Orbax logs its every move, and each error once a thread; we say it once."""
  return 'orbax' not in record.pathname


class Checkpoints:
  """The checkpoints of one workdir."""

  def __init__(self, workdir: epath.PathLike, *, keep: int = 2,
               archive_every: int | None = None, writes: bool = False):
    """Opens or creates `workdir`/checkpoints.

    Args:
      workdir: of the run; local or gs://.
      keep: how many of the latest are kept.
      archive_every: steps whose multiples are kept for ever.
      writes: whether it is the run itself, which alone may remove what an
        earlier start left half-written; another reads a run that goes on.
    """
    absl = logging.getLogger('absl')
    if _not_orbax not in absl.filters:
      absl.addFilter(_not_orbax)
    policies = ocp.training.preservation_policies
    kept = [policies.LatestN(keep)]
    if archive_every:
      kept.append(policies.EveryNSteps(archive_every))
    # Orbax refuses relative paths, and only when it writes.
    self.folder = epath.Path(
        workdir if '://' in str(workdir) else os.path.abspath(workdir)
    ) / FOLDER
    self._manager = ocp.training.Checkpointer(
        self.folder, preservation_policy=policies.AnyPreservationPolicy(kept),
        cleanup_tmp_directories=writes)
    self._pending = None

  def latest(self) -> int | None:
    """The last complete step."""
    found = self._manager.latest
    return None if found is None else found.step

  def save(self, step: int, state: dict, info: dict | None = None):
    """Starts writing the state; the previous write must have ended well.

    Args:
      step: updates made so far.
      state: see state.init.
      info: JSON-able facts beside it (seconds of training, versions).

    Raises:
      UserError: the previous or this write failed (disk full, permission).
    """
    self.wait()
    if step == self.latest():
      return
    try:
      self._pending = self._manager.save_checkpointables_async(
          step, state_lib.split(state), force=True,
          custom_metadata={'time': time.time(), **(info or {})})
    except (OSError, ValueError) as error:
      raise self._failure(error) from error

  def wait(self):
    """Waits until the last `save` is complete on disk."""
    pending, self._pending = self._pending, None
    if pending is None:
      return
    try:
      pending.result()
    except (OSError, ValueError) as error:
      raise self._failure(error) from error

  def _failure(self, error: Exception) -> errors.UserError:
    return errors.UserError(
        f'the checkpoint could not be written to {self.folder}: '
        f'{first_line(error)}; free space or fix the permissions and start '
        f'the same command again: it resumes from step {self.latest() or 0}')

  def restore(self, abstract: dict, step: int | None = None) -> dict:
    """The state at `step`, the latest by default, on the given shardings.

    A frozen teacher is not part of it.
    """
    parts = state_lib.split(abstract)
    state, abstract = (
        state_lib.join(x) for x in (self._load(step, parts), parts))
    # A typed key comes back with the sharding of its two words.
    return jax.tree.map(
        lambda x, want: x if x.sharding == want.sharding
        else jax.device_put(x, want.sharding), state, abstract)

  def restore_part(self, name: str, abstract: dict,
                   step: int | None = None) -> dict:
    """One part alone: `state.ema_part` for an evaluation."""
    return self._load(step, {name: abstract})[name]

  def _load(self, step: int | None, parts: dict) -> dict:
    try:
      return self._manager.load_checkpointables(step, parts)
    except (ValueError, KeyError, OSError) as error:
      raise errors.UserError(
          f'the checkpoint of step {step or self.latest()} in {self.folder} '
          f'does not fit this config ({first_line(error)[:200]}): use the '
          'config it was made with, or another --workdir') from error

  def info(self, step: int | None = None) -> dict:
    """What was saved beside the state at `step`."""
    return self._manager.metadata(step).custom_metadata or {}

  def steps(self) -> Iterable[int]:
    """All complete steps."""
    return sorted(c.step for c in self._manager.checkpoints)

  def close(self):
    """Ends pending writes."""
    self.wait()
    self._manager.close()


def first_line(error: Exception) -> str:
  """The first line of an error's message."""
  return (str(error).splitlines() or [type(error).__name__])[0]


def abstract_part(state: dict, name: str) -> dict:
  """Shapes and shardings of one part of an (abstract or real) state."""
  return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      state_lib.split(state)[name])
