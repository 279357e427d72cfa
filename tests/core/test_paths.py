"""'~' is one home, wherever a path stands."""

import json
import pathlib

from ml_collections import config_dict
import pytest

from dinojax.core import errors
from dinojax.core import paths
from dinojax.engine import checkpoint
from dinojax.runs import assemble
from dinojax.runs import models
from dinojax.runs import stages
from dinojax.runs import workdir as workdir_lib
from tests.train import tiny


@pytest.fixture
def home(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  return tmp_path / 'home'


def test_what_is_expanded(home):
  for path, meant in {
      '~': home, '~/runs/x': f'{home}/runs/x', '~/runs/x@100':
      f'{home}/runs/x@100', 'folder:~/a b': f'folder:{home}/a b',
      'arrayrecord:~/*.arrayrecord': f'arrayrecord:{home}/*.arrayrecord',
      'tfds:mnist/train?data_dir=~/tfds': f'tfds:mnist/train?data_dir={home}'
      '/tfds', pathlib.Path('~/x'): f'{home}/x'}.items():
    assert paths.expand(path) == str(meant)
  for path in ('', 'a~', './~/x', 'a/~/x', 'gs://b/~/x', 'folder:a/~', '/~',
               'photos:train', 'hf:a/b', 'stage:x'):
    assert paths.expand(path) == path
  with pytest.raises(errors.UserError, match='no home folder of no-such-user'):
    paths.expand('~no-such-user/x')


def test_all_paths_of_a_config(home):
  given = {'init': {'source': '~/a', 'heads': True}, 'seed': 0,
           'data': {'train': [('folder:~/b', 1.0)], 'num_workers': None}}
  before = json.dumps(given)
  assert paths.expand_all(given) == {
      'init': {'source': f'{home}/a', 'heads': True}, 'seed': 0,
      'data': {'train': [(f'folder:{home}/b', 1.0)], 'num_workers': None}}
  assert json.dumps(given) == before


def test_what_a_run_writes_down_does_not_depend_on_the_reader(
    home, monkeypatch):
  config = tiny.config() | {'init': {'source': '~/given'}}
  settings = assemble.settings_lib.read(config)
  assert settings.init.source == f'{home}/given'
  folder = workdir_lib.open_run('~/runs/x', settings)
  assert str(folder) == f'{home}/runs/x'
  workdir_lib.write_config(folder, config)
  monkeypatch.setenv('HOME', '/elsewhere')
  text = (home / 'runs/x/config.json').read_text()
  assert '~' not in text and f'{home}/given' in text
  assert models.read_workdir(str(folder)).init.source == f'{home}/given'


def test_the_folders_of_a_recipe(home):
  recipe = config_dict.ConfigDict({
      'stages': ('a', 'b'), 'a': tiny.config(),
      'b': tiny.config() | {'init': {'source': '~/other'}}})
  first, second = stages.read(recipe, '~/chain')
  assert str(first.folder) == f'{home}/chain/a'
  assert second.settings.init.source == f'{home}/other'
  assert '~' not in json.dumps(second.config)
  with pytest.raises(errors.UserError, match="'a@5' cannot be the name"):
    stages.read({'stages': ('a@5',), 'a@5': {}}, '~/chain')


@pytest.fixture
def runs(tmp_path, monkeypatch):
  """Folders that look like runs with checkpoints of steps 10 and 1000."""
  monkeypatch.setattr(checkpoint, 'Checkpoints', lambda workdir: type(
      'Saved', (), {'steps': lambda self: [10, 1000],
                    'latest': lambda self: 1000})())
  for name in ('vits', 'vits@224', 'students'):
    (tmp_path / name / checkpoint.FOLDER).mkdir(parents=True)
    (tmp_path / name / models.CONFIG).write_text('{}')
  (tmp_path / 'weights@5').mkdir()
  return str(tmp_path)


def test_a_folder_with_an_at_is_that_folder(runs):
  find = lambda name: models.find_run(f'{runs}/{name}')
  for name, meant in {
      'vits': ('vits', 'student', None), 'vits@1000': ('vits', 'student', 1000),
      'vits@224': ('vits@224', 'student', None),
      'vits@224@1000': ('vits@224', 'student', 1000),
      'vits@224@99': ('vits@224', 'student', 99),
      'students/a': ('students', 'a', None),
      'students/a@10': ('students', 'a', 10)}.items():
    folder, student, step = meant
    assert find(name) == models.CheckpointName(
        f'{runs}/{folder}', student, step), name
  for name in ('weights@5', 'weights@5@5', 'nothing', 'nothing@5', 'a.pth'):
    assert find(name) is None, name
  assert models.at_its_last_step(f'{runs}/vits@224') == (
      f'{runs}/vits@224@1000')


@pytest.mark.parametrize('step', ['last', '', '-1', '1e3', '٣', 'step10'])
def test_what_is_no_step_is_answered_with_those_there_are(runs, step):
  with pytest.raises(errors.UserError, match='no step of .*of 10, 1000'):
    models.find_run(f'{runs}/vits@224@{step}')


@pytest.mark.parametrize('path', ['a\0b', 'x' * 5000, '/dev/null/x'])
def test_paths_that_no_disk_has(path):
  with pytest.raises(errors.UserError):
    models.read(path)
