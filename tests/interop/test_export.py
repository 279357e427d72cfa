"""Written files open in the libraries they are for, and give our features."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from bench import peers
from dinojax.core import errors
from dinojax.features import backbone as backbone_lib
from dinojax.interop import files
from dinojax.interop import reading
from dinojax.interop import timm
from dinojax.interop import writing
from dinojax.models import convnext
from dinojax.models import vit
from tests.interop import cases

try:
  import torch
except ImportError:
  torch = None  # TORCH=0 leaves these tests out and says so
pytestmark = pytest.mark.torch

def nchw(x):
  return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def tokens(features):
  return np.concatenate(
      [features.cls[:, None], features.registers, features.patches], axis=1)


@pytest.mark.parametrize('name', [*cases.MODELS, *(
    pytest.param(name, marks=pytest.mark.slow)
    for name in ('v3_bare', 'v3_geglu'))])
def test_transformers_opens_the_folder(name, tmp_path):
  config = (cases.MODELS | {'v3_bare': cases.V3_BARE,
                            'v3_geglu': cases.V3_GEGLU})[name]
  written = cases.weights(config)
  sentences = writing.write(str(tmp_path), written, 'hf')
  assert 'tensors' in sentences[0]
  transformers = peers.transformers()
  theirs, report = transformers.AutoModel.from_pretrained(
      tmp_path, local_files_only=True, output_loading_info=True)
  assert not report['missing_keys'] and not report['unexpected_keys']
  theirs.eval()
  ours = backbone_lib.Backbone.of(written)
  for sides in ((4, 4), (3, 5)):
    x = cases.images(config, sides)
    kwargs = {'interpolate_pos_encoding': True} if name == 'v2' else {}
    with torch.no_grad():
      want = theirs(nchw(x), **kwargs).last_hidden_state.numpy()
    np.testing.assert_allclose(
        tokens(ours(x)), want, rtol=1e-4, atol=1e-4)
  processor = transformers.AutoImageProcessor.from_pretrained(
      tmp_path, local_files_only=True)
  assert processor.crop_size['height'] == 224


@pytest.mark.parametrize('name', ['v2', 'v2_registers', 'v3', 'v3_swiglu'])
def test_a_block_of_transformers_gives_ours(name, tmp_path):
  config = cases.MODELS[name]
  written = cases.weights(config)
  writing.write(str(tmp_path), written, 'hf')
  theirs = peers.transformers().AutoModel.from_pretrained(
      tmp_path, local_files_only=True).eval()
  x = cases.images(config, (4, 4))
  with torch.no_grad():
    want = theirs(nchw(x), output_hidden_states=True).hidden_states[1].numpy()
  first = backbone_lib.Backbone.of(written).intermediate(x, [0], norm=False)[0]
  np.testing.assert_allclose(tokens(first), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', cases.MODELS)
def test_timm_loads_the_state_dict(name, tmp_path):
  config = cases.MODELS[name]
  written = cases.weights(config)
  sentences = writing.write(str(tmp_path), written, 'timm')
  state = files.read(str(tmp_path / 'model.safetensors'))
  architecture, options = timm.architecture(config, state)
  assert f'timm.create_model({architecture!r}, num_classes=0, ' in sentences[0]
  theirs = peers.timm().create_model(
      architecture, num_classes=0, **options).eval()
  theirs.load_state_dict(
      {key: torch.from_numpy(value) for key, value in state.items()})
  x = cases.images(config, (4, 4))
  with torch.no_grad():
    want = theirs.forward_features(nchw(x)).numpy()
  got = backbone_lib.Backbone.of(written)(x)
  if isinstance(config, vit.ViTConfig):
    np.testing.assert_allclose(tokens(got), want, rtol=1e-4, atol=1e-4)
  else:
    with torch.no_grad():
      want = theirs(nchw(x)).numpy()
    np.testing.assert_allclose(got.cls, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('kind', ['hf', 'timm'])
@pytest.mark.parametrize('name', cases.MODELS)
def test_features_survive_the_trip(name, kind, tmp_path):
  config = cases.MODELS[name]
  written = cases.weights(config)
  writing.write(str(tmp_path), written, kind)
  path = tmp_path if kind == 'hf' else tmp_path / 'model.safetensors'
  again = backbone_lib.Backbone.of(reading.read(
      str(path), num_heads=getattr(config, 'num_heads', None)))
  x = cases.images(config, (4, 4))
  np.testing.assert_allclose(
      tokens(again(x)), tokens(backbone_lib.Backbone.of(written)(x)), atol=1e-6)


@pytest.mark.parametrize('name', cases.MODELS)
def test_meta_files_come_back_as_they_went(name, tmp_path):
  written = cases.weights(cases.MODELS[name])
  writing.write(str(tmp_path), written, 'meta')
  heads = getattr(cases.MODELS[name], 'num_heads', None)
  for file in ('backbone.pth', 'backbone.safetensors', ''):  # the folder
    again = reading.read(str(tmp_path / file), num_heads=heads)
    jax.tree.map(np.testing.assert_array_equal, again.params, written.params)
    assert type(again.config) is type(written.config)
  assert set(writing.meta_state(again)) == set(writing.meta_state(written))


@pytest.mark.parametrize('kind', ['hf', 'timm'])
def test_a_bias_of_keys_is_refused_unless_asked(kind, tmp_path):
  written = cases.weights(dataclasses.replace(cases.V3, mask_k_bias=False))
  with pytest.raises(errors.UserError, match='--lossy'):
    writing.write(str(tmp_path), written, kind)
  sentences = writing.write(str(tmp_path), written, kind, lossy=True)
  assert any('left out' in text and re.search(r'k_(proj\.)?bias', text)
             for text in sentences)


def test_what_a_library_lacks_is_refused(tmp_path):
  with pytest.raises(errors.UserError, match='norm='):
    writing.write(str(tmp_path), cases.weights(
        dataclasses.replace(cases.V3, norm='rmsnorm')), 'hf')
  for options in (dict(norm='rmsnorm'), dict(untie_cls_and_patch_norms=True)):
    with pytest.raises(errors.UserError, match=f'{list(options)[0]}='):
      writing.write(str(tmp_path), cases.weights(
          dataclasses.replace(cases.V3, **options)), 'timm')
  with pytest.raises(errors.UserError, match='--format=jpeg'):
    writing.write(str(tmp_path), cases.weights(cases.V3), 'jpeg')


@pytest.mark.parametrize('kind', ['hf', 'timm'])
def test_a_norm_of_local_crops_is_refused_unless_asked(kind, tmp_path):
  written = cases.weights(dataclasses.replace(
      cases.V3, untie_global_and_local_cls_norm=True))
  with pytest.raises(errors.UserError, match='local_cls_norm.*--lossy'):
    writing.write(str(tmp_path), written, kind)
  sentences = writing.write(str(tmp_path), written, kind, lossy=True)
  assert any('local_cls_norm.weight' in text for text in sentences)
  assert not any(key.startswith('local_cls_norm') for key in files.read(
      str(tmp_path / 'model.safetensors')))


def test_an_image_size_is_for_programs(tmp_path):
  with pytest.raises(errors.UserError, match='image_px=64 is for programs'):
    writing.write(str(tmp_path), cases.weights(cases.V3), 'meta', image_px=64)


@pytest.mark.parametrize('config, name', [
    (vit.ViTConfig(384, 12, 6, 14), 'vit_small_patch14_dinov2'),
    (vit.ViTConfig(1024, 24, 16, 16, position='rope', num_registers=4),
     'vit_large_patch16_dinov3'),
    (convnext.ConvNeXtConfig((3, 3, 27, 3), (128, 256, 512, 1024)),
     'convnext_base.dinov3_lvd1689m')])
def test_timm_names_of_published_sizes(config, name):
  assert timm.model_name(config, {}) == name
  assert timm.architecture(config, {})[0] == name


@pytest.mark.parametrize('config', [
    vit.ViTConfig(384, 12, 6, 16),  # DINOv2 has patches of 14 only
    vit.ViTConfig(384, 12, 6, 14, ffn='swiglu'),
    vit.ViTConfig(1280, 32, 20, 16, position='rope', num_registers=4),
    vit.ViTConfig(384, 12, 6, 16, position='rope')])
def test_timm_has_no_name_for_the_rest(config):
  with pytest.raises(errors.UserError, match='no DINO model of this size'):
    timm.model_name(config, {})
  assert timm.architecture(config, {})[1]['embed_dim'] == config.embed_dim
