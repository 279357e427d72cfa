"""Rows of metrics for trackers of experiments, behind the training.

Each tracker is fed by a thread of its own from a queue that is never waited
for: one that is slow, cannot be reached or fails loses rows, says so once, and
neither stops nor slows the run. metrics.jsonl has all rows.
"""

from collections.abc import Callable, Mapping, Sequence
import importlib.util
import json
import math
import os
import queue
import secrets
import threading
import time
from typing import Any, Protocol

from etils import epath

from dinojax.core import atomic
from dinojax.core import errors
from dinojax.core import output

KNOWN = ('wandb', 'trackio', 'mlflow')  # also the names of their packages
FILE = 'trackers.json'  # in the workdir: names by which runs go on
_PROJECT = 'dinojax'
_QUEUE_ROWS = 1000
_CLOSE_S = 20.0
_LOOK_S = 0.2
_FILE_LOCK = threading.Lock()


class Tracker(Protocol):
  """A service that shows rows of numbers."""

  def write(self, step: int, row: Mapping[str, float]):
    """Takes the numbers of a step."""

  def close(self, outcome: str):
    """Ends a start of the run: 'finished', 'stopped' or 'failed'."""


def names(text: str) -> list[str]:
  """The trackers of log.trackers, such as 'wandb,mlflow'.

  Raises:
    UserError: one is not known, or its package is not installed.
  """
  chosen = [name.strip() for name in text.split(',') if name.strip()]
  for name in chosen:
    if name not in KNOWN:
      raise errors.UserError(
          f'log.trackers={text}: {name!r} is not known: use any of '
          f'{",".join(KNOWN)}; TensorBoard is log.tensorboard')
    if not importlib.util.find_spec(name):
      raise errors.UserError(
          f'log.trackers={text}: {name} is not installed: '
          f'pip install "dinojax[{name}]"')
  return chosen


class Trackers:
  """The trackers of one start of a run."""

  def __init__(self, chosen: Sequence[str], workdir: epath.Path,
               config: Mapping[str, Any]):
    """Opens trackers by name, each behind a thread.

    Args:
      chosen: see `names`.
      workdir: folder of the run, whose name is the run's.
      config: values that are shown beside the numbers.
    """
    self._behind = [
        _Behind(name, lambda name=name: _OPENERS[name](workdir, config))
        for name in chosen]

  def write(self, step: int, row: Mapping[str, Any]):
    """Hands the finite numbers of a row to all trackers."""
    numbers = {name: float(value) for name, value in row.items()
               if isinstance(value, int | float) and name != 'step'
               and math.isfinite(value)}
    for behind in self._behind:
      behind.write(step, numbers)

  def close(self, outcome: str = 'finished'):
    """Waits a little for what is still in the queues.

    Args:
      outcome: 'finished'; 'stopped', and goes on later; or 'failed'.
    """
    for behind in self._behind:
      behind.end(outcome)
    until = time.monotonic() + _CLOSE_S
    for behind in self._behind:
      behind.join(until)


class _Behind:
  """A tracker that is fed from a queue."""

  def __init__(self, name: str, opener: Callable[[], Tracker]):
    self._name, self._opener = name, opener
    self._rows: queue.Queue = queue.Queue(_QUEUE_ROWS)
    self._lost, self._outcome = False, ''
    self._thread = threading.Thread(
        target=self._run, name=f'tracker {name}', daemon=True)
    self._thread.start()

  def write(self, step: int, row: Mapping[str, float]):
    try:
      self._rows.put_nowait((step, row))
    except queue.Full:
      self._lose(f'is behind by {_QUEUE_ROWS} rows')

  def end(self, outcome: str):
    self._outcome = outcome

  def join(self, until: float):
    self._thread.join(max(until - time.monotonic(), 0.0))
    if self._thread.is_alive():
      self._lose(f'has not taken the last rows within {_CLOSE_S:.0f} s')

  def _next(self) -> tuple | None:
    """The next row; None after the last."""
    while True:
      try:
        return self._rows.get(timeout=_LOOK_S)
      except queue.Empty:
        if self._outcome:
          return None

  def _lose(self, reason: str):
    if not self._lost:
      self._lost = True
      output.warn(f'{self._name} {reason}: it lacks rows of this run, '
                  'metrics.jsonl has all')

  def _run(self):
    try:
      tracker = self._opener()
      while (item := self._next()) is not None:
        tracker.write(*item)
      tracker.close(self._outcome)
    except Exception as error:  # noqa: BLE001 (of any kind: another library's)
      self._lose(f'failed ({type(error).__name__}: {error})')


def _run_id(workdir: epath.Path, name: str, make: Callable[[], str]) -> str:
  """The name by which a tracker knows this run, made at its first start."""
  path = workdir / FILE
  with _FILE_LOCK:
    known = json.loads(path.read_text()) if path.exists() else {}
    if name not in known:
      known[name] = make()
      atomic.write_text(path, json.dumps(known, indent=1))
  return known[name]


class _Wandb:
  """Weights & Biases; its own settings are environment variables, WANDB_…."""

  def __init__(self, workdir: epath.Path, config: Mapping[str, Any]):
    import wandb  # an optional package
    run_id = _run_id(workdir, 'wandb', lambda: secrets.token_hex(4))
    self._run = wandb.init(
        project=os.environ.get('WANDB_PROJECT', _PROJECT), name=workdir.name,
        id=run_id, resume='allow', config=dict(config),
        dir=os.fspath(workdir) if atomic.is_local(workdir) else None,
        settings=wandb.Settings(silent=True))
    # A resumed run writes some steps again, which its own axis refuses.
    self._run.define_metric('*', step_metric='step')

  def write(self, step, row):
    self._run.log({'step': step, **row})

  def close(self, outcome):
    if outcome == 'stopped':
      self._run.mark_preempting()
    self._run.finish(exit_code=int(outcome != 'finished'))


class _Trackio:
  """Trackio, a file of this machine unless TRACKIO_SPACE_ID names a space."""

  def __init__(self, workdir: epath.Path, config: Mapping[str, Any]):
    import trackio  # an optional package
    self._trackio = trackio
    trackio.init(
        project=os.environ.get('TRACKIO_PROJECT', _PROJECT),
        # Folders of the same name are different runs.
        name=_run_id(workdir, 'trackio', lambda: (
            f'{workdir.name}-{secrets.token_hex(3)}')),
        space_id=os.environ.get('TRACKIO_SPACE_ID'),
        config=dict(config), resume='allow', embed=False)

  def write(self, step, row):
    self._trackio.log(dict(row), step=step)

  def close(self, outcome):
    del outcome  # it knows of none
    self._trackio.finish()


class _Mlflow:
  """MLflow: MLFLOW_TRACKING_URI, or a folder in the workdir."""

  def __init__(self, workdir: epath.Path, config: Mapping[str, Any]):
    import mlflow  # an optional package
    from mlflow import entities
    self._metric = entities.Metric
    address = os.environ.get('MLFLOW_TRACKING_URI')
    if not address:
      # Its files, since a database wants packages that mlflow-skinny leaves
      # out; `mlflow migrate-filestore` moves them into one.
      if not atomic.is_local(workdir):
        raise errors.UserError(
            'set MLFLOW_TRACKING_URI: its files cannot be on an object store')
      os.environ.setdefault('MLFLOW_ALLOW_FILE_STORE', 'true')
      address = f'file:{os.fspath(workdir)}/mlruns'
    self._client = mlflow.MlflowClient(address)
    title = os.environ.get('MLFLOW_EXPERIMENT_NAME', _PROJECT)
    experiment = self._client.get_experiment_by_name(title)
    number = (experiment.experiment_id if experiment
              else self._client.create_experiment(title))

    def create() -> str:
      run = self._client.create_run(number, run_name=workdir.name).info.run_id
      self._client.log_batch(run, params=[
          entities.Param(name, str(value)[:500])
          for name, value in config.items()])
      return run

    self._run = _run_id(workdir, 'mlflow', create)
    self._client.update_run(self._run, status='RUNNING')  # again

  def write(self, step, row):
    now = int(1000 * time.time())
    self._client.log_batch(self._run, metrics=[
        # Files of a folder: `loss` cannot stand beside `loss/ibot`.
        self._metric(f'{name}/total' if name.rpartition('/')[2] == 'loss'
                     else name, value, now, step)
        for name, value in row.items()])

  def close(self, outcome):
    self._client.set_terminated(self._run, {
        'finished': 'FINISHED', 'stopped': 'KILLED', 'failed': 'FAILED',
    }[outcome])


_OPENERS: dict[str, Callable[[epath.Path, Mapping[str, Any]], Tracker]] = {
    'wandb': _Wandb, 'trackio': _Trackio, 'mlflow': _Mlflow}
