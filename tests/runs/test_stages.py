"""A recipe's stages: their order, what they start from, and what stops them."""

import gc
import importlib
import json
import pathlib
import shutil
import types

from etils import epath
import jax
import pytest

from dinojax.core import atomic
from dinojax.core import errors
from dinojax.runs import assemble
from dinojax.runs import stages
from dinojax.runs import workdir as workdir_lib
from dinojax.train import settings as settings_lib
from tests import forked
from tests.runs import test_run
from tests.train import tiny

ROOT = pathlib.Path(__file__).parents[2]


def recipe(**changes) -> dict:
  """Three stages; changes as highres__gram='stage:pretrain', a source."""
  out = {'stages': ('pretrain', 'gram', 'highres')}
  for name in out['stages']:
    out[name] = tiny.config() | {'init': {}, 'distillation': {}}
  for key, source in (dict(
      gram__init='stage:pretrain', highres__init='stage:gram',
      highres__gram='stage:pretrain') | changes).items():
    stage, section = key.split('__')
    out[stage][section] = {'source': source} if source else {}
  return out


class Job:
  """Instead of assemble.train: writes what that does, and notes its calls."""

  def __init__(self):
    self.configs, self.stopped, self.signalled = {}, (), ()

  @property
  def names(self):
    return list(self.configs)

  def train(self, config, workdir):
    folder = epath.Path(workdir)
    workdir_lib.open_run(workdir, settings_lib.read(config))
    workdir_lib.write_config(folder, config)
    self.configs[folder.name] = config
    finished = folder.name not in self.stopped
    if finished:
      atomic.write_text(folder / 'results.json', json.dumps(
          {'knn_top1_pct': {'trained': 50.0}, 'steps': 20, 'seconds': 1.0}))
    return types.SimpleNamespace(
        finished=finished,
        stopped=not finished or folder.name in self.signalled)

  def forget(self):
    self.configs.clear()


@pytest.fixture
def trained(monkeypatch):
  instead = Job()
  monkeypatch.setattr(assemble, 'train', instead.train)
  return instead


def refused(*parts, **arguments):
  with pytest.raises(errors.UserError) as caught:
    stages.train(**arguments)
  for part in parts:
    assert part in str(caught.value), str(caught.value)


def test_stages_run_in_order_and_start_from_each_other(
    trained, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  assert stages.train(recipe(), 'runs')
  assert trained.names == ['pretrain', 'gram', 'highres']
  runs = tmp_path / 'runs'
  assert trained.configs['pretrain']['init'] == {}
  assert trained.configs['gram']['init']['source'] == str(runs / 'pretrain')
  assert trained.configs['highres']['init']['source'] == str(runs / 'gram')
  assert trained.configs['highres']['gram']['source'] == str(
      runs / 'pretrain')
  out = capsys.readouterr().out
  plan = out[:out.index('stage pretrain')].splitlines()
  assert [line.split()[:2] for line in plan] == [
      [name, 'new'] for name in trained.names]
  assert '20 steps' in plan[1] and str(runs / 'gram') in plan[1]
  assert 'init from gram' in plan[2] and 'gram from pretrain' in plan[2]
  written = json.loads((runs / 'results.json').read_text())
  assert {name: result['steps'] for name, result in written.items()} == {
      'pretrain': 20, 'gram': 20, 'highres': 20}
  assert ['highres', '20', '1', 'trained', '50.0'] in [
      line.split() for line in out.splitlines()]


@pytest.mark.parametrize('key', ['train', 'validation'])
def test_images_of_every_stage_are_looked_for_before_the_first(
    trained, tmp_path, key):
  chain, missing = recipe(), f'folder:{tmp_path}/missing'
  for name in ('gram', 'highres'):
    chain[name]['data'] = chain[name]['data'] | {key: missing}
  refused('stage gram', 'stage highres', missing, recipe=chain,
          workdir=str(tmp_path / 'runs'))
  assert not trained.names and not (tmp_path / 'runs' / 'pretrain').exists()
  # A stage that is not chosen has its images elsewhere, or later.
  assert stages.train(chain, str(tmp_path / 'runs'), ['pretrain'])
  assert trained.names == ['pretrain']


def test_what_has_ended_is_not_done_again(trained, tmp_path, capsys):
  stages.train(recipe(), str(tmp_path), ['pretrain'])
  trained.forget()
  capsys.readouterr()
  assert stages.train(recipe(), str(tmp_path))
  assert trained.names == ['gram', 'highres']
  assert 'stage pretrain: done' in capsys.readouterr().out
  trained.forget()
  assert stages.train(recipe(), str(tmp_path))
  assert not trained.names


def test_a_signal_ends_the_chain_and_the_same_command_continues(
    trained, tmp_path, capsys):
  trained.stopped = ('gram',)
  assert not stages.train(recipe(), str(tmp_path))
  assert trained.names == ['pretrain', 'gram']
  assert not (tmp_path / 'results.json').exists()
  (tmp_path / 'gram' / 'checkpoints' / '7').mkdir(parents=True)
  (tmp_path / 'gram' / 'checkpoints' / '9.orbax-checkpoint-tmp').mkdir()
  trained.stopped = ()
  trained.forget()
  capsys.readouterr()
  assert stages.train(recipe(), str(tmp_path))
  assert trained.names == ['gram', 'highres']
  assert 'gram      resumes from step 7' in capsys.readouterr().out


def test_a_signal_in_the_last_evaluation_begins_no_other_stage(
    trained, tmp_path, capsys):
  trained.signalled = ('gram', 'highres')
  assert not stages.train(recipe(), str(tmp_path))
  assert trained.names == ['pretrain', 'gram']
  assert 'stopped by a signal after stage gram' in capsys.readouterr().out
  assert stages.train(recipe(), str(tmp_path))  # there is none after highres


def test_all_mistakes_of_all_stages_are_told_before_any_work(
    trained, tmp_path):
  wrong = recipe(pretrain__init='stage:highres', gram__init='stage:gram',
                 highres__init='stage:pretrian')
  wrong['gram']['crops']['global_px'] = 30
  wrong['highres']['teacher'] = {'centering': 'none'}
  refused(
      'nothing was started',
      'stage pretrain: init.source=stage:highres: highres does not come before',
      'stage gram: init.source=stage:gram: gram does not come before it; '
      'stages before it: pretrain',
      'stage gram: config: crops.global_px=30',
      'stage highres: init.source=stage:pretrian: there is no stage pretrian; '
      'the stages are pretrain, gram, highres',
      "stage highres: config: teacher.centering='none'",
      recipe=wrong, workdir=str(tmp_path))
  assert not trained.names and not list(tmp_path.iterdir())


def test_one_of_several_students_is_named(trained, tmp_path):
  def chain(source):
    out = recipe(gram__distillation='stage:pretrain', highres__init=source)
    out['gram']['students'] = {
        'small': {}, 'large': {'init': {'source': 'stage:pretrain'}}}
    return out

  stages.train(chain('stage:gram/large'), str(tmp_path / 'a'))
  assert trained.configs['highres']['init']['source'] == str(
      tmp_path / 'a' / 'gram' / 'large')
  assert trained.configs['gram']['students']['large']['init'][
      'source'] == str(tmp_path / 'a' / 'pretrain')
  refused('has several students: write one of stage:gram/small, '
          'stage:gram/large', recipe=chain('stage:gram'),
          workdir=str(tmp_path / 'b'))
  refused('write one of stage:gram/small', recipe=chain('stage:gram/huge'),
          workdir=str(tmp_path / 'b'))
  refused('stage pretrain has one student: write stage:pretrain',
          recipe=recipe(gram__init='stage:pretrain/small'),
          workdir=str(tmp_path / 'b'))


def test_chosen_stages_run_in_the_order_of_the_recipe(trained, tmp_path):
  work = str(tmp_path)
  refused('--stages=grm', 'no stage grm; it has pretrain, gram, highres',
          recipe=recipe(), workdir=work, names=['grm'])
  refused('stage highres starts from stage gram', '--stages=gram makes it',
          str(tmp_path / 'gram' / 'results.json'),
          recipe=recipe(highres__gram='stage:gram'), workdir=work,
          names=['highres'])
  assert not trained.names
  stages.train(recipe(), work, ['gram', 'pretrain'])
  assert trained.names == ['pretrain', 'gram']
  assert set(json.loads((tmp_path / 'results.json').read_text())) == {
      'pretrain', 'gram'}
  stages.train(recipe(), work, ['highres'])
  assert trained.names == ['pretrain', 'gram', 'highres']


def test_another_config_of_a_stage_that_has_ended_is_refused(
    trained, tmp_path):
  stages.train(recipe(), str(tmp_path), ['pretrain'])
  trained.forget()
  other = recipe()
  other['pretrain']['koleo']['loss_weight'] = 0.3
  other['gram']['seed'] = 7
  refused('stage pretrain', 'koleo.loss_weight: 0.1 → 0.3',
          recipe=other, workdir=str(tmp_path))
  assert not trained.names
  free = recipe()
  free['pretrain']['log'] = {'every_steps': 3}
  assert stages.train(free, str(tmp_path))


def test_a_stage_is_not_made_anew_under_those_that_started_from_it(
    trained, tmp_path):
  stages.train(recipe(), str(tmp_path), ['pretrain', 'gram'])
  trained.forget()
  shutil.rmtree(tmp_path / 'pretrain')
  refused('stage pretrain would begin anew', 'stage gram has started',
          str(tmp_path / 'gram'), recipe=recipe(), workdir=str(tmp_path))
  shutil.rmtree(tmp_path / 'gram')
  assert stages.train(recipe(), str(tmp_path))
  assert trained.names == ['pretrain', 'gram', 'highres']


def test_devices_must_fit_what_is_to_run_only(trained, tmp_path):
  wrong = recipe()
  wrong['highres']['train']['batch_size'] = 12
  refused('stage highres: train.batch_size=12 is not divisible by 8 devices',
          recipe=wrong, workdir=str(tmp_path))
  assert not trained.names
  assert stages.train(wrong, str(tmp_path), ['pretrain', 'gram'])


def test_names_that_are_no_stages(trained, tmp_path):
  work = str(tmp_path)
  refused('names no stages', recipe={'stages': ()}, workdir=work)
  refused('has no config of that name: add it',
          recipe=recipe() | {'stages': ('pretrain', 'more')}, workdir=work)
  refused('pretrain more than once',
          recipe=recipe() | {'stages': ('pretrain', 'pretrain')}, workdir=work)
  refused("'a/b' cannot be the name", workdir=work,
          recipe=recipe() | {'stages': ('a/b',), 'a/b': tiny.config()})


def test_an_error_says_in_which_stage(monkeypatch, tmp_path):
  def fail(config, workdir):
    raise errors.UserError('the disk is full')

  monkeypatch.setattr(assemble, 'train', fail)
  refused('stage pretrain: the disk is full', recipe=recipe(),
          workdir=str(tmp_path))


@pytest.mark.parametrize('arg', ['', 'smoke'])
@pytest.mark.parametrize('name, uses', [
    ('dinov2', {'pretrain': [], 'highres': ['pretrain'],
                'distil': ['highres']}),
    ('dinov3', {'pretrain': [], 'gram': ['pretrain'], 'highres': ['gram'],
                'distil': ['highres']})])
def test_recipes_read_and_every_stage_starts_from_another(
    tmp_path, name, uses, arg):
  module = importlib.import_module(f'configs.recipes.{name}')
  chain = stages.read(module.get_config(arg), str(tmp_path))
  assert {stage.name: stage.needs for stage in chain} == uses
  assert len(chain[-1].settings.students) >= 2


@pytest.mark.parametrize('flags, parts', [
    ((), ('no flag says what to train', '--data', '--config', '--recipe')),
    (('--config=configs/demo.py', '--stages=a'), ('--stages=a', '--recipe')),
    (('--config=configs/demo.py', '--recipe=configs/recipes/dinov2.py'),
     ('--config and --recipe each say',))])
def test_one_of_config_and_recipe_is_given(tmp_path, flags, parts):
  code, text = forked.run([f'--workdir={tmp_path}', *flags])
  test_run.assert_error(code, text, *parts)


def test_what_refers_to_itself_is_given_up_too(
    trained, tmp_path, monkeypatch):
  held = []

  def train(config, workdir):
    held.append(sum(x.nbytes for x in jax.live_arrays()))
    result = trained.train(config, workdir)
    result.state, result.itself = jax.numpy.ones(10_000), result
    return result

  monkeypatch.setattr(assemble, 'train', train)
  enabled = gc.isenabled()
  gc.disable()
  try:
    stages.train(recipe(), str(tmp_path))
  finally:
    if enabled:
      gc.enable()
  assert max(held) - held[0] < 1000
