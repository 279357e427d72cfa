"""`dinojax evaluate` of segmentation and depth: processes, and stops."""

import os
import signal
import socket

import pytest

from dinojax import commands
from tests import forked
from tests.evals import drawn
from tests.runs import finished

CACHE = f'--compile_cache={forked.CACHE}'
SIZES = ((82, 60), (60, 74), (104, 60))


def words(root, steps=12):
  for kind in ('masks', 'depth'):
    for part, count, seed in (('train', 24, 0), ('test', 5, 1)):
      drawn.save(root / kind / part, kind, count, SIZES, seed)
  section = lambda name, kind, **values: [
      f'--config.{name}.{key}={value}' for key, value in (values | {
          'train': f'{root}/{kind}/train', 'test': f'{root}/{kind}/test',
          'steps': steps, 'warmup_steps': 3, 'batch_size': 6,
          'pictures': 2}).items()]
  return ['--protocols=segmentation,depth', CACHE, *section(
      'segmentation', 'masks', short_px=48, learning_rates='(0.003,0.03)',
      weight_decays='(0.001,)'), *section(
          'depth', 'depth', crop='(48,64)', learning_rates='(0.01,)',
          max_depth=4.0)]


def start(arguments, **env):
  return forked.Command(arguments, module='dinojax.commands.evaluate',
                        JAX_PLATFORMS='cpu', **env)


@pytest.mark.slow  # it adds the command, over three quarters of a minute
def test_sets_of_flags_reach_the_table(tmp_path):
  run, _ = finished.run()
  assert commands.run('evaluate', [
      f'--model={run}', f'--out={tmp_path}/out', *words(tmp_path, 2)]) == 0
  table = (tmp_path / 'out' / 'results.md').read_text()
  for metric in ('mIoU', 'mAcc', 'aAcc', 'rmse', 'a1'):
    assert f'| {metric} |' in table
  names = sorted(os.listdir(tmp_path / 'out' / 'pictures'))
  assert len(names) == 4 and all(name.endswith('.png') for name in names)


@pytest.mark.slow  # it adds the command to what tests/evals/sets refuses
def test_a_wrong_set_is_said_before_work(tmp_path, capsys):
  run, _ = finished.run()
  code = commands.run('evaluate', [
      f'--model={run}', f'--out={tmp_path}/out', CACHE,
      '--protocols=segmentation', '--config.segmentation.train=ade20k:nowhere',
      '--config.segmentation.test=ade20k:nowhere'])
  assert code == 2
  assert 'nowhere/images/training is missing' in capsys.readouterr().err


@pytest.mark.slow  # it adds two processes, and real signals
def test_two_processes_and_a_stop_end_in_the_same_table(tmp_path):
  run, _ = finished.run()
  given = [f'--model={run}', *words(tmp_path, 60)]
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  both = [start(
      [*given, f'--out={tmp_path}/two'],
      JAX_COORDINATOR_ADDRESS=f'localhost:{port}', JAX_NUM_PROCESSES='2',
      JAX_PROCESS_ID=str(i), XLA_FLAGS=os.environ['XLA_FLAGS']
      + ' --xla_force_host_platform_device_count=4') for i in range(2)]
  told = [process.communicate(timeout=400)[0] for process in both]
  assert [process.wait() for process in both] == [0, 0], told
  first = start([*given, f'--out={tmp_path}/one'])
  for line in first.stdout:
    if line.startswith('step 24/60'):
      first.send_signal(signal.SIGKILL)
  assert first.wait() == -9
  again = start([*given, f'--out={tmp_path}/one'])
  assert 'resumed from step' in again.communicate()[0] and again.wait() == 0
  tables = [(tmp_path / name / 'results.md').read_text()
            for name in ('two', 'one')]
  assert tables[0] == tables[1] and tables[0].count('| segmentation |') == 3
  pictures = [sorted(os.listdir(tmp_path / name / 'pictures'))
              for name in ('two', 'one')]
  assert pictures[0] == pictures[1] and len(pictures[0]) == 4
