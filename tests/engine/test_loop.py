"""The loop with a Trainable that is nothing like DINO."""

import json
import os
import signal

import jax
import numpy as np
import pytest

from dinojax.core import errors
from dinojax.engine import checkpoint
from dinojax.engine import report
from dinojax.parallel import mesh as mesh_lib
from tests import forked
from tests.engine import heads


def rows(folder):
  """Rows of metrics without times."""
  return [{k: v for k, v in json.loads(line).items()
           if not k.startswith(('time', 'mem'))}
          for line in (folder / 'metrics.jsonl').read_text().splitlines()]


def digests(folder, step=heads.STEPS):
  return checkpoint.Checkpoints(folder).info(step)['digests']


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A run that nothing stopped, and its end."""
  folder = tmp_path_factory.mktemp('whole')
  return folder, heads.run(folder, evaluate=lambda step, networks, stop: {
      f'{name}/norm': float(np.linalg.norm(params['w'][0]))
      for name, params in networks.items()})


def test_all_heads_but_the_diverging_one_learn(whole, capsys):
  folder, result = whole
  log_rows = rows(folder)
  steps = [row for row in log_rows if 'loss' in row]
  assert [row['step'] for row in steps] == list(range(1, heads.STEPS + 1))
  assert steps[-1]['loss'] < steps[0]['loss']
  # Of two widths one rate each, from the step after its first on.
  assert steps[0]['diverged'] == 0 and steps[-1]['diverged'] == 2
  assert steps[-1]['nonfinite_in_row'] == 0
  assert steps[-1]['bad_images'] == heads.STEPS  # one each
  for head in result.state['heads'].values():
    skipped = np.asarray(head['counters']['skipped'])
    assert skipped[0] == skipped[2] == 0 < skipped[1]
    assert np.isfinite(head['params']['w']).all()
  assert set(result.evaluation) == {'narrow/norm', 'wide/norm'}


def test_what_is_frozen_is_never_saved_and_what_grows_is(whole):
  folder, result = whole
  assert 'frozen' in result.state
  first, last = digests(folder, 2), digests(folder)
  names = {'meta', *(f'{part}.{name}' for name in heads.WIDTHS
                     for part in ('params', 'opt', 'stats', 'meta'))}
  assert set(first) == names and set(last) == names | {'average'}


def test_the_log_tells_of_growth_and_warnings(tmp_path, capsys):
  heads.run(tmp_path, steps=4)
  text = capsys.readouterr().err
  assert text.count(f'step {heads.GROWS}: averaging begins') == 1
  assert 'warning: step 2: a second row' in text
  assert 'compiling for 1 × cpu: plain' in text
  assert 'compiling for 1 × cpu: averaged' in text


@pytest.fixture
def outcomes(monkeypatch):
  """What trackers are told of the end of each start."""
  told = []
  monkeypatch.setattr(report.trackers_lib.Trackers, 'close',
                      lambda self, outcome: told.append(outcome))
  return told


@pytest.mark.parametrize('number', [
    3, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 5))])
def test_stopped_at_a_step_it_ends_in_the_same_bits(
    whole, tmp_path, number, outcomes):
  def feed(step):
    for batch in heads.batches(step):
      if step == number:
        os.kill(os.getpid(), signal.SIGTERM)
      step += 1
      yield batch

  stopped = heads.run(tmp_path, feed=feed)
  assert not stopped.finished and stopped.step == number + 1
  assert heads.run(tmp_path).finished
  assert heads.run(tmp_path).finished  # nothing is left to do
  assert outcomes == ['stopped', 'finished', 'finished']
  assert digests(tmp_path) == digests(whole[0])
  assert rows(tmp_path) == [row for row in rows(whole[0]) if 'loss' in row]


def test_killed_it_ends_in_the_same_bits(whole, tmp_path):
  process = forked.Command([str(tmp_path)], module='tests.engine.heads',
                           JAX_PLATFORMS='cpu')
  place = tmp_path / 'checkpoints' / '4'
  while process.poll() is None and not place.is_dir():
    process.stdout.readline()
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert heads.run(tmp_path).finished
  assert digests(tmp_path) == digests(whole[0])


@pytest.mark.slow  # probes/test_fit.py has a mesh, of the same loop
def test_on_a_mesh_it_learns_the_same(whole, tmp_path):
  mesh = mesh_lib.make(2, 4)
  state = heads.run(tmp_path, mesh).state
  learning = [i for i, rate in enumerate(heads.RATES) if rate < 1]
  for name, want in whole[1].state['heads'].items():
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a[learning], b[learning], rtol=2e-5, atol=1e-6),
        jax.device_get(state['heads'][name]), jax.device_get(want))


def test_it_stops_when_all_have_diverged(tmp_path, monkeypatch, outcomes):
  monkeypatch.setattr(heads, 'RATES', (3e38, 3e38))
  with pytest.raises(errors.UserError, match='loss is not finite.*3 in a row'):
    heads.run(tmp_path)
  assert outcomes == ['failed']


@pytest.mark.parametrize('stops_at', [
    4, pytest.param(heads.STEPS, marks=pytest.mark.slow)])
def test_an_evaluation_that_a_stop_drops_is_made_by_the_next_start(
    tmp_path, stops_at, monkeypatch, capsys):
  asked = []

  def evaluate(step, networks, stop):
    asked.append(step)
    if step == stops_at and asked.count(step) == 1:
      os.kill(os.getpid(), signal.SIGTERM)
      assert stop()
      raise errors.Stopped
    return {'score': float(step)}

  options = dict(evaluate=evaluate, evaluation_steps=4)
  first = heads.run(tmp_path, **options)
  assert 'measuring at step 4 …' in capsys.readouterr().err
  assert not first.finished and first.step == stops_at and first.stopped
  second = heads.run(tmp_path, **options)
  assert second.finished and second.evaluation == {'score': heads.STEPS}
  scores = {row['step']: row['score'] for row in rows(tmp_path)
            if 'score' in row}
  assert scores == {4: 4.0, 8: 8.0} and asked.count(stops_at) == 2
  text = (tmp_path / 'events.jsonl').read_text()
  assert f'step {stops_at} is evaluated by the next start' in text
