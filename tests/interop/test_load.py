"""`dinojax.load`: any file to features, and a clear no to bad ones."""

import dataclasses
import json
import pickle
import sys

import jax
import numpy as np
import pytest

import dinojax
from dinojax.core import errors
from dinojax.interop import files
from dinojax.interop import reading
from dinojax.interop import store
from dinojax.interop import writing
from tests import golden

try:
  import torch
except ImportError:
  torch = None  # TORCH=0 leaves these tests out and says so
pytestmark = pytest.mark.torch


def nhwc(images):
  return images.transpose(0, 2, 3, 1)


def tokens(features):
  return np.concatenate([features.cls[:, None], features.registers,
                         features.patches], axis=1)


def save_torch(path, state, nest=None):
  state = {k: torch.from_numpy(np.asarray(v)) for k, v in state.items()}
  torch.save({nest: state} if nest else state, path)


@pytest.fixture
def meta_case():
  return golden.load('v2_vit_p14_mlp')


def heads(case):
  return case.meta['config']['num_heads']


@pytest.mark.parametrize('kind', ['hub', 'prefixed', 'safetensors', 'chunked'])
def test_meta_files_in_three_lines(meta_case, tmp_path, kind):
  state = meta_case.weights['']
  path = tmp_path / ('a.safetensors' if kind == 'safetensors' else 'a.pth')
  if kind == 'safetensors':
    files.write_safetensors(str(path), state)
  elif kind == 'hub':
    save_torch(path, state)
  else:
    if kind == 'chunked':
      state = {k.replace('blocks.', 'blocks.0.'): v for k, v in state.items()}
    save_torch(path, {f'backbone.{k}': v for k, v in state.items()},
               'teacher')
  model = dinojax.load(str(path), num_heads=heads(meta_case))
  out = model(nhwc(meta_case.inputs['x']))
  meta_case.check('base/x_norm_clstoken', out.cls, rtol=1e-4, atol=1e-5)
  meta_case.check('base/x_norm_patchtokens', out.patches, rtol=1e-4,
                  atol=1e-5)


@pytest.mark.parametrize('name', [
    'train_v2_sinkhorn_separate_heads', 'train_v2_centering_shared_head',
    'train_v3_distill'])
def test_training_checkpoints_keep_their_heads(tmp_path, name):
  case = golden.load(name)
  state = case.weights['teacher0']
  save_torch(tmp_path / 'teacher_checkpoint.pth', state, 'teacher')
  weights = reading.read(str(tmp_path / 'teacher_checkpoint.pth'),
                         num_heads=case.meta['calls']['arch']['num_heads'])
  assert set(weights.heads) == {
      key.split('.')[0] for key in state} - {'backbone'}
  head, section = weights.heads['dino_head'], case.meta['config']['dino']
  assert head.config.num_prototypes == section['head_n_prototypes']
  assert head.config.weight_norm == name.startswith('train_v2')
  # Through our own folder and out again, no bit changes.
  store.save(str(tmp_path / 'own'), weights)
  again = store.load(str(tmp_path / 'own'))
  assert again.heads['dino_head'].config == head.config
  writing.write(str(tmp_path / 'out'), again, 'meta')
  written = files.read(str(tmp_path / 'out' / 'teacher_checkpoint.pth'))
  assert written.keys() == state.keys()
  for key, value in state.items():
    np.testing.assert_array_equal(written[key], value, err_msg=key)


def test_half_a_head_is_refused(meta_case, tmp_path):
  state = {f'backbone.{k}': v for k, v in meta_case.weights[''].items()}
  save_torch(tmp_path / 'a.pth', state | {
      'dino_head.mlp.0.weight': np.zeros((2, 2), np.float32)})
  with pytest.raises(errors.UserError, match='no last_layer.weight'):
    dinojax.load(str(tmp_path / 'a.pth'), num_heads=heads(meta_case))


def test_rounded_periods_are_kept_or_not(tmp_path):
  case = golden.load('v3_vit_p16_mlp_reg4_maskk')
  state = dict(case.weights[''])
  exact = state['rope_embed.periods']
  rounded = np.asarray(jax.numpy.asarray(exact, 'bfloat16'), np.float32)
  state['rope_embed.periods'] = rounded
  path = str(tmp_path / 'a.safetensors')
  files.write_safetensors(path, state)
  load = lambda **options: dinojax.load(path, num_heads=heads(case), **options)
  images = nhwc(case.inputs['x'])
  kept, replaced = load()(images).cls, load(exact_periods=True)(images).cls
  case.check('base/x_norm_clstoken', replaced, rtol=1e-4, atol=1e-4)
  assert 1e-5 < np.abs(kept - replaced).max() < 0.1
  weights = reading.read(path, num_heads=heads(case))
  written = writing.meta_state(weights)
  np.testing.assert_array_equal(written['rope_embed.periods'], rounded)
  sentences = writing.write(str(tmp_path / 'hf'), dataclasses.replace(
      weights, params=no_bias_of_keys(weights)), 'hf')
  assert any('float32' in text for text in sentences)


def no_bias_of_keys(weights):
  params = jax.tree.map(np.copy, weights.params)
  d = weights.config.embed_dim
  params['blocks']['attn']['qkv']['bias'][:, d:2 * d] = 0
  return params


def test_names_of_the_hub(tmp_path, monkeypatch, capsys):
  import huggingface_hub  # comes with transformers
  from huggingface_hub import errors as hub_errors
  case = golden.load('hf_dinov2')
  files.write_safetensors(str(tmp_path / 'model.safetensors'),
                          case.weights[''])
  (tmp_path / 'config.json').write_text(json.dumps(case.meta['config']))
  (tmp_path / 'preprocessor_config.json').write_text(json.dumps(
      {'image_mean': [0.1, 0.2, 0.3], 'image_std': [1, 2, 3]}))
  calls = []

  def download(name, revision, allow_patterns, local_files_only=False):
    calls.append(local_files_only)
    assert (name, revision) == ('facebook/dinov2-tiny', None)
    assert set(allow_patterns) == {'*.safetensors', '*.json'}
    if local_files_only:
      raise hub_errors.LocalEntryNotFoundError('not in the cache')
    return str(tmp_path)

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
  model = dinojax.load('hf:facebook/dinov2-tiny')
  assert calls == [True, False]
  assert 'fetched from huggingface.co' in capsys.readouterr().out
  assert model.mean == (0.1, 0.2, 0.3)
  out = model(nhwc(case.inputs['pixel_values0']))
  case.check('s0/last_hidden_state', tokens(out), rtol=1e-4, atol=1e-5)

  def offline(name, revision, allow_patterns, local_files_only=False):
    raise hub_errors.LocalEntryNotFoundError('no connection')

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', offline)
  with pytest.raises(errors.UserError, match='could not be fetched'):
    dinojax.load('hf:facebook/dinov2-tiny')
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(errors.UserError, match='pip install huggingface_hub'):
    dinojax.load('hf:facebook/dinov2-tiny')
  with pytest.raises(errors.UserError, match='does not exist'):
    dinojax.load('weights/none.pth')


def test_transformers_folder(tmp_path):
  case = golden.load('hf_dinov3_vit')
  files.write_safetensors(str(tmp_path / 'model.safetensors'),
                          case.weights[''])
  (tmp_path / 'config.json').write_text(json.dumps(case.meta['config']))
  model = dinojax.load(str(tmp_path))
  for i in (0, 1):
    out = model(nhwc(case.inputs[f'pixel_values{i}']))
    case.check(f's{i}/last_hidden_state', tokens(out), rtol=1e-4, atol=1e-5)


def test_our_own_folder_gives_the_same_bits(meta_case, tmp_path):
  save_torch(tmp_path / 'a.pth', meta_case.weights[''])
  weights = reading.read(str(tmp_path / 'a.pth'), num_heads=heads(meta_case))
  store.save(str(tmp_path / 'own'), weights)
  again = store.load(str(tmp_path / 'own'))
  assert again.config == weights.config and again.family == 'meta'
  jax.tree.map(np.testing.assert_array_equal, again.params, weights.params)
  model = dinojax.load(str(tmp_path / 'own'))
  out = model(nhwc(meta_case.inputs['x']))
  meta_case.check('base/x_norm_clstoken', out.cls, rtol=1e-4, atol=1e-5)


def test_inner_layers_and_attention(meta_case, tmp_path):
  save_torch(tmp_path / 'a.pth', meta_case.weights[''])
  model = dinojax.load(str(tmp_path / 'a.pth'), num_heads=heads(meta_case))
  images = nhwc(meta_case.inputs['x'])
  last, = model.intermediate(images, 1, reshape=True)
  out = model(images)
  b, y, x, d = last.patches.shape
  np.testing.assert_allclose(
      last.patches.reshape(b, y * x, d), out.patches, atol=1e-5)
  maps = model.attention_maps(images)
  assert maps.shape == (b, heads(meta_case), 1 + y * x, 1 + y * x)
  np.testing.assert_allclose(maps.sum(-1), 1, atol=1e-5)
  with pytest.raises(errors.UserError, match='layers=99'):
    model.intermediate(images, 99)
  with pytest.raises(errors.UserError, match='whole patches of 14'):
    model(images[:, :50])


def test_positions_are_resampled_on_request(meta_case, tmp_path):
  save_torch(tmp_path / 'a.pth', meta_case.weights[''])
  load = lambda **kwargs: dinojax.load(
      str(tmp_path / 'a.pth'), num_heads=heads(meta_case), **kwargs)
  images = np.random.default_rng(0).normal(size=(1, 84, 84, 3))
  native, moved = load(), load(image_px=84)
  assert moved.params['pos_embed'].shape[0] == 1 + 36
  np.testing.assert_allclose(
      native(images).cls, moved(images).cls, atol=1e-5)
  with pytest.raises(errors.UserError, match='set it to 70'):
    load(image_px=80)


class Evil:
  """What a malicious file does when it is unpickled without care."""

  def __reduce__(self):
    return (eval, ("open('/tmp/dinojax_evil', 'w')",))


def test_a_malicious_pickle_is_not_run(tmp_path):
  path = tmp_path / 'evil.pth'
  torch.save({'a': Evil()}, path)
  with pytest.raises(errors.UserError, match='could run code'):
    dinojax.load(str(path))
  path.write_bytes(pickle.dumps(Evil()))
  with pytest.raises(errors.UserError, match='could run code|damaged'):
    dinojax.load(str(path))
  import os
  assert not os.path.exists('/tmp/dinojax_evil')


def test_bad_files_are_refused_in_a_sentence(meta_case, tmp_path):
  state, case_heads = meta_case.weights[''], heads(meta_case)

  def refuse(path, text, **kwargs):
    with pytest.raises(errors.UserError, match=text):
      dinojax.load(str(path), **kwargs)

  refuse(tmp_path / 'none.pth', 'does not exist')
  whole, cut = tmp_path / 'a.safetensors', tmp_path / 'cut.safetensors'
  files.write_safetensors(str(whole), state)
  cut.write_bytes(whole.read_bytes()[:-100])
  refuse(cut, 'damaged')
  (tmp_path / 'cut.pth').write_bytes(b'PK\x03\x04 nothing')
  refuse(tmp_path / 'cut.pth', 'damaged')
  files.write_safetensors(
      str(whole), {'conv1.weight': np.zeros((3, 3), np.float32)})
  refuse(whole, 'no DINOv2 or DINOv3 backbone')
  nan = dict(state) | {'norm.bias': state['norm.bias'] * np.nan}
  files.write_safetensors(str(whole), nan)
  refuse(whole, 'not finite: norm.bias', num_heads=case_heads)
  files.write_safetensors(str(whole), state)
  refuse(whole, 'num_heads')
  (tmp_path / 'model_0001.rank_0.pth').write_bytes(b'')
  refuse(tmp_path / 'model_0001.rank_0.pth', 'teacher_checkpoint.pth')
  (tmp_path / 'dcp').mkdir()
  (tmp_path / 'dcp' / '.metadata').write_bytes(b'')
  refuse(tmp_path / 'dcp', 'dcp_to_torch')


def test_preprocessing_equals_torchvision(tmp_path, meta_case):
  from PIL import Image

  from bench import peers
  t = peers.torchvision().transforms
  from dinojax.data import photos
  photo = Image.fromarray(photos.photograph('chelsea'))
  save_torch(tmp_path / 'a.pth', meta_case.weights[''])
  model = dinojax.load(str(tmp_path / 'a.pth'), num_heads=heads(meta_case))
  theirs = t.Compose([
      t.Resize(256, interpolation=t.InterpolationMode.BICUBIC),
      t.CenterCrop(224), t.ToTensor(),
      t.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])(photo)
  np.testing.assert_allclose(
      model.preprocess([photo])[0], nhwc(theirs[None].numpy())[0], atol=1e-6)
