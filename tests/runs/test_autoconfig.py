"""`dinojax train --data`: what is chosen, why, and that it stays chosen."""

import dataclasses

from absl import flags
from ml_collections import config_flags
from PIL import Image
import pytest

from dinojax.configs import demo
from dinojax.core import errors
from dinojax.data import sources
from dinojax.planning import memory
from dinojax.planning import throughput
from dinojax.runs import assemble
from dinojax.runs import autoconfig
from dinojax.runs import choices
from dinojax.train import method as method_lib
from dinojax.train import settings as settings_lib

LAPTOP = choices.Facts(
    train='folder:/a/train', validation='folder:/a/test', whence='two folders',
    num_images=200, num_classes=5, short_px=227, platform='cpu', num_devices=1,
    num_cores=2, free_gib=8.0, flops=1e11)
GPU = dataclasses.replace(
    LAPTOP, num_images=1_281_167, num_classes=1000, short_px=375,
    platform='gpu', num_cores=16, free_gib=60.0, flops=4e14)


@dataclasses.dataclass(frozen=True)
class Method:
  """As far as what fits looks at one."""

  settings: settings_lib.Settings
  students: dict = dataclasses.field(default_factory=dict)


@pytest.fixture
def linear(monkeypatch):
  """A GiB, and as much as `image_gib` says for every image at a time.

  Nothing is traced: that is for train/test_memory.
  """
  image_gib = [0.01]
  monkeypatch.setattr(method_lib, 'build', lambda s, *_: Method(s))
  monkeypatch.setattr(throughput, 'step_flops',
                      lambda method, _: 1e10 * method.settings.train.batch_size)

  def estimate(method, mesh):
    train = method.settings.train
    rows = train.batch_size / mesh.size
    return memory.Estimate(
        0.5, 0.0, 0.5, image_gib[0] * rows / train.num_micro_batches)

  monkeypatch.setattr(memory, 'of_pretraining', estimate)
  return image_gib


def chosen(facts):
  """The settings for facts on the devices of these tests."""
  text, lines = autoconfig.written(facts, 'flags', 'W')
  assert all(len(line) <= 80 for line in lines if line.startswith('#'))
  c = autoconfig.config_of(text, 'W/config.py')
  assert settings_lib.read(autoconfig.config_of(text, '')) == (
      settings_lib.read(c))
  return settings_lib.read(c), text


def test_a_laptop_gets_a_small_model_that_ends(linear):
  s, text = chosen(LAPTOP)
  assert (s.model.embed_dim, s.model.patch_px) == (192, 16)
  assert (s.crops.global_px, s.crops.local_px, s.crops.num_local) == (96, 48, 4)
  assert s.data.num_workers == 0 and s.knn.k == 20
  assert s.data.validation == 'folder:/a/test'
  assert s.train.total.unit == 'epochs' and 1 <= s.train.total.value <= 300
  for part in ('# Two folders', 'is the device', 'Chosen for'):
    assert part in text


def test_an_accelerator_gets_the_references_crops(linear):
  facts = dataclasses.replace(GPU, num_devices=8)
  s, text = chosen(facts)
  assert (s.model.embed_dim, s.model.patch_px) == (384, 14)
  assert (s.crops.global_px, s.crops.num_local) == (224, 8)
  assert s.train.batch_size == 8 * 256 and s.dino.num_prototypes == 16384
  assert s.data.num_workers == 8 and s.train.total.value <= 100
  assert 'As the references have' in text


@pytest.mark.parametrize('changes, check', [
    (dict(short_px=32), lambda s: s.model.patch_px == 4
     and s.crops.global_px == 32),
    (dict(model='vits14'), lambda s: s.model.embed_dim == 384
     and s.crops.global_px == 84),
    (dict(validation=None), lambda s: s.data.validation is None
     and s.knn.every is None),
    (dict(num_images=20_000), lambda s: s.augment.jitter_probability == 0.8),
    (dict(num_images=20_000, flops=1e6), lambda s: s.train.total.value == 1)])
def test_choices_follow_the_facts(changes, check, linear):
  assert check(chosen(dataclasses.replace(LAPTOP, **changes))[0])


def test_a_batch_that_fits(linear):
  facts = dataclasses.replace(LAPTOP, num_devices=8, num_images=100_000)
  assert choices.largest_batch(facts) == 512
  # Eight devices have 64 images each: 0.8 × 8 GiB are 5.4 above the state.
  linear[0] = 0.15
  assert chosen(facts)[0].train.batch_size == 256
  linear[0] = 0.3
  s = chosen(facts)[0]
  assert (s.train.batch_size, s.train.num_micro_batches) == (256, 2)
  assert s.train.group_images == s.koleo.group_images == 16
  linear[0] = 100.0
  with pytest.raises(errors.UserError, match='--model, such as vitti16'):
    chosen(facts)


def folders(root, *names):
  for name in names:
    (root / name).mkdir(parents=True)
    for i in range(12):
      Image.new('RGB', (40, 40), (i, 0, 0)).save(root / name / f'{i:02}.png')


def test_where_images_are_measured(tmp_path):
  folders(tmp_path / 'two', 'Train/a', 'Train/b', 'val/a', 'val/b', 'test/a')
  assert autoconfig.find(str(tmp_path / 'two'), None)[:2] == (
      f'folder:{tmp_path}/two/Train', f'folder:{tmp_path}/two/val')
  folders(tmp_path / 'one', 'a', 'b')
  train, test, whence = autoconfig.find(f'folder:{tmp_path}/one', None)
  assert 'every tenth image' in whence
  kept, out = sources.open_source(train), sources.open_source(test)
  assert (len(kept), len(out)) == (22, 2)
  assert kept.classes == out.classes == ('a', 'b')
  names = [[s[i].name for i in range(len(s))] for s in (kept, out)]
  assert names[1] == ['a/09.png', 'b/07.png']
  assert not set(names[0]) & set(names[1])
  folders(tmp_path / 'flat', 'a')
  assert autoconfig.find(str(tmp_path / 'flat/a'), None)[1] is None
  assert autoconfig.find('tfds:mnist/train', 'tfds:mnist/test')[:2] == (
      'tfds:mnist/train', 'tfds:mnist/test')


def test_what_was_chosen_stays(tmp_path, linear, monkeypatch):
  folders(tmp_path / 'one', 'a', 'b')
  monkeypatch.setattr(autoconfig, '_speed', lambda *_: 1e11)
  messages, data, workdir = [], str(tmp_path / 'one'), str(tmp_path / 'w')
  first = autoconfig.config_for(data, workdir, say=messages.append)
  assert any('kept:folder:' in line for line in messages)
  # The command line reads the same values from the file.
  values = flags.FlagValues()
  holder = config_flags.DEFINE_config_file(
      'config', None, 'Config.', lock_config=True, flag_values=values)
  values(['train', f'--config={workdir}/config.py'])
  assert holder.value.to_json() == first.to_json()
  monkeypatch.setattr(autoconfig, 'look', lambda *_: pytest.fail('again'))
  again = autoconfig.config_for(data, workdir, say=messages.append)
  assert again.to_json() == first.to_json() and 'used again' in messages[-1]
  with pytest.raises(errors.UserError, match="'vits14' is asked.*workdir"):
    autoconfig.config_for(data, workdir, model='vits14')
  (tmp_path / 'w/config.py').write_text('c = 3')
  with pytest.raises(errors.UserError, match='is no config'):
    autoconfig.config_for(data, workdir, say=messages.append)


def test_the_folder_of_another_run_is_left_as_it_is(tmp_path):
  folders(tmp_path / 'one', 'a', 'b')
  (tmp_path / 'w').mkdir()
  (tmp_path / 'w/config.json').write_text('{}')
  with pytest.raises(errors.UserError, match='holds a run of another config'):
    autoconfig.config_for(str(tmp_path / 'one'), str(tmp_path / 'w'))
  assert [path.name for path in (tmp_path / 'w').iterdir()] == ['config.json']


@pytest.mark.parametrize('steps, warned', [(9, False), (10, True), (58, True)])
def test_a_rate_that_never_gets_there_is_said(steps, warned, capsys):
  s = settings_lib.read(demo.get_config())
  assemble._check_warmup(s, steps, 10)
  text = capsys.readouterr().err
  assert ('is never reached; set schedules.lr.warmup' in text) == warned


def test_folders_that_teach_nothing(tmp_path):
  with pytest.raises(errors.UserError, match='vitx9 is not known: use vitti16'):
    autoconfig.look(str(tmp_path), None, 'vitx9')
  (tmp_path / 'few').mkdir()
  Image.new('RGB', (40, 40)).save(tmp_path / 'few/a.png')
  with pytest.raises(errors.UserError, match='holds 1 image: at least 16'):
    autoconfig.look(str(tmp_path / 'few'), None, None)
  (tmp_path / 'bad').mkdir()
  for i in range(20):
    (tmp_path / f'bad/{i}.jpg').write_bytes(b'no picture')
  with pytest.raises(errors.UserError, match='can be decoded; 0.jpg'):
    autoconfig.look(str(tmp_path / 'bad'), None, None)
