"""Written files open in the libraries they are for, and give our features."""

import dataclasses

from flax import nnx
import jax
import numpy as np
import pytest

from bench import peers
from dinojax import model as model_lib
from dinojax.core import errors
from dinojax.interop import files
from dinojax.interop import reading
from dinojax.interop import timm
from dinojax.interop import writing
from dinojax.models import convnext
from dinojax.models import vit

try:
  import torch
except ImportError:
  torch = None  # TORCH=0 leaves these tests out and says so
pytestmark = pytest.mark.torch

V2 = vit.ViTConfig(
    48, 2, 2, 14, image_px=56, ffn_hidden=192, interpolate_offset=0.0)
V2_REG = dataclasses.replace(
    V2, num_registers=4, interpolate_antialias=True, ffn='swiglu',
    ffn_hidden=128)
V3 = vit.ViTConfig(
    48, 2, 2, 16, position='rope', num_registers=4, ffn_hidden=96,
    mask_k_bias=True, norm_epsilon=1e-5, rope_rescale=2.0)
V3_SWIGLU = dataclasses.replace(V3, ffn='swiglu', ffn_hidden=64)
CONVNEXT = convnext.ConvNeXtConfig((1, 1, 2, 1), (16, 24, 32, 48))
MODELS = {'v2': V2, 'v2_registers': V2_REG, 'v3': V3, 'v3_swiglu': V3_SWIGLU,
          'convnext': CONVNEXT}


def weights(config) -> reading.Weights:
  """Random parameters, none of them at its initial value."""
  module = vit.ViT if isinstance(config, vit.ViTConfig) else convnext.ConvNeXt
  params = nnx.to_pure_dict(nnx.state(
      module(config, rngs=nnx.Rngs(0)), nnx.Param))
  rng = np.random.default_rng(0)
  params = jax.tree.map(
      lambda x: np.asarray(x) + 0.05 * rng.normal(size=x.shape).astype(
          np.float32), params)
  if getattr(config, 'mask_k_bias', False):
    params['blocks']['attn']['qkv']['bias'][:, 48:96] = 0
  return reading.Weights(config, params, {}, 'meta')


def images(config, sides) -> np.ndarray:
  unit = getattr(config, 'patch_px', None) or 32
  return np.random.default_rng(1).normal(
      size=(2, sides[0] * unit, sides[1] * unit, 3)).astype(np.float32)


def nchw(x):
  return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def tokens(features):
  return np.concatenate(
      [features.cls[:, None], features.registers, features.patches], axis=1)


@pytest.mark.parametrize('name', MODELS)
def test_transformers_opens_the_folder(name, tmp_path):
  config = MODELS[name]
  written = weights(config)
  said = writing.write(str(tmp_path), written, 'hf')
  assert 'tensors' in said[0]
  transformers = peers.transformers()
  theirs, report = transformers.AutoModel.from_pretrained(
      tmp_path, local_files_only=True, output_loading_info=True)
  assert not report['missing_keys'] and not report['unexpected_keys']
  theirs.eval()
  ours = model_lib.Model(written)
  for sides in ((4, 4), (3, 5)):
    x = images(config, sides)
    kwargs = {'interpolate_pos_encoding': True} if name == 'v2' else {}
    with torch.no_grad():
      want = theirs(nchw(x), **kwargs).last_hidden_state.numpy()
    np.testing.assert_allclose(
        tokens(ours(x)), want, rtol=1e-4, atol=1e-4)
  processor = transformers.AutoImageProcessor.from_pretrained(
      tmp_path, local_files_only=True)
  assert processor.crop_size['height'] == 224


@pytest.mark.parametrize('name', MODELS)
def test_timm_loads_the_state_dict(name, tmp_path):
  config = MODELS[name]
  if name == 'v2_registers':
    config = dataclasses.replace(config, ffn='mlp', ffn_hidden=192)
  written = weights(config)
  writing.write(str(tmp_path), written, 'timm')
  state = files.read(str(tmp_path / 'model.safetensors'))
  package, kwargs = peers.timm(), {}
  if isinstance(config, vit.ViTConfig):
    kwargs = dict(embed_dim=48, depth=2, num_heads=2, img_size=(
        56 if config.position == 'learned' else 64),
        mlp_ratio=config.ffn_hidden / 48)
    architecture = {
        'v2': 'vit_small_patch14_dinov2',
        'v2_registers': 'vit_small_patch14_reg4_dinov2',
        'v3': 'vit_small_patch16_dinov3_qkvb',
        'v3_swiglu': 'vit_small_plus_patch16_dinov3_qkvb'}[name]
  else:
    architecture = 'convnext_tiny.dinov3_lvd1689m'
    kwargs = dict(depths=config.depths, dims=config.dims)
  theirs = package.create_model(
      architecture, pretrained=False, num_classes=0, **kwargs).eval()
  theirs.load_state_dict(
      {key: torch.from_numpy(value) for key, value in state.items()})
  x = images(config, (4, 4))
  with torch.no_grad():
    want = theirs.forward_features(nchw(x)).numpy()
  got = model_lib.Model(written)(x)
  if isinstance(config, vit.ViTConfig):
    np.testing.assert_allclose(tokens(got), want, rtol=1e-4, atol=1e-4)
  else:
    with torch.no_grad():
      want = theirs(nchw(x)).numpy()
    np.testing.assert_allclose(got.cls, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('name', MODELS)
def test_meta_files_come_back_as_they_went(name, tmp_path):
  written = weights(MODELS[name])
  writing.write(str(tmp_path), written, 'meta')
  heads = getattr(MODELS[name], 'num_heads', None)
  for file in ('backbone.pth', 'backbone.safetensors'):
    again = reading.read(str(tmp_path / file), num_heads=heads)
    jax.tree.map(np.testing.assert_array_equal, again.params, written.params)
    assert type(again.config) is type(written.config)
  assert set(writing.meta_state(again)) == set(writing.meta_state(written))


@pytest.mark.parametrize('kind', ['hf', 'timm'])
def test_a_bias_of_keys_is_refused_unless_asked(kind, tmp_path):
  written = weights(dataclasses.replace(V3, mask_k_bias=False))
  with pytest.raises(errors.UserError, match='--lossy'):
    writing.write(str(tmp_path), written, kind)
  said = writing.write(str(tmp_path), written, kind, lossy=True)
  assert any('left out' in text for text in said)


def test_what_a_library_lacks_is_refused(tmp_path):
  with pytest.raises(errors.UserError, match='norm='):
    writing.write(str(tmp_path), weights(
        dataclasses.replace(V3, norm='rmsnorm')), 'hf')
  with pytest.raises(errors.UserError, match='--format=onnx'):
    writing.write(str(tmp_path), weights(V3), 'onnx')


@pytest.mark.parametrize('config, name', [
    (vit.ViTConfig(384, 12, 6, 14), 'vit_small_patch14_dinov2'),
    (vit.ViTConfig(1024, 24, 16, 16, position='rope', num_registers=4),
     'vit_large_patch16_dinov3'),
    (convnext.ConvNeXtConfig((3, 3, 27, 3), (128, 256, 512, 1024)),
     'convnext_base.dinov3_lvd1689m')])
def test_timm_names_of_published_sizes(config, name):
  assert timm.model_name(config, {}) == name
