"""`dinojax embed`: right features in the right rows."""

import dataclasses
import json
import os

import numpy as np
from PIL import Image
import pytest

from dinojax.core import errors
from dinojax.data import crops
from dinojax.data import images as images_lib
from dinojax.features import backbone as backbone_lib
from dinojax.features import embedding
from dinojax.features import preprocessing
from dinojax.features import tables
from dinojax.interop import store
from dinojax.parallel import mesh as mesh_lib
from tests import forked
from tests.features import embedded
from tests.interop import cases


def direct(model, images, choice):
  """Features by calls of the model that a user would write."""
  layers = model.intermediate(images, choice.layers)
  parts = [np.asarray(x.cls) for x in layers]
  if choice.features == 'patches':
    parts = [np.asarray(x.patches) for x in layers]
  if choice.features == 'cls+mean':
    parts.append(np.asarray(layers[-1].patches).mean(1))
  return np.concatenate(parts, -1)


def parquet(path):
  from pyarrow import parquet
  return parquet.read_table(path)


@pytest.mark.parametrize('features, layers, dtype', [
    ('cls', 1, 'float32'), ('cls', 2, 'float32'), ('cls+mean', 2, 'float32'),
    ('patches', 1, 'float32'), ('patches', 2, 'float16')])
def test_a_table_equals_direct_calls(
    model, folder, tmp_path, features, layers, dtype):
  choice = embedding.Choice(features, layers, dtype, 32, 28)
  result = embedded.extract(model, folder, tmp_path / 'a.npz', choice)
  table = embedded.load(tmp_path / 'a.npz')
  assert result == embedding.Result(len(embedded.SIZES), [])
  source = embedded.open_folder(folder)
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
  seen, messages = embedded.watched(monkeypatch), []
  embedded.extract(model, folder, tmp_path / 'a.npz', embedded.WHOLE,
                   images_per_shard=11, say=messages.append)
  assert messages == ['--resize_px=30 is rounded to 28, whole patches of 14']
  assert {shape[0] for shape in seen} == {4}  # padded: a program for a size
  table, sizes = embedded.load(tmp_path / 'a.npz'), set()
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
  embedded.extract(model, folder, tmp_path / 'a.npz', choice)
  embedded.extract(model, folder, tmp_path / 'a.parquet', choice)
  table = embedded.load(tmp_path / 'a.npz')
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


@pytest.mark.parametrize('features', ['cls', 'patches'])
def test_parquet_holds_the_same(model, folder, tmp_path, features):
  choice = embedding.Choice(features, resize_px=32, crop_px=28)
  (folder / 'a' / 'bad.jpg').write_bytes(b'')
  embedded.extract(model, folder, tmp_path / 'a.npz', choice)
  embedded.extract(model, folder, tmp_path / 'a.parquet', choice)
  table = embedded.load(tmp_path / 'a.npz')
  rows = parquet(tmp_path / 'a.parquet')
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


def test_rows_do_not_depend_on_batches_shards_and_devices(
    model, weights, folder, tmp_path):
  many = backbone_lib.Backbone.of(store.load(str(weights)), mesh_lib.make())
  runs = [(model, embedded.CROP, {}), (many, embedded.CROP, {}),
          (model, embedded.CROP, {'batch_size': 3, 'num_threads': 7}),
          (model, embedded.WHOLE, {'images_per_shard': 11}),
          (model, embedded.WHOLE, {'images_per_shard': 5, 'num_threads': 1})]
  first = {}
  for i, (backbone, choice, kwargs) in enumerate(runs):
    embedded.extract(backbone, folder, tmp_path / f'{i}.npz', choice, **kwargs)
    table = embedded.load(tmp_path / f'{i}.npz')
    same = first.setdefault(choice, table)
    assert table['names'].tolist() == same['names'].tolist()
    np.testing.assert_allclose(
        table['features'], same['features'], atol=1e-5)


def test_bad_images_are_listed_and_change_no_other(model, folder, tmp_path):
  embedded.extract(model, folder, tmp_path / 'a.npz')
  whole = (folder / 'a' / '00.png').read_bytes()
  (folder / 'a' / '0.png').write_bytes(whole[:len(whole) // 2])
  (folder / 'b' / 'text.jpg').write_bytes(b'not an image')
  Image.new('RGB', (200_000, 1)).save(folder / 'b' / 'thin.png')
  for i in range(4):  # a shard without one image
    (folder / f'z{i}.jpg').write_bytes(b'')
  result = embedded.extract(model, folder, tmp_path / 'b.npz')
  before, after = (embedded.load(tmp_path / f'{name}.npz') for name in 'ab')
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
    embedded.extract(model, tmp_path / 'images', tmp_path / 'a.npz')
  assert os.listdir(tmp_path) == ['images']


def test_features_that_are_not_finite_are_an_error(folder, tmp_path):
  usual = cases.weights(embedded.CONFIG, seed=0)
  norm = usual.params['norm']
  big = dataclasses.replace(usual, params=usual.params | {
      'norm': norm | {'scale': norm['scale'] * 1e6}})
  choice = embedding.Choice(resize_px=32, crop_px=28, dtype='float16')
  with pytest.raises(errors.UserError, match=r'10.png.*--dtype=float32'):
    embedded.extract(
        backbone_lib.Backbone.of(big), folder, tmp_path / 'a.npz', choice)


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
    code, output = forked.run(
        ['--compile_cache=', *(
            f'--{key}={value}' for key, value in (base | flags).items())],
        module='dinojax.commands.embed', JAX_PLATFORMS='cpu')
    assert code == 2, output
    line, = (line for line in output.splitlines() if 'error:' in line)
    assert text in line
  assert sorted(os.listdir(tmp_path)) == ['file']


@pytest.mark.parametrize('sizes, text', [
    (dict(crop_px=225, resize_px=300), 'set it to 224 or 238'),
    (dict(crop_px=5), 'set it to 14'),
    (dict(crop_px=280), 'set --resize_px=280 or more')])
def test_crops_that_do_not_fit_are_refused(sizes, text):
  with pytest.raises(errors.UserError, match=text):
    embedding.Choice(**sizes).check(embedded.CONFIG)


def test_crops_much_larger_than_those_of_training_are_said():
  remarks = lambda config, **sizes: list(
      preprocessing.Preprocessing(**sizes).remarks(config))
  assert not remarks(embedded.CONFIG, crop_px=56)
  remark, = remarks(embedded.CONFIG)
  assert 'learned at 56' in remark and '--crop_px=56 --resize_px=64' in remark
  assert not remarks(embedded.CONFIG, resize_px=252, crop_px=None)
  # RoPE is for every size: its image_px says nothing of training.
  rope = dataclasses.replace(embedded.CONFIG, position='rope')
  assert not remarks(rope)
