"""`dinojax embed`: right features in the right rows, killed or not."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import tracemalloc

import numpy as np
from PIL import Image
import pytest

import dinojax
from dinojax.core import errors
from dinojax.data import crops
from dinojax.data import images as images_lib
from dinojax.data import photos
from dinojax.data import sources
from dinojax.features import backbone as backbone_lib
from dinojax.features import embedding
from dinojax.features import preprocessing
from dinojax.features import store as store_lib
from dinojax.features import stream
from dinojax.features import tables
from dinojax.interop import store
from dinojax.models import vit
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import processes
from tests import forked
from tests.interop import cases

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = vit.ViTConfig(48, 2, 2, 14, image_px=56, num_registers=4)
CROP = embedding.Choice(resize_px=32, crop_px=28)
WHOLE = embedding.Choice(resize_px=30, crop_px=None)
SIZES = [(64, 48), (48, 64), (80, 40), (50, 50), (64, 48), (80, 41),
         (48, 72), (64, 48), (47, 63), (400, 20), (70, 70)]


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
  folder = tmp_path_factory.mktemp('weights') / 'tiny'
  store.save(str(folder), cases.weights(CONFIG, seed=0))
  return folder


@pytest.fixture(scope='module')
def model(weights):
  return dinojax.load(str(weights))


@pytest.fixture
def folder(tmp_path):
  """Pieces of a photograph of many sizes, in two sub-folders and loose."""
  photo = Image.fromarray(photos.photograph('coffee'))
  for i, (width, height) in enumerate(SIZES):
    place = tmp_path / 'images' / ('' if i == 10 else 'ab'[i % 2])
    place.mkdir(parents=True, exist_ok=True)
    photo.crop((9 * i, 7 * i, 9 * i + width, 7 * i + height)).save(
        place / f'{i:02d}.png')
  return tmp_path / 'images'


def open_folder(folder):
  return sources.open_source(f'folder:{folder}')


def extract(model, folder, out, choice=CROP, **kwargs):
  kwargs = {'images_per_shard': 4} | kwargs
  reading = stream.Reading(**{'batch_size': 4} | {
      name: kwargs.pop(name) for name in list(kwargs)
      if name in stream.Reading.__dataclass_fields__})
  return embedding.embed(model, open_folder(folder), str(out), choice,
                         reading=reading, **kwargs)


def load(path):
  with np.load(path) as file:
    return dict(file)


def watched(monkeypatch):
  """Shapes of the batches that are computed from now on."""
  seen, put = [], processes.to_devices
  monkeypatch.setattr(processes, 'to_devices', lambda rows, mesh: (
      seen.append(rows.shape) or put(rows, mesh)))
  return seen


def direct(model, images, choice):
  """Features by calls of the model that a user would write."""
  layers = model.intermediate(images, choice.layers)
  parts = [np.asarray(x.cls) for x in layers]
  if choice.features == 'patches':
    parts = [np.asarray(x.patches) for x in layers]
  if choice.features == 'cls+mean':
    parts.append(np.asarray(layers[-1].patches).mean(1))
  return np.concatenate(parts, -1)


@pytest.mark.parametrize('features, layers, dtype', [
    ('cls', 1, 'float32'), ('cls', 2, 'float32'), ('cls+mean', 2, 'float32'),
    ('patches', 1, 'float32'), ('patches', 2, 'float16')])
def test_a_table_equals_direct_calls(
    model, folder, tmp_path, features, layers, dtype):
  choice = embedding.Choice(features, layers, dtype, 32, 28)
  result = extract(model, folder, tmp_path / 'a.npz', choice)
  table = load(tmp_path / 'a.npz')
  assert result == embedding.Result(len(SIZES), [])
  source = open_folder(folder)
  assert table['names'].tolist() == [source[i].name for i in range(11)]
  assert table['labels'].tolist() == [-1] + [0] * 5 + [1] * 5
  assert table['classes'].tolist() == ['a', 'b']
  images = model.preprocess(
      [folder / name for name in table['names']], resize_px=32, crop_px=28)
  assert table['features'].dtype == dtype
  rounding = 1e-5 if dtype == 'float32' else 1e-3
  np.testing.assert_allclose(
      table['features'], direct(model, images, choice), rtol=rounding,
      atol=1e-5)
  if features == 'patches':
    assert table['grids'].tolist() == [[2, 2]] * 11
  assert not (tmp_path / 'a.npz.shards').exists()


def test_whole_images_equal_each_alone(model, folder, tmp_path, monkeypatch):
  seen, said = watched(monkeypatch), []
  extract(model, folder, tmp_path / 'a.npz', WHOLE, images_per_shard=11,
          say=said.append)
  assert said == ['--resize_px=30 is rounded to 28, whole patches of 14']
  assert {shape[0] for shape in seen} == {4}  # padded: a program for a size
  table, sizes = load(tmp_path / 'a.npz'), set()
  for name, value in zip(table['names'], table['features'], strict=True):
    with Image.open(folder / name) as file:
      # The short side is two patches, the long at most four times that.
      rows, columns = sorted(file.size)
      ratio = min(max(round(2 * columns / rows), 2), 8)
      short = 1 if ratio == 8 else 2
      size = [14 * short, 14 * ratio]
      if file.size[0] > file.size[1]:
        size.reverse()
      sizes.add(tuple(size))
      pixels = np.asarray(file.resize(size, Image.Resampling.BICUBIC))
    image = (pixels / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    np.testing.assert_allclose(
        value, model(image[None]).cls[0], atol=1e-5, err_msg=name)
  assert len(sizes) >= 5 and (112, 14) in sizes
  assert sizes == {(x, y) for _, y, x, _ in seen}


def test_patches_of_whole_images_follow_each_other(model, folder, tmp_path):
  choice = embedding.Choice('patches', resize_px=30, crop_px=None)
  extract(model, folder, tmp_path / 'a.npz', choice)
  extract(model, folder, tmp_path / 'a.parquet', choice)
  table = load(tmp_path / 'a.npz')
  ends = table['grids'].prod(1).cumsum()
  assert ends[-1] == len(table['features'])
  grid, = table['grids'][table['names'] == 'b/03.png'].tolist()
  assert grid == [2, 2]
  pixels = crops.whole(images_lib.open_image(
      (folder / 'b' / '03.png').read_bytes()), short_px=30, patch_px=14)
  place = table['names'].tolist().index('b/03.png')
  np.testing.assert_allclose(
      table['features'][ends[place] - 4:ends[place]],
      model((pixels[None] / 255 - (0.485, 0.456, 0.406))
            / (0.229, 0.224, 0.225)).patches[0], atol=1e-5)
  lists = parquet(tmp_path / 'a.parquet')['feature'].to_pylist()
  assert [len(row) for row in lists] == table['grids'].prod(1).tolist()
  np.testing.assert_array_equal(np.concatenate(lists), table['features'])


def parquet(path):
  from pyarrow import parquet
  return parquet.read_table(path)


@pytest.mark.parametrize('features', ['cls', 'patches'])
def test_parquet_holds_the_same(model, folder, tmp_path, features):
  choice = embedding.Choice(features, resize_px=32, crop_px=28)
  (folder / 'a' / 'bad.jpg').write_bytes(b'')
  extract(model, folder, tmp_path / 'a.npz', choice)
  extract(model, folder, tmp_path / 'a.parquet', choice)
  table, rows = load(tmp_path / 'a.npz'), parquet(tmp_path / 'a.parquet')
  assert rows['name'].to_pylist() == table['names'].tolist()
  assert rows['label'].to_pylist() == table['labels'].tolist()
  assert str(rows.schema.field('feature').type).startswith('fixed_size_list')
  np.testing.assert_array_equal(
      np.array(rows['feature'].to_pylist(), np.float32), table['features'])
  metadata = rows.schema.metadata
  assert json.loads(metadata[b'dinojax.classes']) == ['a', 'b']
  assert json.loads(metadata[b'dinojax.bad']) == [['a/bad.jpg', 'empty file']]
  for kind in ('npz', 'parquet'):
    assert tables.summary(str(tmp_path / f'a.{kind}')) == (
        11, [['a/bad.jpg', 'empty file']])


class Killed(Exception):
  pass


@pytest.mark.parametrize('choice', [CROP, WHOLE])
@pytest.mark.parametrize('kind', ['npz', 'parquet'])
def test_a_killed_run_ends_in_the_same_bytes(
    model, folder, tmp_path, monkeypatch, choice, kind):
  seen = watched(monkeypatch)
  (tmp_path / 'whole').mkdir()
  extract(model, folder, tmp_path / 'whole' / f'a.{kind}', choice,
          images_per_shard=3)
  whole = len(seen)

  def stop(done):
    if done > 7:  # in the third of four shards
      raise Killed

  out = tmp_path / f'a.{kind}'
  with pytest.raises(Killed):
    extract(model, folder, out, choice, images_per_shard=3, batch_size=4,
            progress=stop)
  kept = sorted((tmp_path / f'a.{kind}.shards').glob('shard-*'))
  assert [path.name for path in kept] == [
      'shard-00000-of-00004.npz', 'shard-00001-of-00004.npz']
  times, said = [path.stat().st_mtime_ns for path in kept], []
  seen.clear()

  def check_kept(done):
    assert [path.stat().st_mtime_ns for path in kept] == times
    assert done >= 6

  extract(model, folder, out, choice, images_per_shard=3,
          progress=check_kept, say=said.append)
  assert any('continuing after 6 of 11 images' in line for line in said)
  assert 0 < len(seen) < whole
  assert out.read_bytes() == (
      tmp_path / 'whole' / f'a.{kind}').read_bytes()
  seen.clear()
  extract(model, folder, out, choice, images_per_shard=3, say=said.append)
  assert 'complete' in said[-1] and not seen


def test_a_half_written_shard_is_computed_again(model, folder, tmp_path):
  def stop(done):
    if done > 8:
      raise Killed

  out = tmp_path / 'a.npz'
  with pytest.raises(Killed):
    extract(model, folder, out, progress=stop)
  shard = tmp_path / 'a.npz.shards' / 'shard-00001-of-00003.npz'
  shard.write_bytes(shard.read_bytes()[:-50])
  extract(model, folder, out)
  extract(model, folder, tmp_path / 'b.npz')
  assert out.read_bytes() == (tmp_path / 'b.npz').read_bytes()


def test_rows_do_not_depend_on_batches_shards_and_devices(
    model, weights, folder, tmp_path):
  many = backbone_lib.Backbone.of(store.load(str(weights)), mesh_lib.make())
  runs = [(model, CROP, {}), (many, CROP, {}),
          (model, CROP, {'batch_size': 3, 'num_threads': 7}),
          (model, WHOLE, {'images_per_shard': 11}),
          (model, WHOLE, {'images_per_shard': 5, 'num_threads': 1})]
  first = {}
  for i, (one, choice, kwargs) in enumerate(runs):
    extract(one, folder, tmp_path / f'{i}.npz', choice, **kwargs)
    table = load(tmp_path / f'{i}.npz')
    same = first.setdefault(choice, table)
    assert table['names'].tolist() == same['names'].tolist()
    np.testing.assert_allclose(
        table['features'], same['features'], atol=1e-5)


def test_bad_images_are_listed_and_change_no_other(model, folder, tmp_path):
  extract(model, folder, tmp_path / 'a.npz')
  whole = (folder / 'a' / '00.png').read_bytes()
  (folder / 'a' / '0.png').write_bytes(whole[:len(whole) // 2])
  (folder / 'b' / 'text.jpg').write_bytes(b'not an image')
  Image.new('RGB', (200_000, 1)).save(folder / 'b' / 'thin.png')
  for i in range(4):  # a shard without one image
    (folder / f'z{i}.jpg').write_bytes(b'')
  result = extract(model, folder, tmp_path / 'b.npz')
  before, after = load(tmp_path / 'a.npz'), load(tmp_path / 'b.npz')
  assert after['names'].tolist() == before['names'].tolist()
  np.testing.assert_allclose(
      after['features'], before['features'], atol=1e-6)
  assert after['labels'].tolist() == before['labels'].tolist()
  assert after['bad'].tolist() == result.bad
  reasons = dict(result.bad)
  assert sorted(reasons) == ['a/0.png', 'b/text.jpg', 'b/thin.png', *(
      f'z{i}.jpg' for i in range(4))]
  # Resized and then cut, it would fill the memory.
  assert '200000 × 1 pixels would become' in reasons['b/thin.png']
  assert reasons['a/0.png'] == 'truncated'
  assert 'not an image' in reasons['b/text.jpg']
  assert reasons['z0.jpg'] == 'empty file'


def test_only_bad_images_end_in_a_sentence(model, tmp_path):
  (tmp_path / 'images').mkdir()
  for name in ('x.jpg', 'y.jpg'):
    (tmp_path / 'images' / name).write_bytes(b'')
  with pytest.raises(errors.UserError, match=r'none of the 2 .*x\.jpg.*empty'):
    extract(model, tmp_path / 'images', tmp_path / 'a.npz')
  assert os.listdir(tmp_path) == ['images']


def test_other_settings_are_refused_by_name(model, folder, tmp_path):
  out = tmp_path / 'a.npz'

  def refuse(text, model=model, choice=CROP, **kwargs):
    with pytest.raises(errors.UserError, match=text):
      extract(model, folder, out, choice, **kwargs)

  def stop(done):
    if done > 4:
      raise Killed

  def refuse_others():
    refuse("features was 'cls' and is 'patches'",
           choice=embedding.Choice('patches', resize_px=32, crop_px=28))
    refuse('crop_px was 28 and is 14; images_per_shard was 4 and is 5',
           choice=embedding.Choice(resize_px=32, crop_px=14),
           images_per_shard=5)
    refuse("model was 'tiny [0-9a-f]+' and is 'tiny [0-9a-f]+'",
           model=backbone_lib.Backbone.of(cases.weights(CONFIG, seed=1)),
           model_name='tiny')

  with pytest.raises(Killed):
    extract(model, folder, out, model_name='tiny', progress=stop)
  refuse_others()
  os.rename(folder / '10.png', folder / '11.png')
  refuse(r'was 10.png and is 11.png', model_name='tiny')
  os.rename(folder / '11.png', folder / '10.png')
  os.rename(folder / '10.png', folder.parent / '10.png')
  refuse('images was 11 and is 10', model_name='tiny')
  os.rename(folder.parent / '10.png', folder / '10.png')
  extract(model, folder, out, model_name='tiny')
  refuse_others()
  out.write_bytes(b'mine')
  refuse('was not written by')
  assert out.read_bytes() == b'mine'


def test_two_runs_do_not_share_a_folder(model, folder, tmp_path):
  def second(done):
    with pytest.raises(errors.UserError, match='in use by another run'):
      extract(model, folder, tmp_path / 'a.npz')
    raise Killed

  with pytest.raises(Killed):
    extract(model, folder, tmp_path / 'a.npz', progress=second)


def test_features_that_are_not_finite_are_an_error(folder, tmp_path):
  big = cases.weights(CONFIG, seed=0)
  big.params['norm']['scale'] = big.params['norm']['scale'] * 1e6
  choice = embedding.Choice(resize_px=32, crop_px=28, dtype='float16')
  with pytest.raises(errors.UserError, match=r'10.png.*--dtype=float32'):
    extract(backbone_lib.Backbone.of(big), folder, tmp_path / 'a.npz', choice)


def test_joining_holds_one_part_at_a_time(tmp_path):
  rng, parts = np.random.default_rng(0), []
  for i in range(24):
    parts.append(str(tmp_path / f'{i}.npz'))
    tables.write_shard(parts[-1], {
        'names': np.array([f'{i}/{j}' for j in range(256)]),
        'labels': np.full((256,), -1),
        'features': rng.normal(size=(256, 1024)).astype(np.float32),  # 1 MiB
        'bad': np.zeros((0, 2), np.str_), 'index': np.arange(256)})
  tables.join(str(tmp_path / 'warm.parquet'), parts[:1], {}, ())
  for kind in ('npz', 'parquet'):
    out = str(tmp_path / f'a.{kind}')
    tracemalloc.start()
    tables.join(out, parts, {'a': 1}, ())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * 2**20, kind
    assert tables.summary(out) == (24 * 256, [])
    assert tables.read_settings(out) == {'a': 1}
  assert 'labels' not in load(tmp_path / 'a.npz')


def test_pyarrow_is_named_when_it_is_missing(monkeypatch):
  monkeypatch.setattr(tables.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(errors.UserError,
                     match=r'pip install "dinojax\[parquet\]"'):
    tables.suffix('a.parquet')


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
  (tmp_path / 'file').write_bytes(b'')
  for out, text in ((tmp_path / 'file' / 'a.npz', 'cannot be written'),
                    ('gs://x/a.npz', 'not a local path')):
    with pytest.raises(errors.UserError, match=text):
      store_lib.check_writable(str(out))


ENVIRONMENT = os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)}


def test_wrong_flags_end_in_sentences(weights, tmp_path):
  (tmp_path / 'file').write_bytes(b'')
  base = {'model': str(weights), 'source': 'photos:validation',
          'out': str(tmp_path / 'a.npz')}
  cases = [
      ({'out': 'a.xls'}, 'neither .npz nor .parquet'),
      ({'out': str(tmp_path / 'file' / 'a.npz')}, 'cannot be written'),
      ({'model': str(tmp_path / 'none')}, 'does not exist: check the path'),
      ({'source': 'folder:/no/such/place'}, 'check the path'),
      ({'crop_px': '224', 'keep_aspect': 'true'}, 'leave one out'),
      ({'layers': '3'}, 'set it to 1 … 2')]
  for flags, text in cases:
    code, said = forked.run(
        ['--compile_cache=', *(
            f'--{key}={value}' for key, value in (base | flags).items())],
        module='dinojax.commands.embed', JAX_PLATFORMS='cpu')
    assert code == 2, said
    line, = (line for line in said.splitlines() if 'error:' in line)
    assert text in line
  assert sorted(os.listdir(tmp_path)) == ['file']


@pytest.mark.parametrize('sizes, text', [
    (dict(crop_px=225, resize_px=300), 'set it to 224 or 238'),
    (dict(crop_px=5), 'set it to 14'),
    (dict(crop_px=280), 'set --resize_px=280 or more')])
def test_crops_that_do_not_fit_are_refused(sizes, text):
  with pytest.raises(errors.UserError, match=text):
    embedding.Choice(**sizes).check(CONFIG)


def test_crops_much_larger_than_those_of_training_are_said():
  remarks = lambda config, **sizes: list(
      preprocessing.Preprocessing(**sizes).remarks(config))
  assert not remarks(CONFIG, crop_px=56)
  said, = remarks(CONFIG)
  assert 'learned at 56' in said and '--crop_px=56 --resize_px=64' in said
  assert not remarks(CONFIG, resize_px=252, crop_px=None)
  # RoPE is for every size: its image_px says nothing of training.
  rope = dataclasses.replace(CONFIG, position='rope')
  assert not remarks(rope)


@pytest.mark.slow  # make test interrupts it in this process
def test_the_command_survives_a_kill(model, weights, tmp_path):
  out = tmp_path / 'new' / 'a.npz'
  command = [
      sys.executable, '-m', 'dinojax', 'embed',
      f'--model={weights}', '--source=photos:validation', f'--out={out}',
      '--resize_px=56', '--crop_px=56', '--images_per_shard=8',
      '--batch_size=8', '--num_threads=1',
      f'--compile_cache={ROOT / ".jax_cache"}']
  process = subprocess.Popen(command, env=ENVIRONMENT)
  while process.poll() is None and not list(
      out.parent.glob('*.shards/shard-00001*')):
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert not out.exists()
  # Workers change nothing, and may be others than before.
  again = subprocess.run([*command, '--num_workers=1'], env=ENVIRONMENT,
                         text=True, capture_output=True)
  assert again.returncode == 0, again.stderr
  assert 'continuing after' in again.stderr and 'ETA 0s' in again.stderr
  source = sources.open_source('photos:validation')
  assert f'{len(source)} images in {out}, 0 could not' in again.stdout
  table = load(out)
  assert table['names'].tolist() == [
      source[i].name for i in range(len(source))]
  some = range(0, len(source), 20)
  images = model.preprocess(
      [source[i].image for i in some], resize_px=56, crop_px=56)
  np.testing.assert_allclose(
      table['features'][some], model(images).cls, atol=1e-4)
  assert os.listdir(out.parent) == ['a.npz']
