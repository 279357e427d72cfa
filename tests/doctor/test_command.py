"""`dinojax doctor` as it is run: all of it, and what ends it early."""

import json
import os
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.configs import demo
from dinojax.data import sources
from dinojax.doctor import report
from dinojax.parallel import hardware
from dinojax.parallel import mesh as mesh_lib
from dinojax.planning import throughput
from dinojax.runs import batches as batches_lib
from dinojax.runs import models as models_lib
from dinojax.runs import workdir as workdir_lib
from dinojax.train import settings as settings_lib
from tests import forked
from tests.doctor import test_doctor

ROOT = pathlib.Path(__file__).parents[2]


def run(*flags):
  return forked.run(
      [*flags], module='dinojax.commands.doctor', JAX_PLATFORMS='cpu')


@pytest.mark.slow  # make test measures each part
def test_a_config_is_measured_from_end_to_end(tmp_path):
  out = tmp_path / 'out.json'
  code, text = run(
      f'--config={ROOT}/configs/demo.py:smoke', f'--workdir={tmp_path}/run',
      f'--json={out}', f'--compile_cache={ROOT}/.jax_cache', '--steps=1',
      '--input_s=0.2', '--config.crops.num_local=0',
      '--config.ibot.loss_weight=0')
  assert code == 0, text
  made = json.loads(out.read_text())
  assert list(made['parts']) == [
      'machine', 'versions', 'config', 'data', 'workdir', 'speed']
  speed = {f['name']: f for f in made['parts']['speed']}
  assert list(speed) == [
      'matrix products', 'memory', 'step', 'training', 'input', 'balance']
  assert 'images/s' in speed['step']['text']
  assert made['warnings'] >= 2  # groups of 4, crops of 2 × 2 patches
  assert text.splitlines()[-1] == f'0 errors, {made["warnings"]} warnings'
  assert 'compiling the step' in text
  assert not (tmp_path / 'run').exists()


def test_a_workdir_of_another_run(tmp_path):
  old = demo.get_config('smoke')
  workdir_lib.write_config(workdir_lib.open_run(
      str(tmp_path), settings_lib.read(old)), old)

  def look(**changes):
    config = demo.get_config('smoke')
    config.update(changes)
    return report._workdir(
        str(tmp_path), settings_lib.read(config), None, None)

  assert test_doctor.levels(look()) == {}
  workdir_findings = look(seed=3)
  assert test_doctor.levels(workdir_findings) == {'workdir': 'error'}
  assert 'seed: 0 → 3' in workdir_findings[0].text
  (tmp_path / models_lib.CONFIG).write_text('{"seed": 3}')
  assert test_doctor.levels(look()) == {'workdir': 'error'}
  assert not hardware.is_writable(str(tmp_path / models_lib.CONFIG))
  assert hardware.is_writable(str(tmp_path / 'not' / 'there'))


def test_what_is_wrong_is_said_before_anything_is_measured(tmp_path, capsys):
  test_doctor.write(tmp_path, 'a.png', 16)
  config = demo.get_config('smoke')
  options = report.Options(steps=1, input_s=0.1)
  config.mesh.fsdp = 3
  config.data.validation = f'folder:{tmp_path}'
  assert report.report(config, options, None) == 1
  text = capsys.readouterr().out
  for part in ('mesh.fsdp=3', 'has no labels'):
    assert part in ' '.join(text.split())
  assert '\n3 errors' in text  # the batch does not suit 8 devices either
  config.crops.global_px, config.model.norm = 31, 'none'
  assert report.report(config, options, None) == 1
  text = capsys.readouterr().out
  assert 'crops.global_px=31' in text and 'model.norm' in text
  assert text.splitlines()[-1].startswith('2 errors')


def test_a_step_that_would_take_for_ever_is_not_tried(monkeypatch, capsys):
  monkeypatch.setattr(throughput, 'matrix_flops', lambda *_: 1e3)
  monkeypatch.setattr(throughput, 'compiled', lambda *_: pytest.fail(
      'was compiled all the same'))
  config = demo.get_config('smoke')
  config.train.batch_size = 32
  options = report.Options(steps=1, input_s=0.0, num_sampled=1)
  assert report.report(config, options, None) == 0
  text = ' '.join(capsys.readouterr().out.split())
  assert 'not run: this machine is too slow for it' in text


def test_made_up_batches_are_those_of_the_pipeline():
  s = test_doctor.settings(train__batch_size=8, train__group_images=4,
               koleo__group_images=8)
  mesh = mesh_lib.make(devices=mesh_lib.one_device())
  made = throughput._batch(s, mesh)
  training = [(sources.open_source(s.data.train), 1.0)]
  real = next(batches_lib.make(s, training, [], 0))
  real = {k: v for k, v in real.items() if k not in ('problems', 'label')}
  assert made.keys() == real.keys()
  for name, value in real.items():
    assert made[name].shape == value.shape and (
        made[name].dtype == value.dtype), name
  assert made['mask_index'].max() < 8 * s.num_patches
  assert np.all(made['row'] == np.arange(8))
  assert jnp.isfinite(made['mask_weight']).all()


def test_wrong_flags_are_usage():
  code, text = run('--nothing=1')
  assert code == 2
  assert 'error: --nothing is not a flag of `dinojax doctor`' in text


def test_a_jax_that_does_not_start():
  done = subprocess.run(  # read when jax is imported
      [sys.executable, '-m', 'dinojax', 'doctor'], cwd=ROOT, text=True,
      capture_output=True, env=os.environ | {'JAX_PLATFORMS': 'nothing'})
  text = ' '.join(done.stdout.split())
  assert done.returncode == 1, done.stdout + done.stderr
  assert 'JAX does not start' in text and "'nothing'" in text
  assert 'grain' in text and '1 error, ' in text  # the rest is still told
