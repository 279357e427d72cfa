"""Backbones as transformers and timm hold them."""

import dataclasses

import numpy as np

from dinojax.interop import hf
from dinojax.interop import reading
from dinojax.interop import timm
from dinojax.interop import translate
from dinojax.models import positions
from dinojax.models import vit
from tests import golden
from tests.kinds import models

# Of a config.json: what no number depends on, or only in training.
_NO_EFFECT = (
    'transformers_version', 'architectures', 'output_hidden_states',
    'return_dict', 'dtype', 'chunk_size_feed_forward', 'is_encoder_decoder',
    'problem_type', 'hidden_dropout_prob', 'attention_probs_dropout_prob',
    'attention_dropout', 'initializer_range', 'drop_path_rate',
    'reshape_hidden_states', 'use_mask_token', 'stage_names', '_name_or_path',
    'output_attentions', 'out_features', 'out_indices', 'image_size',
    'layer_scale_init_value')


def tokens(features):
  return np.concatenate([features['cls'][:, None], features['registers'],
                         features['patches']], axis=1)


def check_trip(module, state, config, original):
  """Through our parameters and back, the tensors are those of the file."""
  table = module.table(config)
  ours = translate.to_ours(state, table, reading.shapes(config))
  written, _ = module.reduce(translate.to_theirs(ours, table), config)
  assert written.keys() == original.keys()
  for key, value in original.items():
    np.testing.assert_array_equal(written[key], value, err_msg=key)


@golden.kind('hf_dinov2', 'hf_dinov2_with_registers', 'hf_dinov3_vit',
             'hf_dinov3_convnext')
def transformers(case):
  case.config.skip(*_NO_EFFECT)
  case.config.only('hidden_act', 'gelu', 'silu')
  case.config.only('apply_layernorm', True)
  case.config.only('key_bias', False)
  case.config.only('value_bias', case.meta['config'].get('query_bias'))
  config = hf.config(case.config)
  is_vit, depth = isinstance(config, vit.ViTConfig), config.depth
  state, table = hf.complete(case.weights['']), hf.table(config)
  rows = {key: models.nhwc(value) if value.ndim == 4 else value
          for key, value in case.inputs.items()}
  names = {}
  for i, call in enumerate(case.calls):
    names[call['id']] = f'pixel_values{i}'
    assert tuple(call['size']) == rows[f'pixel_values{i}'].shape[1:3]

  def everything(net, rows):
    out = {name: net({'global': rows[key]})['global']
           for name, key in names.items()}
    first = rows['pixel_values0']
    if is_vit:
      out['masked'] = net({'global': first}, masks={
          'global': rows['bool_masked_pos']})['global']
      out['states'] = [net.embed(first), *(f['prenorm'] for f in (
          net.intermediate(first, range(depth))))]
    else:
      out['states'] = [first, *net.maps(first)]
    return out

  got = models.run(config, state, table, rows, everything)
  check_trip(hf, state, config, case.weights[''])
  tolerance, out = models.tolerance_of(case), {}
  for i, x in enumerate(got.pop('states')):
    x = x if is_vit else x.transpose(0, 3, 1, 2)
    out[f'{case.calls[0]["id"]}/hidden_states/{i}'] = golden.Within(
        x, **tolerance)
  for name, features in got.items():
    out |= {
        f'{name}/last_hidden_state': golden.Within(
            tokens(features), **tolerance),
        f'{name}/pooler_output': golden.Within(features['cls'], **tolerance)}
  return out


@golden.kind('timm_vit_dinov2', 'timm_vit_dinov3', 'timm_convnext_dinov3')
def of_timm(case):
  o = case.config
  o.skip('timm_model', 'class_')
  overrides = o['overrides']
  overrides.skip('img_size', 'embed_dim', 'depth', 'depths', 'dims',
                 'mlp_ratio', 'init_values')
  state = timm.complete(case.weights[''])
  config = timm.config(state, overrides.get('num_heads'))
  overrides.only('dynamic_img_pad', False)
  if overrides.get('dynamic_img_size') and config.position == 'learned':
    # timm resizes the grid of positions in its own way for such images.
    config = dataclasses.replace(
        config, interpolate_offset=0.0, interpolate_antialias=True)
  rows = {'x': models.nhwc(case.inputs['x'])}
  table = timm.table(config)
  got = models.run(config, state, table, rows, lambda net, rows: net(
      {'global': rows['x']})['global'])
  check_trip(timm, state, config, case.weights[''])
  tolerance = models.tolerance_of(case)
  if not isinstance(config, vit.ViTConfig):
    height, width = (n // 32 for n in case.inputs['x'].shape[2:])
    assert o['num_prefix_tokens'] == 0
    raw = got['prenorm'].reshape(-1, height, width, config.embed_dim)
    return {'forward_features': golden.Within(
        raw.transpose(0, 3, 1, 2), **tolerance),
            'forward': golden.Within(got['cls'], **tolerance)}
  assert o['num_prefix_tokens'] == 1 + config.num_registers
  # timm pools DINOv2 by CLS and DINOv3 by the mean patch.
  pooled = got['cls'] if config.position == 'learned' else (
      got['patches'].mean(1))
  out = {'forward_features': golden.Within(tokens(got), **tolerance),
         'forward': golden.Within(pooled, **tolerance)}
  if config.position == 'rope':
    tables = positions.rope(
        config.grid(case.inputs['x'].shape[2:]), config.periods)
    out['rope_embed'] = np.concatenate(tables, axis=-1)
  return out
