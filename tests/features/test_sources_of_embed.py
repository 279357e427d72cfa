"""Embedding: what is written of odd sources, without running a network."""

import csv
import os
import types

import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from dinojax.core import errors
from dinojax.data import sources
from dinojax.features import embedding
from dinojax.features import stream
from dinojax.features import tables
from dinojax.models import vit
from dinojax.parallel import mesh as mesh_lib

CHOICE = embedding.Choice(resize_px=14, crop_px=14)


def means(images, specs, pixels, reduce):
  """Channel means and a third, as float32."""
  del specs, pixels, reduce
  return jnp.asarray(np.concatenate(
      [np.asarray(images).mean((1, 2)), np.full((len(images), 1), 1 / 3)], 1),
      jnp.float32)


MODEL = types.SimpleNamespace(
    config=vit.ViTConfig(48, 2, 2, 14, image_px=28), mean=(0,), std=(1,),
    value_range=(), params={'w': np.zeros(3)},
    mesh=mesh_lib.make(devices=mesh_lib.one_device()),
    run=means)


@pytest.fixture
def folder(tmp_path):
  for i, name in enumerate(('ant/0.png', 'bee/1, "x".png', 'bee/2.png',
                            'loose.png', 'zoo/3.png')):
    path = tmp_path / 'images' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (20, 20), (40 * i, 0, 9)).save(path)
  return tmp_path / 'images'


def extract(folder, out, **kwargs):
  progress = {name: kwargs.pop(name) for name in ('progress', 'say')
              if name in kwargs}
  return embedding.embed(
      MODEL, sources.open_source(str(folder)), str(out), CHOICE,
      reading=stream.Reading(2, **kwargs), images_per_shard=2, **progress)


def rows(path):
  with open(path, encoding='utf-8', newline='') as file:
    return list(csv.reader(file))


def test_csv_holds_what_npz_does(folder, tmp_path):
  (folder / 'bee' / 'bad.png').write_bytes(b'')
  os.rename(folder / 'zoo' / '3.png',
            os.fsencode(folder / 'zoo') + b'/caf\xe9.png')
  for end in ('npz', 'csv'):
    result = extract(folder, tmp_path / f'a.{end}')
    assert result == embedding.Result(5, [['bee/bad.png', 'empty file']])
  with np.load(tmp_path / 'a.npz') as file:
    npz = dict(file)
  head, *body = rows(tmp_path / 'a.csv')
  assert head == ['name', 'label', 'class', *(f'feature_{i}' for i in range(4))]
  assert [row[0] for row in body] == npz['names'].tolist()
  assert [int(row[1]) for row in body] == npz['labels'].tolist()
  assert [row[2] for row in body] == ['ant', 'bee', 'bee', '', 'zoo']
  assert r'zoo/caf\udce9.png' in npz['names']
  np.testing.assert_array_equal(
      np.array([row[3:] for row in body], np.float32), npz['features'])
  assert tables.summary(str(tmp_path / 'a.csv')) == (5, result.bad)
  messages = []
  extract(folder, tmp_path / 'a.csv', say=messages.append)
  assert 'is complete' in messages[0]


def test_csv_without_labels_and_of_patches(folder, tmp_path):
  extract(folder / 'loose.png', tmp_path / 'one.csv')
  assert rows(tmp_path / 'one.csv')[0][:2] == ['name', 'feature_0']
  assert rows(tmp_path / 'one.csv')[1][0] == 'loose.png'
  with pytest.raises(errors.UserError, match='npz or .parquet'):
    tables.check('a.csv', 'patches')


@pytest.mark.parametrize('end', ['npz', 'csv', 'parquet'])
@pytest.mark.parametrize('junk', [b'', b'x' * 99])
def test_a_damaged_table_is_not_ours(folder, tmp_path, end, junk):
  out = tmp_path / f'a.{end}'
  extract(folder, out)
  for path in tmp_path.glob('a.*'):
    path.write_bytes(junk)
  with pytest.raises(errors.UserError, match='not written by'):
    extract(folder, out)


class Stop(Exception):
  pass


@pytest.mark.parametrize('finished', [False, True])
def test_other_images_are_noticed_in_every_shard(folder, tmp_path, finished):
  def stop(done):
    if done >= 4 and not finished:
      raise Stop

  out = tmp_path / 'a.npz'
  try:
    extract(folder, out, progress=stop)
  except Stop:
    pass
  # In the first shard, where the last one's names are as they were.
  (folder / 'ant' / '0.png').write_bytes(b'another image')
  for _ in range(2):  # the second time as the first
    with pytest.raises(errors.UserError, match='made of other images'):
      extract(folder, out)


@pytest.mark.parametrize('whose', ['given', 'of the model'])
def test_limit_and_range_reach_the_images(tmp_path, monkeypatch, whose):
  grey = np.linspace(0, 4095, 400).reshape(20, 20).astype(np.uint16)
  Image.fromarray(grey).save(tmp_path / 'a.png')
  Image.new('RGB', (40, 40)).save(tmp_path / 'b.png')
  given = {'value_range': (0, 4095)}
  if whose == 'of the model':
    monkeypatch.setattr(MODEL, 'value_range', given.pop('value_range'))
  result = extract(tmp_path, tmp_path / 'f.npz', max_pixels=500, **given)
  assert 'data.max_pixels=500' in dict(result.bad)['b.png']
  with np.load(tmp_path / 'f.npz') as file:
    assert 100 < file['features'][0, 0] < 155
  with pytest.raises(errors.UserError, match='max_pixels was 500'):
    extract(tmp_path, tmp_path / 'f.npz', value_range=(0, 4095))
