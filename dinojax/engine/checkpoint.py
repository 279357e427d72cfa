"""Checkpoints of a run: items (see items.py), written behind the training.

A step is complete or absent: orbax writes to a temporary folder and renames
it. An evaluation reads one item alone. A digest of every array is saved beside
them and compared when they are read.
"""

from collections.abc import Mapping
import functools
import gc
import logging
import os
import sys
import time
import warnings

from etils import epath
import jax
from orbax.checkpoint import v1 as ocp

from dinojax.core import errors
from dinojax.core import tree
from dinojax.engine import digests
from dinojax.engine import items as items_lib
from dinojax.parallel import processes

FOLDER = 'checkpoints'
DAMAGED = 'damaged'  # in the workdir: what is no longer a checkpoint
_SHOWN = 3


class Damaged(errors.UserError):
  """A checkpoint is not what was saved."""

  def __init__(self, step: int, text: str):
    super().__init__(text)
    self.step = step


def _not_orbax(record: logging.LogRecord) -> bool:
  """Orbax logs its every move, and each error once a thread; we say it once."""
  return 'orbax' not in record.pathname


class _Best(ocp.training.preservation_policies.PreservationPolicy):
  """Keeps the step that its owner calls the best."""

  def __init__(self, owner: 'Checkpoints'):
    self._owner = owner

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    """True for the best of the checkpoints."""
    del context
    return [checkpoint.step == self._owner.best for checkpoint in checkpoints]


class Checkpoints:
  """The checkpoints of one workdir.

  Attributes:
    best: a step that is kept however old it is; None: there is none.
  """

  def __init__(self, workdir: epath.PathLike, *, keep: int = 2,
               archive_every: int | None = None, writes: bool = False):
    """Opens `workdir`/checkpoints; creates it if `writes`.

    Args:
      workdir: folder of the run; local or gs://.
      keep: number of the latest checkpoints that are kept.
      archive_every: steps whose multiples are kept for ever.
      writes: True for the run itself, which alone may remove what an earlier
        start left half-written; False reads a run that may still go on.

    Raises:
      UserError: the folder is a file.
    """
    absl = logging.getLogger('absl')
    if _not_orbax not in absl.filters:
      absl.addFilter(_not_orbax)
      # After damage, orbax leaves what it had begun.
      warnings.filterwarnings('ignore', message='coroutine .*never awaited')
    policies = ocp.training.preservation_policies
    self.best: int | None = None  # a step that is kept besides
    kept = [policies.LatestN(keep), _Best(self)]
    if archive_every:
      kept.append(policies.EveryNSteps(archive_every))
    # Orbax refuses relative paths, and only when it writes.
    self.workdir = epath.Path(
        workdir if '://' in str(workdir) else os.path.abspath(workdir))
    self.folder = self.workdir / FOLDER
    if self.folder.exists() and not self.folder.is_dir():
      raise errors.UserError(
          f'{self.folder} is a file, where a run has its folder of '
          'checkpoints: move it away, or use another --workdir')
    self._open = functools.partial(
        ocp.training.Checkpointer, self.folder,
        preservation_policy=policies.AnyPreservationPolicy(kept),
        cleanup_tmp_directories=writes)
    # It would make the folder, which a reader must not.
    self._manager = self._open() if writes or self.folder.exists() else None
    self._pending, self._has_failed = None, False

  def latest(self) -> int | None:
    """The last complete step."""
    return max(self.steps(), default=None)

  def steps(self) -> list[int]:
    """All complete steps."""
    checkpoints = self._manager.checkpoints if self._manager else ()
    return sorted(c.step for c in checkpoints)

  def save(self, step: int, items: items_lib.Items,
           info: dict | None = None):
    """Starts writing a state; the previous write must have ended well.

    Args:
      step: number of updates made so far.
      items: parts of the state, see Layout.split.
      info: JSON-able facts beside it (seconds of training, versions).

    Raises:
      UserError: the previous or this write failed (disk full, permission).
    """
    self.wait()
    if step == self.latest():
      return
    if self._manager is None:
      self._manager = self._open()
    try:
      self._pending = self._manager.save_checkpointables_async(
          step, items, force=True, custom_metadata={
              'time': time.time(), 'step': step, 'layout': items_lib.LAYOUT,
              'digests': {name: digests.of_item(item)
                          for name, item in items.items()},
              **(info or {})})
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
    self._has_failed = True
    return errors.UserError(
        f'the checkpoint could not be written to {self.folder}: '
        f'{first_line(error)}; free space or fix the permissions and start '
        f'the same command again: it resumes from step {self.latest() or 0}')

  def restore(self, items: items_lib.Items, step: int) -> items_lib.Items:
    """All items of a state at `step`.

    Args:
      items: shapes and shardings of all items; 'meta' holds the step.
      step: number of the saved step.

    Raises:
      UserError: it is of another architecture; Damaged: not what was saved.
    """
    state = self._load(step, items)
    if int(state['meta']['step']) != step:
      raise self._damage(
          step, f'its state is of step {int(state["meta"]["step"])}')
    # A typed key comes back with the sharding of its two words.
    return jax.tree.map(
        lambda x, want: x if x.sharding == want.sharding
        else jax.device_put(x, want.sharding), state, items)

  def restore_item(self, name: str, shapes: tree.Tree,
                   step: int | None = None) -> tree.Tree:
    """One item alone, such as the EMA for an evaluation.

    Raises:
      UserError: it is of another architecture; Damaged: not what was saved,
        with the earlier steps that are whole.
    """
    step = self.latest() if step is None else step
    items = {name: shapes}
    try:
      return self._load(step, items)[name]
    except Damaged as error:
      reason = str(error)
    raise Damaged(step, f'{reason}. {self.instead(items, step)}')

  def _load(self, step: int, items: items_lib.Items) -> items_lib.Items:
    """Items as they were saved.

    Raises:
      UserError: of another architecture; Damaged: not what was saved. On all
        processes, if on one.
    """
    loaded, reason = self._read(step, items)
    if not processes.agree(not reason):
      raise self._cannot_load(step, items, reason or 'another process says so')
    known = self._digests(step)
    wrong = [f'{name}/{path}' for name in (items if known else ())
             for path in digests.differing(known.get(name, {}), loaded[name])]
    if not processes.agree(not wrong):
      more = f' and {len(wrong) - _SHOWN} more' if len(wrong) > _SHOWN else ''
      raise self._damage(
          step, f'{", ".join(wrong[:_SHOWN]) or "an array"}{more} is not what '
          'was saved: its digest differs')
    return loaded

  def _read(self, step: int, items: items_lib.Items
            ) -> tuple[items_lib.Items | None, str]:
    """Items as this process reads them, or why it cannot."""
    try:
      with _alone():
        return self._manager.load_checkpointables(step, items), ''
    except Exception as error:  # noqa: BLE001 (damaged bytes raise anything)
      return None, first_line(error, 120)

  def _digests(self, step: int) -> Mapping[str, dict]:
    """Digests that were saved; {} of a checkpoint from before there were."""
    info = self.info(step)
    if 'time' not in info:
      raise self._damage(step, 'its description is missing')
    if info.get('step', step) != step:
      raise self._damage(step, f'it was saved as step {info["step"]}')
    if 'digests' not in info and processes.is_first():
      print(f'the checkpoint of step {step} has no digests: it was written by '
            'an earlier version, and is read as it is', flush=True)
    return info.get('digests', {})

  def _cannot_load(self, step: int, items: items_lib.Items,
                   reason: str) -> errors.UserError:
    """Tells another architecture from damage."""
    if not (self.folder / str(step)).exists():
      return errors.UserError(
          f'{self.folder} has no step {step} any more: the run has gone on '
          'meanwhile; start the same command again')
    differs = self._differs(step, items)
    if differs:
      return errors.UserError(
          f'the checkpoint of step {step} in {self.folder} does not fit this '
          f'config ({differs}): use the config it was made with, or another '
          '--workdir')
    broken = [name for name, item in items.items()
              if self._read(step, {name: item})[1]] or list(items)
    _forget()
    return self._damage(
        step, f'{" and ".join(broken)} cannot be read: files are missing, '
        f'empty, cut short or changed ({reason})')

  def _differs(self, step: int, items: items_lib.Items) -> str:
    """How shapes or names differ from those saved; '' if not, or unknown."""
    try:
      known = self.info(step).get('digests', {})
    except Damaged:
      return ''
    for name, item in items.items():
      listed = known.get(name) or self._listed(step, name)
      text = digests.misfit(listed, item) if listed else ''
      if text:
        return f'{name}/{text}'
    return ''

  def _listed(self, step: int, name: str) -> dict[str, list[int]]:
    """Shapes as orbax describes them, of a checkpoint without digests."""
    try:
      saved = self._manager.checkpointables_metadata(step).metadata[name]
    except Exception:  # noqa: BLE001 (damaged: nothing can be said of it)
      return {}
    # It sees the words of a key, and not the key.
    return {path: [0, *x.shape[:-1 if path == 'key' else None]]
            for path, x in tree.items(saved or {}) if hasattr(x, 'shape')}

  def _damage(self, step: int, reason: str) -> Damaged:
    return Damaged(
        step, f'the checkpoint of step {step} in {self.folder} is damaged: '
        f'{reason}')

  def instead(self, items: items_lib.Items, before: int) -> str:
    """Advises what to read instead: an earlier step whose items are whole."""
    whole = [str(step) for step in self.steps()
             if step < before and self._is_whole(step, items)]
    if not whole:
      return 'No earlier one is whole: bring the folder back from a copy'
    return (f'Whole are the earlier steps {", ".join(whole)}: give '
            f'{self.workdir}@{whole[-1]} in its place')

  def _is_whole(self, step: int, items: items_lib.Items) -> bool:
    try:
      self._load(step, items)
    except errors.UserError:
      return False
    return True

  def set_aside(self, step: int) -> epath.Path:
    """Keeps a damaged step under another name, where it is no checkpoint.

    Raises:
      UserError: the disk or the object store does not move folders.
    """
    place = self.workdir / DAMAGED / str(step)
    error = None
    if processes.is_first():
      number = 1
      while place.exists():
        number += 1
        place = place.parent / f'{step}-{number}'
      try:
        place.parent.mkdir(parents=True, exist_ok=True)
        (self.folder / str(step)).rename(place)
      except OSError as raised:
        error = errors.UserError(
            f'{self.folder / str(step)} is damaged and cannot be moved to '
            f'{place} ({raised.strerror or raised}): move it away by hand, and '
            'start the same command again')
    processes.first_raises(error)
    self._manager.close()
    self._manager = self._open()
    return place

  def info(self, step: int | None = None) -> dict:
    """Facts that were saved beside the state at `step`.

    Raises:
      Damaged: it cannot be read.
    """
    step = self.latest() if step is None else step
    try:
      return self._manager.metadata(step).custom_metadata or {}
    except Exception as error:  # noqa: BLE001 (damaged bytes raise anything)
      raise self._damage(step, 'its description cannot be read ('
                         f'{first_line(error, 200)})') from error

  def close(self):
    """Ends pending writes.

    Raises:
      UserError: one failed, and that was not said yet.
    """
    try:
      self.wait()
    finally:
      self._close_manager()

  def _close_manager(self):
    try:
      if self._manager:
        self._manager.close()
    except (OSError, ValueError) as error:  # also of a write before
      if not self._has_failed:
        raise self._failure(error) from error


def _alone():
  """Context of orbax in which each process reads by itself.

  Otherwise a process that finds damage would leave the others at a barrier.
  """
  index = jax.process_index()
  return ocp.Context(multiprocessing_options=ocp.options.MultiprocessingOptions(
      primary_host=index, active_processes={index},
      barrier_sync_key_prefix=f'alone{index}'))


def _forget():
  """Frees what orbax had begun to read, which complains when it goes."""
  hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
  try:
    gc.collect()
  finally:
    sys.unraisablehook = hook


def first_line(error: Exception, width: int = 10**6) -> str:
  """The first line of an error's message, cut between words."""
  line = (str(error).splitlines() or [type(error).__name__])[0]
  return line if len(line) <= width else line[:width].rsplit(' ', 1)[0] + ' …'
