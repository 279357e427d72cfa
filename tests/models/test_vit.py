"""The ViT against the references: forward, training mode, every option."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.models import network
from dinojax.models import positions
from dinojax.models import vit
from dinojax.models import zoo
from dinojax.parallel import mesh as mesh_lib
from tests import golden
from tests.models import torch_names

CASES = [name for name, meta in golden.catalogue().items()
         if meta['kind'] in ('v2_vit', 'v3_vit')]


def vit_config(case: dict) -> vit.ViTConfig:
  """Our configuration of a golden case's."""
  d = case['embed_dim']
  ratio = case.get('mlp_ratio', case.get('ffn_ratio', 4.0))
  ffn = case.get('ffn_layer', 'mlp')
  v2 = 'mlp_ratio' in case
  hidden = int(d * ratio)
  if ffn.startswith('swiglu'):
    align = int(ffn[6:]) if ffn[6:].isdigit() else 8
    hidden = zoo.swiglu_hidden(d, ratio, align)
  norm = case.get('norm_layer', 'layernorm')
  dtypes = {'fp32': 'float32', 'bf16': 'bfloat16'}
  options = dict(
      position='learned', interpolate_offset=case.get('interpolate_offset'),
      interpolate_antialias=case.get('interpolate_antialias', False),
      num_registers=case.get('num_register_tokens', 0),
      layerscale=case.get('init_values')) if v2 else dict(
          position='rope', num_registers=case.get('n_storage_tokens', 0),
          layerscale=case.get('layerscale_init'),
          rope_base=case.get('pos_embed_rope_base', 100.0),
          rope_min_period=case.get('pos_embed_rope_min_period'),
          rope_max_period=case.get('pos_embed_rope_max_period'),
          rope_normalize=case.get('pos_embed_rope_normalize_coords',
                                  'separate'),
          rope_shift=case.get('pos_embed_rope_shift_coords'),
          rope_jitter=case.get('pos_embed_rope_jitter_coords'),
          rope_rescale=case.get('pos_embed_rope_rescale_coords'),
          rope_dtype=dtypes[case['pos_embed_rope_dtype']])
  return vit.ViTConfig(
      embed_dim=d, depth=case['depth'], num_heads=case['num_heads'],
      patch_px=case['patch_size'], image_px=case['img_size'],
      ffn='swiglu' if ffn.startswith('swiglu') else 'mlp', ffn_hidden=hidden,
      norm='rmsnorm' if norm == 'rmsnorm' else 'layernorm',
      norm_epsilon=1e-6 if norm == 'layernorm' else 1e-5,
      qkv_bias=case.get('qkv_bias', True),
      proj_bias=case.get('proj_bias', True),
      ffn_bias=case.get('ffn_bias', True),
      mask_k_bias=case.get('mask_k_bias', False),
      drop_path_rate=case.get('drop_path_rate', 0.0),
      untie_cls_and_patch_norms=case.get('untie_cls_and_patch_norms', False),
      untie_global_and_local_cls_norm=case.get(
          'untie_global_and_local_cls_norm', False),
      **options)


def nhwc(images: np.ndarray) -> jax.Array:
  return jnp.asarray(images.transpose(0, 2, 3, 1))


def run(config, params, crops, masks=None, draws=None, train=False):
  mesh = mesh_lib.make(devices=jax.devices()[:1])
  with mesh_lib.activate(mesh):
    model = network.Functional(lambda rngs: vit.ViT(config, rngs=rngs), mesh)
    assert (jax.tree.map(jnp.shape, params)
            == jax.tree.map(jnp.shape, model.shapes))
    rows = jax.device_put(
        dict(crops=crops, masks=masks or {}, draws=draws or {}),
        jax.NamedSharding(mesh, mesh_lib.ROWS))
    call = lambda module, rows: module(
        rows['crops'], masks=rows['masks'], draws=rows['draws'], train=train)
    params = jax.device_put(params, jax.tree.map(
        lambda s: jax.NamedSharding(mesh, s), model.specs,
        is_leaf=lambda s: isinstance(s, jax.P)))
    return jax.jit(lambda p, r: model.apply(p, r, call))(params, rows)


def check(case, prefix, features):
  names = {'cls': 'x_norm_clstoken', 'patches': 'x_norm_patchtokens',
           'prenorm': 'x_prenorm', 'registers': 'x_norm_regtokens'}
  if f'{prefix}/x_storage_tokens' in case.outputs:
    names['registers'] = 'x_storage_tokens'
  checked = 0
  for ours, theirs in names.items():
    if f'{prefix}/{theirs}' in case.outputs:
      # The stated tolerance is rtol 1e-3, atol 2e-4; a model is held to 1e-4.
      case.check(f'{prefix}/{theirs}', features[ours], rtol=1e-4, atol=1e-4)
      checked += 1
  assert checked >= 2


@pytest.mark.parametrize('name', CASES)
@pytest.mark.parametrize('options', [
    dict(), dict(attention='head_major', packing='stream', remat='blocks')],
    ids=['plain', 'cpu'])
def test_forward_equals_reference(name, options):
  case = golden.load(name)
  config = vit_config({**case.meta['config']})
  config = vit.dataclasses.replace(config, **options)
  params = torch_names.backbone(case.weights[''])
  for call in case.meta['calls']:
    if call['method'] != 'forward_features' or call['mode'] != 'eval':
      continue
    masks = {}
    if 'mask' in call:
      masks = {'global': jnp.asarray(case.inputs[call['mask']])}
    out = run(config, params, {'global': nhwc(case.inputs[call['input']])},
              masks=masks)
    check(case, call['id'], out['global'])
  if 'train_list_global/x_norm_clstoken' in case.outputs:
    out = run(config, params,
              {'global': nhwc(case.inputs['x']),
               'local': nhwc(case.inputs['x_local'])},
              masks={'global': jnp.asarray(case.inputs['mask_train'])},
              train=True)
    check(case, 'train_list_global', out['global'])
    check(case, 'train_list_local', out['local'])


@pytest.mark.parametrize(
    'name', ['v2_vit_train_droppath', 'v3_vit_train_droppath_ropeaug'])
def test_stochastic_depth_and_rope_draws_equal_reference(name):
  case = golden.load(name)
  settings = case.meta['config'] | {'mlp_ratio': 2.0} if (
      name.startswith('v2')) else case.meta['config']
  config = vit_config(settings)
  draws = {}
  for kind, images in (('global', 'x'), ('local', 'x_local')):
    rows = case.inputs[images].shape[0]
    keep = max(int(rows * (1 - config.drop_path_rate)), 1)
    stack = lambda pattern, take: jnp.stack([
        jnp.asarray(case.inputs[pattern.format(b=i)])[take]
        for i in range(config.depth)])[None]
    draws[kind] = {
        branch: stack(f'perm/block{{b}}/{branch}/{kind}', slice(0, keep))
        for branch in ('attn', 'ffn')}
    if f'rope/block0/{kind}' in case.inputs:
      rope = f'rope/block{{b}}/{kind}'
      draws[kind]['rope'] = {
          'shift': stack(rope, slice(0, 2)),
          'log_jitter': stack(rope, slice(2, 4)),
          'log_rescale': stack(rope, 4)}
  out = run(config, torch_names.backbone(case.weights['']),
            {'global': nhwc(case.inputs['x']),
             'local': nhwc(case.inputs['x_local'])},
            masks={'global': jnp.asarray(case.inputs['mask'])},
            draws=draws, train=True)
  check(case, 'global', out['global'])
  check(case, 'local', out['local'])


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_rope_tables_equal_reference(dtype):
  case = golden.load('v3_rope_eval')
  suffix = '_bf16' if dtype == 'bfloat16' else ''
  checked = 0
  for call in case.meta['calls']:
    kwargs = call['kwargs']
    if f'{call["id"]}{suffix}/periods' not in case.outputs:
      continue
    periods = positions.rope_periods(
        kwargs['embed_dim'] // kwargs['num_heads'], base=kwargs['base'],
        min_period=kwargs.get('min_period'),
        max_period=kwargs.get('max_period'), dtype=dtype)
    case.check(f'{call["id"]}{suffix}/periods', periods)
    for y, x in call['HW']:
      prefix = f'{call["id"]}{suffix}/{y}x{x}'
      if f'{prefix}/sin' not in case.outputs:
        continue
      tables = positions.rope(
          (y, x), periods, normalize=kwargs['normalize_coords'],
          dtype=jnp.dtype(dtype))
      for name, table in zip(('sin', 'cos'), tables, strict=True):
        case.check(f'{prefix}/{name}', table.astype(jnp.float32))
        checked += 1
  assert checked >= 2


def test_rope_known_values_in_bfloat16():
  # Training notes of the references: token (0, 1) of a 3 × 2 grid.
  periods = positions.rope_periods(64, dtype='bfloat16')
  sin, _ = positions.rope((3, 2), periods, dtype=jnp.bfloat16)
  np.testing.assert_allclose(
      sin[1, :4].astype(np.float32),
      [0.8671875, -0.0009689, -0.7148438, -0.9804688], atol=1e-6)
