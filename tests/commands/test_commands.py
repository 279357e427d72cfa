"""How commands read flags: names of configs, mistakes, help."""

import dataclasses
import importlib
import subprocess
import sys
import types

from absl import flags
from PIL import Image
import pytest

from dinojax import commands
from dinojax.commands import call
from dinojax.commands import cli
from dinojax.commands import reference
from dinojax.core import config as config_lib
from dinojax.core import errors
from dinojax.core import fields
from dinojax.core import signals
from dinojax.models import convnext
from dinojax.models import vit
from dinojax.runs import batch_picture
from dinojax.runs import catalog
from dinojax.runs import training
from dinojax.train import sections
from dinojax.train import settings as settings_lib


class Tried(types.ModuleType):
  """A command that takes --config, --data and --workdir, and keeps them."""

  REQUIRED = ('workdir',)
  settings = staticmethod(reference.of_training)

  def define(self, values, argv):
    call.config_flag('config', 'What is trained.', values, argv)
    call.texts(values)('data', 'Folder of images.')
    call.texts(values)('workdir', 'Folder of the run.')


@pytest.fixture
def parsed(capsys):
  """The config that a command gets of words, or its exit code and messages."""
  def parse(*words):
    command = Tried('tried', 'A command that is tried.')
    outcome = call.parse(command, 'train', words)
    captured = capsys.readouterr()
    if not isinstance(outcome, int):
      return outcome[0].config
    return outcome, captured.out + captured.err

  return parse


@pytest.mark.parametrize('words, parts', [
    (['--workdri=x'], ['--workdri is not a flag', 'did you mean --workdir?']),
    (['--config=vits'], ['--workdir is missing: Folder of the run']),
    (['--config=vitss'], ['--config=vitss', 'mean --config=vits', 'small_im']),
    (['--config=a/vits.py'], ['--config=a/vits.py is not a file', 'vitg']),
    (['--config=dinov3'], ['dinov3 is a recipe', '--recipe=dinov3`']),
    (['--config=vits:smok'], ["'smok'", 'did you mean smoke?']),
    (['--config=vits', '--config.train.bach_size=3'],
     ['--config.train.bach_size', 'did you mean --config.train.batch_size']),
    (['--config=vits', '--config.crops=3', '--config.crop.num_local=3'],
     ['--config.crop.num_local', 'mean --config.crops.num_local?']),
    (['--config=vits', '--config.train.batch_size=many'],
     ['--config.train.batch_size=many', 'a whole number, or None']),
    (['--config=vits', '--config.schedules.lr.peak=fast'],
     ['--config.schedules.lr.peak=fast', 'a number, or None']),
    (['--config.seed=3'], ['--config.seed is a field', 'give --config=NAME']),
    (['--data=x', '--config.seed=3'],
     ['--config.seed is a field', '--config=WORKDIR/config.py']),
])
def test_mistakes_are_a_sentence_with_what_may_be_meant(parsed, words, parts):
  code, text = parsed(*words)
  assert code == 2 and text.startswith('error: ') and text.count('\n') == 1
  for part in parts:
    assert part in text, text


def test_values_come_before_or_after_their_config(parsed):
  config = parsed('--config.train.batch_size=48', '--config', 'vits:smoke',
                  '--workdir=x', '--config.gram.max_refreshes=None',
                  '--config.optimizer.clip_norm=None',
                  '--config.data.validation=None')
  assert config.train.batch_size == 48
  settings = settings_lib.read(config)
  assert settings.optimizer.clip_norm is None
  assert settings.gram.max_refreshes is None
  assert settings.data.validation is None


@pytest.mark.parametrize('field, others', [
    ('checkpoint.every_steps', ['checkpoint.every_epochs']),
    ('train.total_steps', ['train.total_epochs']),
    ('knn.every_images', ['knn.every_epochs']),
    ('schedules.freeze_last_layer_steps',
     ['schedules.freeze_last_layer_epochs']),
    ('schedules.lr.warmup_steps', ['schedules.lr.warmup_epochs'])])
def test_a_length_in_another_unit_takes_the_place_of_the_files(
    parsed, field, others):
  config = parsed('--config=vits', '--workdir=x', f'--config.{field}=7')
  assert config[field] == 7
  assert [config[other] for other in others] == [None]
  settings_lib.read(config)


def test_two_units_of_one_command_line_contradict_each_other(parsed):
  config = parsed('--config=vits', '--workdir=x', '--config.knn.every_steps=7',
                  '--config.knn.every_epochs=2')
  with pytest.raises(errors.UserError, match='are both set'):
    settings_lib.read(config)


@pytest.mark.parametrize('field, value', [
    ('checkpoint.every_steps', 3), ('data.validation', 'folder:x'),
    ('koleo.group_images', 8), ('optimizer.clip_norm', 2.0)])
def test_what_a_file_sets_to_none_can_be_set(parsed, tmp_path, field, value):
  path = tmp_path / 'mine.py'
  path.write_text('from dinojax.configs import demo\n\ndef get_config():\n'
                  f'  c = demo.get_config()\n  c.{field} = None\n'
                  '  return c\n')
  config = parsed(f'--config={path}', '--workdir=x',
                  f'--config.{field}={value}')
  assert config[field] == value


@pytest.mark.parametrize('words', [
    ['-h'], ['--help'], ['--config=vits', '-help'], ['--help=koleo']])
def test_help_is_no_mistake(parsed, words):
  code, text = parsed(*words)
  assert code == 0 and 'group_images = None' in text
  assert ('Folder of the run' in text) == ('koleo' not in words[-1])
  assert max(map(len, text.splitlines())) <= 80


def test_help_of_what_is_not_there(parsed):
  assert parsed('--help=crosp') == (
      2, 'error: --help=crosp is not a section of a config: did you mean '
      'crops?\n')
  assert 'local_px' not in parsed('--help=train.total_steps')[1]


def classes():
  inside = [cls for cls in vars(sections).values() if isinstance(cls, type)]
  return [settings_lib.Settings, vit.ViTConfig, convnext.ConvNeXtConfig,
          *filter(dataclasses.is_dataclass, inside)]


@pytest.mark.parametrize('cls', [c for c in classes()
                                 if c is not config_lib.Duration])
def test_every_field_says_what_it_means(cls):
  for name, text in fields.texts(cls).items():
    assert text and text[0].isupper() and text.endswith('.'), (name, text)
    assert text.split()[0] not in ('Of', 'That', 'Which', 'What', 'Whether',
                                   'Those', 'Likewise', 'As'), (name, text)


def test_every_section_and_key_is_listed():
  known = reference.sections()
  for cls, name in ((sections.Train, 'train'), (sections.Knn, 'knn')):
    assert [f.name for f in known[name][1]] == [
        f.name for f in dataclasses.fields(cls)]
  assert 'lr.warmup' in [f.name for f in known['schedules'][1]]
  assert all(f.text for _, inside in known.values() for f in inside)
  assert all(text for name, (text, _) in known.items() if name)


@pytest.mark.parametrize('name', [*catalog.configs()])
def test_configs_are_found_say_what_they_are_and_refuse_words(name):
  path = catalog.locate(name)
  assert catalog.summary(path).endswith('.')
  with pytest.raises(errors.UserError, match="'smok'.*smoke"):
    catalog.load(f'{name}:smok')
  assert f'dinojax train --config={name}' in path.read_text()


@pytest.mark.parametrize('text, words', [
    ('vitl:v2,v3', "'v2' and 'v3'"), ('vitl_gram:l,smoke,b', "'l' and 'b'"),
    ('vitg_highres:s,b', "'s' and 'b'"), ('photos:128,s,96', "'128' and '96'")])
def test_words_that_exclude_each_other_are_refused(text, words):
  with pytest.raises(errors.UserError, match=f'{words} exclude each other'):
    catalog.load(text)


@pytest.mark.parametrize('name', [*catalog.recipes()])
def test_recipes_refuse_words(name):
  with pytest.raises(errors.UserError, match="'smok'.*smoke"):
    catalog.load(f'{name}:smok', 'recipe')


@pytest.mark.parametrize('text, part', [
    ('import nothing_of_this_name', 'line 1: ModuleNotFoundError'),
    ('x = (', 'line 1: SyntaxError'), ('x = 1', 'no attribute'),
    ('def get_config():\n  return 1 / 0', 'line 2: ZeroDivisionError'),
    ('def get_config():\n  pass', 'get_config returns None'),
    ('def get_config():\n  return [1]', r'get_config returns \[1\]')])
def test_a_file_with_a_mistake_is_named(tmp_path, text, part):
  path = tmp_path / 'mine.py'
  path.write_text(text)
  with pytest.raises(errors.UserError, match=f'mine.py.*{part}'):
    catalog.load(str(path))


def test_a_copy_is_a_config_anywhere(tmp_path):
  out = tmp_path / 'mine.py'
  catalog.copy('vitb.py', str(out))  # as the README's table has it
  assert catalog.load(f'{out}:smoke').to_dict() == catalog.load(
      'vitb:smoke').to_dict()
  catalog.copy(str(out), str(tmp_path / 'again.py'))  # a file of one's own
  for name, where in (('vitb', str(out)), ('vitb', None), ('vitx', 'x.py'),
                      ('vitb', str(tmp_path / 'no/x.py'))):
    with pytest.raises(
        errors.UserError, match='--out|--copy=vitx.*mean --copy=vit'):
      catalog.copy(name, where)


def test_an_unknown_command(monkeypatch, capsys):
  monkeypatch.setattr(sys, 'argv', ['dinojax', 'trian'])
  with pytest.raises(SystemExit) as end:
    cli.main()
  signals._unwatch()  # it is on to the end of the process
  assert end.value.code == 2
  assert 'dinojax trian is not a command: did you mean train?' in (
      capsys.readouterr().err)


def test_every_command_is_a_short_module_that_defines_nothing():
  before = set(flags.FLAGS)
  for name, text in commands.COMMANDS.items():
    module = importlib.import_module(f'dinojax.commands.{name}')
    assert text and module.define and module.main
    assert len(open(module.__file__).readlines()) <= 60, name
  assert set(flags.FLAGS) == before


def test_commands_run_one_after_the_other_in_one_process(
    tmp_path, capsys, monkeypatch):
  """With other overrides each time: nothing of a call is left for the next."""
  seen, sheet = [], Image.new('RGB', (8, 8))
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(training, 'train', lambda request: seen.append(
      (request.config.train.batch_size, request.config.seed)) or True)
  monkeypatch.setattr(
      batch_picture, 'draw', lambda config, count: (
          seen.append((config.train.batch_size, count)) or sheet))
  train = lambda *words: commands.run(
      'train', ['--config=demo:smoke', f'--workdir={tmp_path}', *words])
  assert train('--config.train.batch_size=3', '--config.seed=5') == 0
  assert train('--config.seed=6') == 0
  assert commands.run('crops', [
      '--config=demo:smoke', '--config.train.batch_size=4', '--count=2']) == 0
  assert commands.run('crops', ['--config=demo:smoke']) == 0
  assert commands.run('configs', []) == 0
  assert commands.run('crops', ['--config=demo:smoke', '--workdir=x']) == 2
  assert seen == [(3, 5), (8, 6), (4, 2), (8, 8)]
  assert '--workdir is not a flag of `dinojax crops`' in capsys.readouterr().err


def test_flags_of_all_programs_are_still_known(monkeypatch):
  monkeypatch.setattr(flags.FLAGS['verbosity'], 'value', 0)
  assert commands.run('configs', ['--verbosity=1']) == 0
  assert flags.FLAGS.verbosity == 1


def test_notes_are_logged_unless_a_flag_says_otherwise(monkeypatch):
  """Such as those on the attention that was picked."""
  flag = flags.FLAGS['verbosity']
  monkeypatch.setattr(flag, 'using_default_value', True)
  monkeypatch.setattr(flag, 'value', -1)  # warnings, as absl begins
  assert commands.run('configs', []) == 0
  assert flags.FLAGS.verbosity == 0


def test_words_that_a_command_does_not_take(capsys):
  assert commands.run('configs', ['vits']) == 2
  assert 'unexpected arguments vits' in capsys.readouterr().err
  for words in ([], ['recordz'], ['import', 'export']):
    assert commands.run('convert', [*words, '--source=a', '--out=b']) == 2
    output = capsys.readouterr().err
    assert 'give one of records, import, export\n  dinojax convert' in output


def test_the_package_runs_as_the_command(tmp_path):
  done = subprocess.run(
      [sys.executable, '-m', 'dinojax', 'configs', '-h'], text=True,
      capture_output=True)
  assert done.returncode == 0 and '--copy=' in done.stdout
