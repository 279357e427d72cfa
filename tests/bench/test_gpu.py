"""The programs for GPUs run to their end here, on shapes that mean nothing."""

import json
import sys

import numpy as np

from bench import attention_gpu
from bench import repeat
from bench import step_speed
from dinojax.core import chips
from dinojax.planning import throughput


def printed(capsys) -> list[dict]:
  return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_attention_is_compared_and_timed(monkeypatch, capsys):
  monkeypatch.setattr(attention_gpu, '_CALLS', 1)
  monkeypatch.setattr(sys, 'argv', [
      'bench', '--interpret', '--tokens=17', '--heads=1x64', '--repeats=1',
      '--total_tokens=17', '--blocks=16x32x4x2'])
  assert attention_gpu.main() == 0
  lines = printed(capsys)
  timed = {(x['form'], x['direction']) for x in lines if 'us' in x}
  assert timed == {(form, direction) for form in (
      'gpu', 'xla', 'gpu 16x32x4x2') for direction in ('forward', 'both')}
  assert lines[-1]['wrong'] == 0


def test_a_wrong_form_is_not_timed(monkeypatch, capsys):
  monkeypatch.setattr(attention_gpu, 'our_forms', lambda _: {
      'xla': lambda qkv, num_heads: qkv[:, :, :64] * num_heads})
  monkeypatch.setattr(sys, 'argv', [
      'bench', '--interpret', '--tokens=17', '--heads=1x64',
      '--total_tokens=17'])
  assert attention_gpu.main() == 1
  assert not any('us' in line for line in printed(capsys))


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
  monkeypatch.setattr(sys, 'argv', ['bench'])
  assert attention_gpu.main() == 2
  assert 'JAX finds no GPU' in capsys.readouterr().err


def test_speed_is_of_the_changed_config_and_of_all_devices(
    monkeypatch, capsys):
  program = throughput.Program(step=None, peak_gib=1.5, compile_s=2.0)
  monkeypatch.setattr(throughput, 'compiled', lambda *_: program)
  monkeypatch.setattr(throughput, 'step_seconds', lambda *_: 0.5)
  monkeypatch.setattr(throughput, 'step_flops', lambda *_: 989.5e12)
  monkeypatch.setattr(
      chips, 'of_device_kind', lambda _: chips.CHIPS['H200'])
  monkeypatch.setattr(sys, 'argv', [
      'bench', '--config=configs/vits.py:smoke', '--attention=xla', '--set',
      'train.batch_size=32', 'model.remat=none'])
  assert step_speed.main() == 0
  line, = printed(capsys)
  assert (line['batch'], line['remat']) == (32, 'none')
  assert line['attention'] == 'xla'
  assert line['images_per_s'] == 64
  # Eight chips work for half a second on what one does in a second.
  assert line['mfu_pct'] == 25


def test_an_attention_that_there_is_not_answers_in_a_sentence(
    monkeypatch, capsys):
  monkeypatch.setattr(sys, 'argv', [
      'bench', '--config=configs/vits.py:smoke', '--attention=flash', '--set',
      'train.batch_size=32'])
  assert step_speed.main() == 2
  assert "'flash' is not known" in capsys.readouterr().err


def test_a_run_that_is_run_again_or_killed_is_compared(
    monkeypatch, capsys, tmp_path):
  runs = []

  def run(argv, *, check, stdout, stderr):
    runs.append(argv)
    print('resumed from step 4', file=stdout, flush=True)

  ends = {'first': 0, 'again': 0, 'compiled_again': 1e-3, 'killed': 0}
  monkeypatch.setattr(repeat.subprocess, 'run', run)
  monkeypatch.setattr(repeat, 'kill', lambda *_: 'step 5/8')
  monkeypatch.setattr(repeat, 'arrays', lambda folder, step: [
      np.float32([2, 4 + 4 * ends[folder.name]]), np.int32([step])])
  monkeypatch.setattr(sys, 'argv', [
      'bench', '--config=configs/vits.py:smoke', '--steps=8',
      f'--folder={tmp_path}/runs', '--set', 'train.deterministic=True'])
  assert repeat.main() == 0
  line, = printed(capsys)
  assert line['again'] == line['killed'] == {'differ': 0, 'largest': 0}
  assert line['compiled_again']['differ'] == 1
  np.testing.assert_allclose(line['compiled_again']['largest'], 1e-3, rtol=1e-3)
  caches = [next(x for x in argv if 'compile_cache' in x) for argv in runs]
  assert len(set(caches)) == 2 and caches[2] not in caches[:2]
  assert all('--config.train.deterministic=True' in argv for argv in runs)
  assert not (tmp_path / 'runs').exists()
