"""Chains of runs as commands: killed anywhere, they end in the same weights."""

import json
import pathlib
import re
import signal

import jax
import numpy as np
import pytest

from dinojax.runs import assemble
from dinojax.runs import stages
from tests import forked
from tests.runs import test_run
from tests.runs import test_stages

ROOT = pathlib.Path(__file__).parents[2]


CHAIN = '''
from ml_collections import config_dict
from dinojax.configs import demo

def get_config(arg=''):
  c = config_dict.ConfigDict()
  c.stages = ('first', 'second', 'again')
  for name in c.stages:
    c[name] = demo.get_config('smoke')
    c[name].data.validation = None
    c[name].crops.num_local = 0  # less to compile
    c[name].checkpoint.every_steps = 2.0
    c[name].train.total_steps = 8.0
  c.second.init.source = c.again.init.source = 'stage:first'
  return c
'''


def start(recipe, workdir, *more):
  return forked.Command(
      [f'--recipe={recipe}', f'--workdir={workdir}',
       f'--compile_cache={forked.CACHE}', *more], JAX_PLATFORMS='cpu')


def run(recipe, workdir, *more):
  process = start(recipe, workdir, *more)
  text, _ = process.communicate(timeout=900)
  return process.returncode, text


def killed(recipe, workdir, stage, step):
  """Starts it, and ends it where that stage has come to that step."""
  process, inside = start(recipe, workdir), False
  for line in process.stdout:
    inside |= line.startswith(f'stage {stage}: {workdir}')
    if inside and line.startswith(f'step {step}/'):
      break
  process.send_signal(signal.SIGKILL)
  process.communicate(timeout=60)
  assert process.returncode == -signal.SIGKILL


def same_weights(first, second):
  (step, got), (end, want) = test_run.state(first), test_run.state(second)
  assert step == end
  jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.slow
def test_nothing_of_a_stage_stays_on_the_devices(tmp_path, monkeypatch):
  held, real = [], assemble.train

  def train(config, workdir):
    held.append(sum(x.nbytes for x in jax.live_arrays()))
    result = real(config, workdir)
    assert sum(x.nbytes for x in jax.tree.leaves(result.state)) > 1e5
    return result

  monkeypatch.setattr(assemble, 'train', train)
  chain = test_stages.recipe(highres__gram=None)
  for name in chain['stages']:
    chain[name]['train'] |= {'total_steps': 1, 'epoch_steps': 1}
  assert stages.train(chain, str(tmp_path), ['pretrain', 'gram'])
  before, after = held
  assert after - before < 1000


@pytest.mark.slow  # make test kills at every write, reliability/test_runs.py
def test_killed_in_its_second_stage_ends_in_the_same_weights(tmp_path):
  chain, work = tmp_path / 'chain.py', tmp_path / 'runs'
  chain.write_text(CHAIN)
  killed(chain, work, 'second', 6)  # the save of 4 has waited for that of 2
  code, text = run(chain, work)
  assert code == 0, text
  assert 'stage first: done' in text
  assert re.search(f'resumed from step [246] of {work}/second', text), text
  same_weights(work / 'second', work / 'again')  # which never stopped


@pytest.mark.slow
@pytest.mark.parametrize('name, names', [
    ('dinov2', ('pretrain', 'highres', 'distil')),
    ('dinov3', ('pretrain', 'gram', 'highres', 'distil'))])
def test_a_whole_recipe_killed_in_every_stage(tmp_path, name, names):
  chain = f'configs/recipes/{name}.py:smoke'
  code, text = run(chain, tmp_path / 'whole')
  assert code == 0, text
  for stage in names:
    killed(chain, tmp_path / 'killed', stage, 5)
    assert not (tmp_path / 'killed' / stage / 'results.json').exists()
  code, text = run(chain, tmp_path / 'killed')
  assert code == 0, text
  for stage in names:
    same_weights(tmp_path / 'killed' / stage, tmp_path / 'whole' / stage)
  run_results = [json.loads((tmp_path / d / 'results.json').read_text())
                 for d in ('whole', 'killed')]
  knn = lambda results: {
      stage: result['knn_top1_pct'] for stage, result in results.items()}
  assert knn(run_results[0]) == knn(run_results[1])
  students = {key.split('/')[0] for key in knn(run_results[0])['distil']}
  assert len(students) == 2
