"""Files of every family: recognised, and mistakes named."""

import re

import jax
import numpy as np
import pytest

from dinojax.core import errors
from dinojax.interop import hf
from dinojax.interop import meta
from dinojax.interop import timm
from dinojax.interop import translate
from dinojax.models import convnext
from dinojax.models import network
from dinojax.models import vit
from dinojax.parallel import mesh as mesh_lib
from tests import golden

META = [name for name, case in golden.catalogue().items()
        if case['kind'] in ('v2_vit', 'v3_vit', 'v3_convnext')]
HF = [name for name, case in golden.catalogue().items()
      if case['kind'].startswith('hf_')]
TIMM = [name for name, case in golden.catalogue().items()
        if case['kind'].startswith('timm_')]


@pytest.fixture(autouse=True)
def mesh():
  mesh = mesh_lib.make(devices=jax.devices()[:1])
  with mesh_lib.activate(mesh):
    yield mesh


def functional(config, mesh):
  module = (vit.ViT if isinstance(config, vit.ViTConfig)
            else convnext.ConvNeXt)
  return network.Functional(lambda rngs: module(config, rngs=rngs), mesh)


@pytest.mark.parametrize('name', [n for n in HF if 'dinov2' in n])
def test_older_names_of_transformers_are_read(name):
  state = golden.load(name).weights['']
  old = {}
  for key, value in state.items():
    for new, before in (('q_proj', 'attention.query'),
                        ('k_proj', 'attention.key'),
                        ('v_proj', 'attention.value'),
                        ('o_proj', 'output.dense'),
                        ('mlp.down_proj', 'mlp.weights_out')):
      key = key.replace(new, before)
    old[f'dinov2.{key}'] = value
  for key in [k for k in old if 'gate_proj' in k]:
    up = old.pop(key.replace('gate_proj', 'up_proj'))
    old[key.replace('gate_proj', 'weights_in')] = np.concatenate(
        [old.pop(key), up])
  read = hf.complete(old)
  assert read.keys() == state.keys()
  jax.tree.map(np.testing.assert_array_equal, read, state)


@pytest.mark.parametrize('module', [meta, hf, timm])
def test_every_family_knows_its_own_files(module):
  kinds = {meta: META, hf: HF, timm: TIMM}
  for other, cases in kinds.items():
    for name in cases:
      state = golden.load(name).weights['']
      assert module.recognises(state) == (other is module), name


def test_all_mistakes_are_named_at_once(mesh):
  params, _ = meta.complete(golden.load('v2_vit_p14_mlp').weights[''])
  config = meta.config(params, {}, 2)
  params.pop('cls_token')
  params['norm.weight'] = params['norm.weight'][:3]
  params['norm.bias'] = params['norm.bias'] * np.nan
  params['head.weight'] = np.zeros(3)
  with pytest.raises(errors.UserError) as caught:
    translate.to_ours(params, meta.table(config),
                      functional(config, mesh).shapes, source='a.pth')
  text = str(caught.value)
  for part in ('a.pth', '1 missing: cls_token', 'norm.weight (3,) instead of',
               '1 not finite: norm.bias', '1 unexpected: head.weight'):
    assert part in text


def test_a_masked_bias_has_no_effect_and_is_kept():
  state = dict(golden.load('v3_vit_p16_mlp_reg4_maskk').weights[''])
  bias, mask = (f'blocks.0.attn.qkv.{end}' for end in ('bias', 'bias_mask'))
  state[bias] = np.ones_like(state[bias])
  state[mask] = np.zeros_like(state[mask])
  params, entries = meta.complete(state)
  assert not params[bias].any()
  np.testing.assert_array_equal(entries[bias], state[bias])


@pytest.mark.parametrize('module', [hf, timm])
def test_what_a_format_cannot_hold_is_refused(module):
  config = vit.ViTConfig(8, 1, 2, 4, position='rope', ffn_hidden=8)
  state = {key: np.ones((24,), np.float32) for rule in module.table(config)
           for key in rule.keys}
  with pytest.raises(errors.UserError, match='--lossy'):
    module.reduce(state, config)
  _, dropped = module.reduce(state, config, lossy=True)
  if module is hf:
    assert dropped == ['layer.0.attention.k_proj.bias']


def test_a_gate_of_gelu_is_told_from_one_of_silu():
  config = vit.ViTConfig(
      8, 1, 2, 4, position='rope', ffn='geglu', ffn_hidden=8, num_registers=1)
  told = hf.describe(config)
  assert hf.config(told).ffn == 'geglu'
  assert hf.config(told | {'hidden_act': 'silu'}).ffn == 'swiglu'
  with pytest.raises(errors.UserError, match="hidden_act='relu' is not known"):
    hf.config(told | {'hidden_act': 'relu'})
  for refuses in (lambda: meta.table(config),
                  lambda: timm.reduce({}, config),
                  lambda: hf.describe(vit.ViTConfig(8, 1, 2, 4, ffn='geglu'))):
    with pytest.raises(errors.UserError, match='geglu'):
      refuses()


def test_tables_cover_every_parameter_once(mesh):
  config = vit.ViTConfig(16, 2, 2, 4, num_registers=2, image_px=8)
  shapes = functional(config, mesh).shapes
  from dinojax.core import tree
  for table in (meta.table(config), hf.table(config), timm.table(config)):
    paths = [rule.path for rule in table if rule.layer in (None, 0)]
    assert sorted(paths) == sorted(tree.names(shapes))
    keys = [key for rule in table for key in rule.keys]
    assert len(keys) == len(set(keys))
    assert not any(re.search(r'[{}]', key) for key in keys)


def test_a_backbone_within_a_model_may_leave_out_what_is_usual():
  """transformers writes of it what differs from its kind alone."""
  got = hf.config({'model_type': 'depth_anything', 'backbone_config': {
      'model_type': 'dinov2', 'hidden_size': 384, 'num_attention_heads': 6,
      'image_size': 518}})
  assert (got.embed_dim, got.depth, got.patch_px, got.image_px) == (
      384, 12, 14, 518)
  assert got.norm_epsilon == 1e-6 and got.qkv_bias
  three = {'model_type': 'dinov3_vit', 'num_register_tokens': 4}
  got = hf.config({'model_type': 'chmv2', 'backbone_config': three})
  assert (got.embed_dim, got.num_registers, got.mask_k_bias) == (384, 4, True)
  got = hf.config({'model_type': 'chmv2', 'backbone_config': three | {
      'key_bias': True}})
  assert not got.mask_k_bias
