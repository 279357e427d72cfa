"""How commands read flags: names of configs, mistakes, help."""

import dataclasses
import importlib
import subprocess
import sys

from absl import flags
import pytest

from dinojax.commands import cli
from dinojax.commands import commandline
from dinojax.commands import reference
from dinojax.core import config as config_lib
from dinojax.core import errors
from dinojax.core import fields
from dinojax.models import convnext
from dinojax.models import vit
from dinojax.runs import catalog
from dinojax.train import sections
from dinojax.train import settings as settings_lib


@pytest.fixture
def parsed(monkeypatch, capsys):
  """Values or messages of a command that takes --config, --data, --workdir."""
  absl = flags.FLAGS
  names = ('config', 'data', 'workdir')
  others = {name: absl[name] for name in names if name in absl}
  for name in others:
    delattr(absl, name)
  commandline.config_flag('config', 'What is trained.')
  flags.DEFINE_string('data', None, 'Folder of images.')
  flags.DEFINE_string('workdir', None, 'Folder of the run.')
  fresh = set(absl)

  def parse(*words):
    monkeypatch.setattr(sys, 'argv', ['x', *words])
    try:
      commandline.parse(sys.argv, __name__, 'train', ['workdir'])
    except SystemExit as end:
      captured = capsys.readouterr()
      return end.code, captured.out + captured.err
    return absl.config

  yield parse
  for name in {*absl} - fresh | {*names}:
    delattr(absl, name)
  for name, flag in others.items():
    absl[name] = flag


@pytest.mark.parametrize('words, parts', [
    (['--workdri=x'], ['--workdri is not a flag', 'did you mean --workdir?']),
    (['--config=vits'], ['--workdir is missing: Folder of the run']),
    (['--config=vitss'], ['--config=vitss', 'mean --config=vits', 'small_im']),
    (['--config=a/vits.py'], ['--config=a/vits.py is not a file', 'vitg']),
    (['--config=dinov3'], ['dinov3 is a recipe: --recipe=dinov3']),
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
  assert end.value.code == 2
  assert 'dinojax trian is not a command: did you mean train?' in (
      capsys.readouterr().err)


def test_every_command_is_a_module_with_an_entry():
  for name, text in cli.COMMANDS.items():
    source = importlib.util.find_spec(f'dinojax.commands.{name}').origin
    assert text and 'def entry()' in open(source).read()


def test_the_package_runs_as_the_command(tmp_path):
  done = subprocess.run(
      [sys.executable, '-m', 'dinojax', 'configs', '-h'], text=True,
      capture_output=True)
  assert done.returncode == 0 and '--copy=' in done.stdout
