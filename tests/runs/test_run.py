"""The program as a user runs it: resume, errors, what it leaves behind."""

import json
import os
import pathlib
import random
import shlex
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from tests import forked

ROOT = pathlib.Path(__file__).parents[2]
FLAGS = [f'--config={ROOT}/configs/demo.py:smoke',
         f'--compile_cache={forked.CACHE}']


def start(workdir, *flags, cwd=ROOT):
  return forked.Command(
      [*FLAGS, f'--workdir={workdir}', *flags], cwd=cwd, JAX_PLATFORMS='cpu')


def run(workdir, *flags, cwd=ROOT):
  process = start(workdir, *flags, cwd=cwd)
  text, _ = process.communicate(timeout=300)
  return process.returncode, text


def state(workdir):
  """The last checkpoint, whole."""
  from orbax.checkpoint import v1 as ocp
  with ocp.training.Checkpointer(pathlib.Path(workdir) / 'checkpoints') as c:
    step = c.latest.step
    parts = c.load_checkpointables(step)
  return step, jax.tree.map(
      lambda x: np.asarray(jax.random.key_data(x)) if jax.dtypes.issubdtype(
          x.dtype, jax.dtypes.prng_key) else np.asarray(x), parts)


def rows(workdir):
  text = (pathlib.Path(workdir) / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


LONG = ('--config.train.total_steps=40', '--config.checkpoint.every_steps=4',
        '--config.data.num_threads=2')


@pytest.mark.slow  # make test kills at every write, reliability/test_runs.py
def test_killed_three_times_ends_in_the_same_weights(tmp_path):
  code, text = run(tmp_path / 'whole', *LONG)
  assert code == 0, text
  clock = random.Random(0)
  for _ in range(3):
    process = start(tmp_path / 'killed', *LONG)
    # The save of step 8 waits for that of step 4, which is then complete.
    began, last = 0, clock.randint(9, 14)
    while process.poll() is None and began < last:
      line = process.stdout.readline()
      began += line.startswith('step')
    process.send_signal(signal.SIGKILL)
    process.wait()
  code, text = run(tmp_path / 'killed', *LONG)
  assert code == 0, text
  assert 'resumed from step' in text
  (step, got), (end, want) = state(tmp_path / 'killed'), state(
      tmp_path / 'whole')
  assert step == end == 40
  jax.tree.map(np.testing.assert_array_equal, got, want)
  # The log reads as if the run had never stopped.
  losses = lambda d: [(r['step'], r['loss']) for r in rows(d) if 'loss' in r]
  assert losses(tmp_path / 'killed') == losses(tmp_path / 'whole')


@pytest.mark.slow  # make test stops the run that is finished below
@pytest.mark.parametrize('code', [0, 143])
def test_sigterm_saves_and_exits_as_asked(tmp_path, code):
  process = start(tmp_path, '--config.train.total_steps=100000',
                  '--config.crops.num_local=0',
                  *([f'--stopped_exit_code={code}'] if code else []))
  for line in process.stdout:
    if line.startswith('step 3/'):
      process.send_signal(signal.SIGTERM)
      break
  text = process.communicate(timeout=120)[0]
  assert process.returncode == code, text
  assert 'stopped by a signal: saved step' in text
  assert state(tmp_path)[0] >= 3


SEEN = ('--config.log.profile_start=8', '--config.log.profile_steps=2',
        '--config.log.tensorboard=True', '--config.log.every_steps=1',
        '--config.train.total_steps=20', '--config.knn.every_steps=10',
        '--config.checkpoint.every_steps=10', '--config.crops.num_local=0',
        '--compile_cache=cache')


def programs(folder):
  """Names of the compiled programs that are kept there."""
  return {path.name for path in (folder / 'cache').glob('*-cache')}


@pytest.fixture(scope='module')
def stopped(tmp_path_factory):
  """A run, started as users do in a folder of theirs, and its SIGTERM.

  Returns:
    Exit code, output, folder, programs that are kept.
  """
  folder = tmp_path_factory.mktemp('finished')
  process = subprocess.Popen(
      [sys.executable, '-m', 'dinojax.main', *FLAGS, '--workdir=here', *SEEN,
       '--stopped_exit_code=143'], cwd=folder, text=True,
      stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | {
          'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)})
  lines = []
  for line in process.stdout:
    lines.append(line)
    if line.startswith('step 2/'):
      process.send_signal(signal.SIGTERM)
      break
  text = ''.join(lines) + process.communicate(timeout=300)[0]
  return process.returncode, text, folder, programs(folder)


def test_a_stopped_run_has_saved(stopped):
  code, text, folder, _ = stopped
  assert code == 143, text
  assert 'stopped by a signal: saved step' in text
  assert not (folder / 'here' / 'results.json').exists()
  assert 2 <= state(folder / 'here')[0] < 20


@pytest.fixture(scope='module')
def finished(stopped):
  """Output of the same run to its end, and its workdir."""
  _, first, folder, _ = stopped
  code, text = run('here', *SEEN, cwd=folder)
  assert code == 0 and 'resumed from step' in text, text
  return first + text, folder / 'here'


@pytest.mark.slow  # report/test_page.py and test_exports.py end a run too
def test_a_finished_run_leaves_its_results(finished):
  text, workdir = finished
  last = text.splitlines()[-1]
  assert 'finished 20 steps in ' in last
  command = shlex.split(last.split('`')[1])
  assert command[:2] == ['dinojax', 'pca']
  code, output = forked.run(command[2:], cwd=workdir.parent,
                            module='dinojax.commands.pca', JAX_PLATFORMS='cpu')
  assert code == 0 and (workdir / 'pca.png').exists(), output
  results = json.loads((workdir / 'results.json').read_text())
  assert set(results['knn_top1_pct']) == {
      'raw_pixels', 'untrained', 'trained'}
  assert results['seconds'] > 0
  last = [r for r in rows(workdir) if 'loss' in r][-1]
  for name in ('loss/dino_global', 'loss/ibot', 'loss/koleo', 'weighted/koleo',
               'grad_norm/backbone', 'schedule/lr', 'teacher/entropy',
               'time/images_per_s', 'time/data_wait_pct',
               'mem/process_peak_gib'):
    assert name in last
  waits = [r['time/data_wait_pct'] for r in rows(workdir) if 'loss' in r]
  assert len(waits) == 20 and 0 <= min(waits) <= max(waits) <= 100
  began = time.monotonic()
  code, text = run('here', *SEEN, cwd=workdir.parent)  # nothing left to do
  assert code == 0 and 'resumed from step 20' in text
  assert time.monotonic() - began < 60
  check_what_was_trained(workdir)


def check_what_was_trained(workdir):
  """The EMA teacher is a model, and goes where weights go."""
  import dinojax
  from dinojax.features import backbone as backbone_lib
  from dinojax.interop import reading
  from dinojax.interop import writing
  from dinojax.runs import models as models_lib
  weights = models_lib.read(str(workdir))
  teacher = state(workdir)[1]['ema.student']
  jax.tree.map(np.testing.assert_array_equal, weights.params,
               teacher['backbone'])
  assert set(weights.heads) == teacher.keys() - {'backbone'}
  images = np.random.default_rng(0).normal(
      size=(2, *[2 * weights.config.image_px] * 2, 3)).astype(np.float32)
  want = dinojax.load(str(workdir))(images)
  assert np.isfinite(want.cls).all() and want.cls.shape == (
      2, weights.config.embed_dim)
  writing.write(str(workdir / 'meta'), weights, 'meta')
  again = reading.read(str(workdir / 'meta' / 'backbone.safetensors'),
                       num_heads=weights.config.num_heads)
  np.testing.assert_allclose(
      backbone_lib.Backbone.of(again)(images).cls, want.cls, atol=1e-5)


@pytest.mark.slow
def test_board_and_profile_are_written(finished):
  text, workdir = finished
  assert 'profile written to' in text
  trace, = (workdir / 'profile').rglob('*.xplane.pb')
  planes = jax.profiler.ProfileData.from_file(str(trace)).planes
  profile_events = [event for plane in planes for line in plane.lines
                    for event in line.events]
  assert {dict(event.stats).get('step_num') for event in profile_events
          if event.name == 'train'} == {8, 9}
  # The evaluation after step 9 would be most of it.
  names = {event.name.split()[-1] for event in profile_events if event.name}
  assert 'next_batch' in names and 'evaluate' not in names
  events = b''.join(  # of both starts
      path.read_bytes() for path in (workdir / 'tensorboard').iterdir())
  for name in (b'loss/dino_global', b'knn/trained', b'time/images_per_s'):
    assert name in events


@pytest.mark.slow
def test_a_second_start_compiles_nothing(stopped, finished):
  """One that took just under a second at first may still be kept later."""
  *_, folder, kept = stopped
  named = {name.split('-')[0] for name in kept}
  assert 'jit_step' in named
  assert not {name for name in programs(folder) - kept
              if name.split('-')[0] in named}


@pytest.mark.slow
@pytest.mark.parametrize('warmup', [0, 4])
def test_the_way_on_after_gradients_that_are_not_finite(tmp_path, warmup):
  """What the message says is done word by word; without and with a start."""
  flags = ('--config.schedules.lr.peak=1e30', '--config.checkpoint.keep=20',
           f'--config.schedules.lr.warmup_steps={warmup}',
           '--config.schedules.lr.start=0', '--config.train.total_steps=12',
           '--config.checkpoint.every_steps=1', '--config.log.every_steps=1')
  code, text = run(tmp_path / 'run', *flags)
  assert_error(code, text, 'is not finite', 'the same command, but with'
               if warmup else 'begin anew and more gently')
  advice = [line.strip() for line in text.splitlines()
            if line.startswith('  --')]
  assert any('init.source=' in flag for flag in advice) == bool(warmup), text
  code, text = run(tmp_path / 'run', *flags, *advice)
  assert code == 0, text
  assert rows(f'{tmp_path}/run-again')[-1]['step'] == 12


def assert_error(code, text, *parts):
  assert code == 2, text
  assert 'Traceback' not in text
  for part in parts:
    assert part in text, text


@pytest.mark.parametrize('flags, parts', [
    (('--config.crops.global_px=30',), ('crops.global_px=30', '32')),
    (('--config.train.batch_size=6', '--config.train.group_images=4'),
     ('train.batch_size=6', 'set it to 4')),
    (('--config.gram.loss_weight=1.0',), ('gram.teacher=ema',)),
    (('--config.data.train=folder:/nowhere',), ('/nowhere', 'check the path')),
    (('--config.data.train=webdataset:x',), ('webdataset:x', 'folder:DIR')),
])
def test_wrong_values_answer_in_a_sentence(tmp_path, flags, parts):
  assert_error(*run(tmp_path / 'run', *flags), *parts)


def test_folders_without_images_answer_in_a_sentence(tmp_path):
  empty, other = tmp_path / 'empty', tmp_path / 'other'
  empty.mkdir()
  other.mkdir()
  (other / 'notes.txt').write_text('no image')
  assert_error(*run(tmp_path / 'a', f'--config.data.train=folder:{empty}'),
               'is empty')
  assert_error(*run(tmp_path / 'b', f'--config.data.train=folder:{other}'),
               'no images', '1 × .txt')


def test_a_workdir_of_another_config_shows_the_difference(stopped):
  code, text = run(stopped[2] / 'here', *SEEN,
                   '--config.schedules.lr.peak=0.5',
                   '--config.log.every_steps=3')
  assert_error(code, text, 'schedules.lr.peak', '0.5')
  assert 'log.every_steps' not in text  # a free field may change
