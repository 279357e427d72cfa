"""Trackers of experiments, offline: each is read again; none holds a run."""

import importlib.util
import json
import math
import threading
import time

from etils import epath
import pytest

from dinojax.core import errors
from dinojax.engine import trackers

ROWS = [(10, {'step': 10, 'loss': 3.0, 'loss/ibot': 1.0, 'knn/trained': 50.0}),
        (20, {'step': 20, 'loss': 2.0, 'bad': math.nan, 'text': 'nan'})]
CONFIG = {'train.batch_size': 8, 'model.dtype': 'float32'}


@pytest.fixture
def workdir(tmp_path, monkeypatch):
  monkeypatch.setenv('WANDB_MODE', 'offline')
  monkeypatch.setenv('WANDB_DIR', str(tmp_path))
  monkeypatch.setenv('TRACKIO_DIR', str(tmp_path / 'trackio'))
  monkeypatch.delenv('MLFLOW_TRACKING_URI', raising=False)
  folder = tmp_path / 'plankton'
  folder.mkdir()
  return epath.Path(folder)


def written(name, workdir, rows=ROWS, outcome='finished'):
  opened = trackers.Trackers([name], workdir, CONFIG)
  for step, row in rows:
    opened.write(step, row)
  opened.close(outcome)


def test_mlflow_has_the_numbers_and_goes_on(workdir, capsys):
  import mlflow
  run_of = lambda: client.get_run(
      json.loads((workdir / 'trackers.json').read_text())['mlflow'])
  written('mlflow', workdir, outcome='stopped')
  client = mlflow.MlflowClient(f'file:{workdir}/mlruns')
  assert run_of().info.status == 'KILLED'
  written('mlflow', workdir, outcome='failed')
  assert run_of().info.status == 'FAILED'
  written('mlflow', workdir, [(20, {'loss': 2.0}), (30, {'loss': 1.0})])
  assert 'mlflow' not in capsys.readouterr().err
  run_id = json.loads((workdir / 'trackers.json').read_text())['mlflow']
  points = {(m.step, m.value) for m in client.get_metric_history(
      run_id, 'loss/total')}
  assert points == {(10, 3.0), (20, 2.0), (30, 1.0)}
  run = client.get_run(run_id)
  assert run.data.params['train.batch_size'] == '8'
  assert run.data.metrics['knn/trained'] == 50.0
  assert 'bad' not in run.data.metrics and run.info.status == 'FINISHED'


def test_trackio_has_the_numbers(workdir, capsys):
  pytest.importorskip('trackio', reason='it wants a Pillow before 13')
  written('trackio', workdir)
  assert 'trackio failed' not in capsys.readouterr().err
  from trackio import sqlite_storage
  name = json.loads((workdir / 'trackers.json').read_text())['trackio']
  assert name.startswith('plankton-')
  logs = sqlite_storage.SQLiteStorage.get_logs('dinojax', name)
  assert [(row['step'], row['loss']) for row in logs] == [(10, 3.0), (20, 2.0)]


def test_wandb_has_the_numbers(workdir, capsys):
  written('wandb', workdir)
  assert 'wandb failed' not in capsys.readouterr().err
  file, = (workdir / 'wandb').glob('offline-run-*/run-*.wandb')
  for _ in range(100):  # another process writes it, on busy cores later
    data = file.read_bytes()
    if b'knn/trained' in data:
      break
    time.sleep(0.3)
  assert b'knn/trained' in data and b'train.batch_size' in data


@pytest.mark.parametrize('outcome', ['finished', 'stopped', 'failed'])
def test_wandb_knows_how_a_start_ended(workdir, outcome, monkeypatch):
  import wandb
  ended = []
  monkeypatch.setattr(
      wandb.sdk.wandb_run.Run, 'finish',
      lambda self, exit_code: ended.append(exit_code))
  monkeypatch.setattr(
      wandb.sdk.wandb_run.Run, 'mark_preempting',
      lambda self: ended.append('goes on later'))
  tracker = trackers._Wandb(workdir, CONFIG)
  tracker.close(outcome)
  assert ended == {'finished': [0], 'failed': [1],
                   'stopped': ['goes on later', 1]}[outcome]


@pytest.mark.parametrize('text, message', [
    ('wandb,tensorboard', "'tensorboard' is not known: use any of wandb"),
    ('neptune', "'neptune' is not known")])
def test_a_tracker_that_is_not_known_is_a_sentence(text, message):
  with pytest.raises(errors.UserError, match=message):
    trackers.names(text)


def test_a_tracker_that_is_not_installed_is_a_sentence(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(errors.UserError, match=r'pip install "dinojax\[wandb\]"'):
    trackers.names('wandb')
  assert trackers.names('') == []


class Broken:
  def __init__(self, at):
    self.at = at
    if at == 'open':
      raise RuntimeError('no network')

  def write(self, step, row):
    if self.at == 'write':
      raise ValueError('refused')

  def close(self, outcome):
    if self.at == 'close':
      raise OSError('gone')


@pytest.mark.parametrize('at', ['open', 'write', 'close'])
def test_a_tracker_that_fails_says_so_once_and_stops_nothing(
    at, workdir, monkeypatch, capsys):
  monkeypatch.setitem(trackers._OPENERS, 'wandb', lambda *_: Broken(at))
  written('wandb', workdir, ROWS * 3)
  text = capsys.readouterr().err
  assert text.count('wandb failed') == 1 and 'metrics.jsonl has all' in text


def test_a_tracker_that_hangs_is_not_waited_for(workdir, monkeypatch, capsys):
  release = threading.Event()

  class Hanging(Broken):
    def write(self, step, row):
      release.wait()

  monkeypatch.setitem(trackers._OPENERS, 'wandb', lambda *_: Hanging(''))
  monkeypatch.setattr(trackers, '_CLOSE_S', 0.2)
  monkeypatch.setattr(trackers, '_QUEUE_ROWS', 5)
  opened = trackers.Trackers(['wandb'], workdir, CONFIG)
  began = time.monotonic()
  for step in range(50):
    opened.write(step, {'loss': 1.0})
  opened.close()
  assert time.monotonic() - began < 20  # else it would be for ever
  text = capsys.readouterr().err
  assert text.count('it lacks rows') == 1 and 'behind by 5 rows' in text
  release.set()
