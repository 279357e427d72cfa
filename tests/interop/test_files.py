"""Weight files that are damaged, unusual or not weight files: a sentence."""

import io
import json
import os
import pickle
import zipfile

import jax
import numpy as np
import pytest

from dinojax.core import errors
from dinojax.interop import files
from dinojax.interop import reading
from dinojax.interop import store
from dinojax.interop import writing
from tests.fuzz import weights as tiny

try:
  import torch
except ImportError:
  torch = None
needs_torch = pytest.mark.torch


@pytest.fixture(scope='module')
def state():
  return writing.meta_state(tiny.tiny(tiny.CONFIG))


def refuse(path, *texts, **options):
  with pytest.raises(errors.UserError) as caught:
    reading.read(str(path), **options)
  message = str(caught.value)
  for text in (path.name, *texts):
    assert text in message, message
  return message


@pytest.mark.parametrize(('data', 'text'), [
    (b'', 'an empty file'),
    (b'epoch 1 loss 2\nepoch 2', "text, not weights: it begins with 'epoch 1"),
    ('Größe\n'.encode() * 900, 'text, not weights'),
    (b'\n<!DOCTYPE html>\n<html></html>', 'a web page'),
    (b'version https://git-lfs.github.com/spec/v1\n', 'git lfs pull'),
    (b'\x1f\x8b\x08\x00rest', 'compressed by gzip'),
    (b'\x89HDF\r\n\x1a\n', 'an HDF5 file')])
@pytest.mark.parametrize('name', ['a.pth', 'a.safetensors'])
def test_what_is_no_weight_file_is_said_to_be_what_it_is(
    tmp_path, name, data, text):
  (tmp_path / name).write_bytes(data)
  refuse(tmp_path / name, text)


def test_a_safetensors_file_of_another_name(tmp_path, state):
  files.write_safetensors(str(tmp_path / 'a.pth'), state)
  refuse(tmp_path / 'a.pth', 'rename it to .safetensors')


def test_a_folder_with_a_file_of_another_name(tmp_path, state):
  refuse(tmp_path, 'give the folder of a model')
  files.write_safetensors(str(tmp_path / 'b.safetensors'), state)
  refuse(tmp_path, f'such as {tmp_path}/b.safetensors')


def raw_safetensors(header: dict, size: int) -> bytes:
  text = json.dumps(header).encode()
  return len(text).to_bytes(8, 'little') + text + bytes(size)


def test_dtypes_that_are_not_read_are_named(tmp_path, state):
  path = tmp_path / 'a.safetensors'
  for dtype, size in (('F8_E4M3', 4), ('F8_E5M2', 4)):
    path.write_bytes(raw_safetensors({'scale': {
        'dtype': dtype, 'shape': [4], 'data_offsets': [0, size]}}, size))
    refuse(path, "'scale'", dtype)
  whole = state | {'norm.bias': np.zeros(8, np.int8)}
  files.write_safetensors(str(path), whole)
  refuse(path, '1 not of floats: norm.bias int8', num_heads=2)


@pytest.mark.parametrize('name', ['\x1b[2Jnorm', 'a\nb', 'x' * 501])
def test_names_that_would_write_to_a_terminal(tmp_path, state, name):
  path = tmp_path / 'a.safetensors'
  files.write_safetensors(str(path), state | {name: state['norm.bias']})
  message = refuse(path, 'named', num_heads=2)
  assert message.isprintable() and len(message) < 300


@pytest.mark.parametrize(('index', 'text'), [
    ('{', 'not JSON'), ('', 'not JSON'), ('\xff', 'not JSON'),
    ('[' * 5000, 'not JSON'), ('[]', 'should be a JSON object'),
    ('{}', 'lacks weight_map'), ('{"weight_map": 3}', 'weight_map=3'),
    ('{"weight_map": {}}', 'weight_map={}'),
    ('{"weight_map": {"a": 1}}', 'names 1'),
    ('{"weight_map": {"a": ".."}}', "names '..'"),
    ('{"weight_map": {"a": "../b.safetensors"}}', 'same folder'),
    ('{"weight_map": {"a": "b\\u0000.safetensors"}}', 'same folder'),
    ('{"weight_map": {"a": "b.safetensors"}}', 'not in the folder')])
def test_an_index_of_shards(tmp_path, index, text):
  path = tmp_path / 'model.safetensors.index.json'
  path.write_bytes(index.encode('latin-1'))
  with pytest.raises(errors.UserError, match='index.json') as caught:
    reading.read(str(tmp_path))
  assert text in str(caught.value)


def hf_folder(place, **changes):
  writing.write(str(place), tiny.tiny(tiny.CONFIG), 'hf')
  path = place / 'config.json'
  values = json.loads(path.read_text()) | changes
  path.write_text(json.dumps(
      {key: value for key, value in values.items() if value is not ...}))
  return place


@pytest.mark.parametrize(('key', 'value'), [
    ('hidden_size', '8'), ('hidden_size', 0), ('hidden_size', True),
    ('num_hidden_layers', 10**9), ('num_attention_heads', 3),
    ('num_attention_heads', 1.5), ('patch_size', 0), ('patch_size', [2, 3]),
    ('image_size', None), ('image_size', 1), ('image_size', [4]),
    ('layer_norm_eps', float('nan')), ('layer_norm_eps', ...),
    ('mlp_ratio', 1e300), ('use_swiglu_ffn', 1), ('qkv_bias', 'yes'),
    ('layerscale_value', -1), ('num_channels', 10**30)])
def test_a_config_no_model_can_have(tmp_path, key, value):
  message = refuse(hf_folder(tmp_path / 'm', **{key: value}))
  shown = {'num_attention_heads': 'num_heads', 'image_size': 'image_'}
  assert key in message or shown.get(key, key) in message, message


def test_pixels_of_another_number_of_channels(tmp_path):
  place = hf_folder(tmp_path / 'm')
  (place / 'preprocessor_config.json').write_text(
      '{"image_mean": [0.5], "image_std": [0.5]}')
  with pytest.raises(errors.UserError, match='1 numbers.*3 channels'):
    reading.read(str(place))


def smooth(rows, columns, width=8):
  """[1, 1 + rows·columns, width] positions that depend on where they are."""
  y, x = np.meshgrid(np.linspace(-1, 1, rows), np.linspace(-1, 1, columns),
                     indexing='ij')
  table = np.stack([y, x] * (width // 2), -1).reshape(1, -1, width)
  return np.concatenate([np.zeros((1, 1, width)), table], 1).astype(np.float32)


@pytest.mark.parametrize('grid', [(9, 16), (2, 8), (5, 6)])
def test_positions_of_a_grid_that_is_not_square(tmp_path, grid):
  """9 × 16 positions are not 12 × 12, although their number is 144."""
  place = hf_folder(tmp_path / 'm', image_size=[2 * n for n in grid])
  state = files.read(str(place))
  state['embeddings.position_embeddings'] = smooth(*grid)
  files.write_safetensors(str(place / 'model.safetensors'), state)
  with pytest.raises(errors.UserError, match=f'{grid[0]} × {grid[1]} patches'):
    reading.read(str(place))
  weights = reading.read(str(place), image_px=24)
  assert weights.config.image_px == 24
  table = weights.params['pos_embed'][1:].reshape(12, 12, 8)
  inner = slice(2, -2)  # cubic interpolation of a ramp is one but at edges
  np.testing.assert_allclose(
      np.diff(table[inner, inner, 0], axis=1), 0, atol=1e-5)
  np.testing.assert_allclose(
      np.diff(table[inner, inner, 1], axis=0), 0, atol=1e-5)
  assert (np.diff(table[inner, inner, 0], axis=0) > 0.05).all()
  with pytest.raises(errors.UserError, match='set it to 4'):
    reading.read(str(place), image_px=5)
  state['embeddings.position_embeddings'] = smooth(3, 3)
  files.write_safetensors(str(place / 'model.safetensors'), state)
  with pytest.raises(errors.UserError, match='not of one model'):
    reading.read(str(place), image_px=24)


def test_square_sides_may_be_written_twice(tmp_path):
  place = hf_folder(tmp_path / 'm', image_size=[4, 4], patch_size=[2, 2])
  assert reading.read(str(place)).config.image_px == 4


def test_positions_that_cannot_be_square_in_a_file_alone(tmp_path, state):
  files.write_safetensors(
      str(tmp_path / 'a.safetensors'), state | {'pos_embed': smooth(5, 6)})
  refuse(tmp_path / 'a.safetensors', '30 patches', num_heads=2)


@pytest.mark.parametrize('contents', [
    {'model_args': {'img_size': [18, 32]}},
    {'pretrained_cfg': {'input_size': [3, 18, 32]}}])
def test_a_folder_of_timm_says_that_it_is_not_square(tmp_path, state, contents):
  timm = {k: v for k, v in state.items() if k != 'mask_token'}
  path = tmp_path / 'model.safetensors'
  files.write_safetensors(str(path), timm)
  cfg = {'mean': [0.1, 0.2, 0.3], 'std': [1, 2, 3], 'input_size': [3, 4, 4]}
  config = tmp_path / 'config.json'
  config.write_text(json.dumps({'pretrained_cfg': cfg}))
  assert reading.read(str(tmp_path), num_heads=2).std == (1, 2, 3)
  config.write_text(json.dumps(contents))
  with pytest.raises(errors.UserError, match='not square'):
    reading.read(str(tmp_path), num_heads=2)


def test_modes_follow_the_umask(tmp_path):
  weights = tiny.tiny(tiny.CONFIG)
  before = os.umask(0o027)
  try:
    store.save(str(tmp_path / 'ours'), weights)
    store.save(str(tmp_path / 'ours'), weights)  # and in place of another
    for kind in ('meta', 'hf', 'timm'):
      writing.write(str(tmp_path / kind), weights, kind)
  finally:
    os.umask(before)
  modes = {path.name: oct(path.stat().st_mode & 0o777)
           for path in tmp_path.rglob('*.*')}
  # And a .pth where PyTorch is installed.
  assert len(modes) >= 5 and set(modes.values()) == {'0o640'}, modes


def test_our_own_folder_of_an_object_store(tmp_path, monkeypatch):
  """Its files are fetched; a disk that is no disk stands for the store."""
  weights = tiny.tiny(tiny.CONFIG)
  store.save(str(tmp_path), weights)
  monkeypatch.setattr(store.atomic, 'is_local', lambda path: False)
  monkeypatch.setattr(store.files, 'read', lambda path, read=store.files.read: (
      read(path) if str(tmp_path) not in path else pytest.fail('not fetched')))
  loaded = store.load(str(tmp_path))
  assert loaded.config == weights.config
  jax.tree.map(np.testing.assert_array_equal, loaded.params, weights.params)


@pytest.mark.parametrize(('change', 'text'), [
    ('[]', 'JSON object'), ({'version': 2}, 'version 2'),
    ({'kind': []}, 'kind []'), ({'config': 3}, 'config is 3'),
    ({'config': {'depth': 1}}, 'missing'), ({'mean': [0, 'a', 1]}, 'mean='),
    ({'heads': []}, 'heads'), ({'heads': {'dino_head': {}}}, 'missing'),
    ({'family': None}, 'family=None')])
def test_our_own_folder_with_a_changed_description(tmp_path, change, text):
  store.save(str(tmp_path), tiny.tiny(tiny.CONFIG))
  path = tmp_path / store.DESCRIPTION
  path.write_text(change if isinstance(change, str) else json.dumps(
      json.loads(path.read_text()) | change))
  with pytest.raises(errors.UserError, match=store.DESCRIPTION) as caught:
    store.load(str(tmp_path))
  assert text in str(caught.value)


@needs_torch
@pytest.mark.parametrize(('extra', 'text'), [
    (lambda: torch.zeros(3).to_sparse(), 'a sparse tensor'),
    (lambda: torch.zeros(3, device='meta'), 'without values'),
    (lambda: torch.zeros(3).to(torch.float8_e4m3fn), 'float8_e4m3fn'),
    (lambda: torch.zeros(3, dtype=torch.complex64), 'complex64'),
    (lambda: torch.zeros(1).expand(10**6), 'more than the file can hold')])
def test_tensors_of_other_kinds_are_named(tmp_path, state, extra, text):
  tensors = {key: torch.from_numpy(value) for key, value in state.items()}
  torch.save(tensors | {'the_extra': extra()}, tmp_path / 'a.pth')
  refuse(tmp_path / 'a.pth', "'the_extra'", text)


@needs_torch
def test_contents_that_are_no_state_dict(tmp_path):
  path = tmp_path / 'a.pth'
  for content in ([torch.zeros(1)], {}, 3, torch.zeros(2), {'lr': 0.1}):
    torch.save(content, path)
    refuse(path, 'is not a state dict')
  torch.save({1: torch.zeros(1)}, path)
  refuse(path, 'its tensors begin with 1')
  path.write_bytes(b'\x80\x02' + b'(' * 20_000 + b'.')
  refuse(path, 'damaged')


@needs_torch
def test_an_archive_that_grows_is_not_opened(tmp_path, state):
  data = io.BytesIO()
  torch.save({key: torch.from_numpy(v) for key, v in state.items()}, data)
  with zipfile.ZipFile(data) as old, zipfile.ZipFile(
      tmp_path / 'a.pth', 'w', zipfile.ZIP_DEFLATED) as new:
    for name in old.namelist():
      new.writestr(name, old.read(name))
    new.writestr('archive/data/zeros', bytes(2**26 + 2**20))
  refuse(tmp_path / 'a.pth', 'made to fill the memory')


class Evil:
  """A pickle that runs a command when it is opened without care."""

  def __init__(self, path):
    self.path = str(path)

  def __reduce__(self):
    return os.system, (f'touch {self.path}',)


@needs_torch
@pytest.mark.parametrize('name', [
    'new.pth', 'old.pth', 'raw.pt', 'a.npz', 'module.pth', 'ascii.pt'])
def test_no_code_is_run(tmp_path, name):
  evil, path = Evil(tmp_path / 'was_run'), tmp_path / name
  if name == 'a.npz':
    np.savez(path, a=np.array([evil], object))
  elif name in ('raw.pt', 'ascii.pt'):
    path.write_bytes(pickle.dumps(evil, 0 if name == 'ascii.pt' else 4))
  elif name == 'module.pth':
    module = torch.nn.Linear(1, 1)
    module.evil = evil
    torch.save(module, path)
  else:
    torch.save({'a': evil}, path,
               _use_new_zipfile_serialization=name == 'new.pth')
  refuse(path)
  assert not (tmp_path / 'was_run').exists()
  pickle.loads(pickle.dumps(evil))  # it is what it says
  assert (tmp_path / 'was_run').exists()
