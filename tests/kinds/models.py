"""Backbones in the references' own names: features of every call."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.interop import meta
from dinojax.interop import reading
from dinojax.interop import translate
from dinojax.models import convnext
from dinojax.models import positions
from dinojax.models import vit
from dinojax.models import zoo
from dinojax.parallel import mesh as mesh_lib
from tests import compiled
from tests import golden

DTYPES = {'fp32': 'float32', 'bf16': 'bfloat16'}


def shared_config(o) -> dict:
  """Our fields of options that both generations have."""
  d, ffn = o['embed_dim'], o.get('ffn_layer', 'mlp')
  ratio = o.get('mlp_ratio', o.get('ffn_ratio', 4.0))
  hidden = int(d * ratio)
  if ffn.startswith('swiglu'):
    # 'swiglu', 'swiglufused' and 'swiglu64': the last aligns to 64.
    end = ffn.removeprefix('swiglu')
    assert end in ('', 'fused') or end.isdigit(), ffn
    hidden = zoo.swiglu_hidden(d, ratio, int(end) if end.isdigit() else 8)
  else:
    assert ffn == 'mlp', ffn
  return dict(
      embed_dim=d, depth=o['depth'], num_heads=o['num_heads'],
      patch_px=o['patch_size'], image_px=o['img_size'],
      num_channels=o.get('in_chans', 3),
      ffn='mlp' if ffn == 'mlp' else 'swiglu', ffn_hidden=hidden,
      qkv_bias=o.get('qkv_bias', True), proj_bias=o.get('proj_bias', True),
      ffn_bias=o.get('ffn_bias', True),
      drop_path_rate=o.get('drop_path_rate', 0.0),
      drop_path_uniform=o.get('drop_path_uniform', True))


def v2_config(o) -> vit.ViTConfig:
  o.skip('block_chunks')  # of the names only
  return vit.ViTConfig(
      **shared_config(o), position='learned', norm_epsilon=1e-6,
      num_registers=o.get('num_register_tokens', 0),
      layerscale=o.get('init_values'),
      interpolate_offset=o.get('interpolate_offset', 0.1),
      interpolate_antialias=o.get('interpolate_antialias', False))


def v3_config(o) -> vit.ViTConfig:
  norm = o.get('norm_layer', 'layernorm')
  assert norm in ('layernorm', 'layernormbf16', 'rmsnorm'), norm
  rope = lambda key, default=None: o.get(f'pos_embed_rope_{key}', default)
  base, low = rope('base', 100.0), rope('min_period')
  return vit.ViTConfig(
      **shared_config(o), position='rope',
      num_registers=o.get('n_storage_tokens', 0),
      norm='rmsnorm' if norm == 'rmsnorm' else 'layernorm',
      norm_epsilon=1e-6 if norm == 'layernorm' else 1e-5,
      layerscale=o.get('layerscale_init'),
      mask_k_bias=o.get('mask_k_bias', False),
      untie_cls_and_patch_norms=o.get('untie_cls_and_patch_norms', False),
      untie_global_and_local_cls_norm=o.get(
          'untie_global_and_local_cls_norm', False),
      rope_base=None if low is not None else base, rope_min_period=low,
      rope_max_period=rope('max_period'),
      rope_normalize=rope('normalize_coords', 'separate'),
      rope_shift=rope('shift_coords'), rope_jitter=rope('jitter_coords'),
      rope_rescale=rope('rescale_coords'),
      rope_dtype=DTYPES[rope('dtype', 'bf16')])


def nhwc(images):
  return np.ascontiguousarray(images.transpose(0, 2, 3, 1))


def run(config, state, table, rows, call):
  """`call(module, rows)` of a backbone with a file's weights, one program.

  Args:
    config: of the backbone.
    state: parameters as `table` names them.
    table: which is which.
    rows: tree of inputs, images as [r, y, x, c].
    call: what is computed.
  """
  mesh = mesh_lib.make(devices=jax.devices()[:1])
  with mesh_lib.activate(mesh):
    model = reading.functional(config, mesh)
    params = jax.device_put(
        translate.to_ours(state, table, model.shapes), jax.tree.map(
            lambda spec: jax.NamedSharding(mesh, spec), model.specs,
            is_leaf=lambda x: isinstance(x, jax.P)))
    rows = jax.device_put(rows, jax.NamedSharding(mesh, mesh_lib.ROWS))
    return jax.device_get(jax.jit(
        lambda params, rows: model.apply(params, rows, call))(params, rows))


def check_what_the_file_says(config, state):
  """The configuration that an import would find, where files can tell it."""
  told = meta.config(*meta.complete(state), config.num_heads)
  for field in ('embed_dim', 'depth', 'patch_px', 'ffn', 'ffn_hidden', 'norm',
                'num_registers', 'qkv_bias', 'proj_bias', 'ffn_bias',
                'mask_k_bias', 'position', 'untie_cls_and_patch_norms',
                'untie_global_and_local_cls_norm'):
    assert getattr(told, field) == getattr(config, field), field
  np.testing.assert_array_equal(told.layerscale is None,
                                config.layerscale is None)
  if config.position == 'rope':
    np.testing.assert_allclose(told.periods, config.periods, rtol=1e-6)


def check_trip(config, original):
  """Through our parameters and back, the tensors are those of the file."""
  state, entries = meta.complete(original)
  table = meta.table(config)
  ours = translate.to_ours(state, table, reading.shapes(config))
  written = meta.restore(translate.to_theirs(ours, table), entries, config)
  original = meta.unprefixed(original)
  assert written.keys() == original.keys()
  for key, value in original.items():
    np.testing.assert_array_equal(written[key], value, err_msg=key)


def named(features, tolerance) -> dict:
  """The references' names of a forward pass."""
  out = {'x_norm_clstoken': features['cls'],
         'x_norm_regtokens': features['registers'],
         'x_storage_tokens': features['registers'],
         'x_norm_patchtokens': features['patches'],
         'x_prenorm': features['prenorm'], 'forward_head': features['cls']}
  return {key: golden.Within(value, **tolerance)
          for key, value in out.items()}


def inner(features, kwargs, grid, tolerance) -> dict:
  """What get_intermediate_layers returns of a layer."""
  patches = features['patches']
  if kwargs.get('reshape', False):
    patches = patches.reshape(patches.shape[0], *grid, -1).transpose(
        0, 3, 1, 2)
  kwargs.skip('return_class_token', 'return_extra_tokens')
  out = {'patch': patches, 'cls': features['cls'],
         'extra': features['registers']}
  return {key: golden.Within(value, **tolerance)
          for key, value in out.items()}


def layers_of(n, depth) -> list[int]:
  return list(range(depth - n, depth)) if isinstance(n, int) else list(n)


def tolerance_of(case) -> dict:
  """The stated tolerance; a model in float32 is held to a tenth of it."""
  stated = case.meta['tolerance']
  if stated['rtol'] == 0:  # bfloat16 RoPE, whose rounding we reproduce
    return dict(atol=2e-3)
  return dict(rtol=stated['rtol'] / 10, atol=stated['atol'] / 2)


@golden.kind('v2_vit', 'v3_vit')
def forward(case):
  v2 = case.meta['kind'] == 'v2_vit'
  config = v2_config(case.config) if v2 else v3_config(case.config)
  state, entries = meta.complete(case.weights[''])
  check_what_the_file_says(config, case.weights[''])
  check_trip(config, case.weights[''])
  x, tolerance = case.inputs, tolerance_of(case)
  rows = {key: nhwc(value) if value.ndim == 4 else value
          for key, value in x.items()}
  depth = config.depth

  def everything(net, rows):
    out = {}
    for call in case.calls:
      name, images = call['id'], rows.get(call.get('input'))
      if call['method'] == 'get_intermediate_layers':
        out[name] = net.intermediate(
            images, layers_of(call['kwargs']['n'], depth),
            norm=call['kwargs'].get('norm', True))
      elif 'inputs' in call:
        kinds = dict(zip(('global', 'local'), call['inputs'], strict=True))
        masks = dict(zip(kinds, call['masks'], strict=True))
        out[name] = net(
            {kind: rows[key] for kind, key in kinds.items()},
            masks={kind: rows[key] for kind, key in masks.items() if key},
            train=True)
      elif images is not None:
        mask = call.get('mask')
        out[name] = net(
            {'global': images},
            masks={'global': rows[mask]} if mask else {})['global']
    return out

  got = run(config, state, meta.table(config), rows, everything)
  out = {}
  for call in case.calls:
    call.skip('note', 'outputs', 'mode')
    name = call['id']
    if call['method'] == 'get_intermediate_layers':
      grid = config.grid(x[call['input']].shape[2:])
      for i, features in enumerate(got[name]):
        out |= {f'{name}/{i}/{key}': value for key, value in inner(
            features, call['kwargs'], grid, tolerance).items()}
    elif 'inputs' in call:  # 'train_list_global'
      call.only('mode', 'train')
      stem = name.removesuffix('_global')
      for kind, features in got[name].items():
        out |= {f'{stem}_{kind}/{key}': value
                for key, value in named(features, tolerance).items()}
    elif name in got:
      call.only('mode', 'eval')
      out |= {f'{name}/{key}': value
              for key, value in named(got[name], tolerance).items()}
      if f'{name}/pos_embed' in case.outputs:
        out[f'{name}/pos_embed'] = positions.resize_learned(
            state['pos_embed'][0], config.grid(x[call['input']].shape[2:]),
            offset=config.interpolate_offset,
            antialias=config.interpolate_antialias)[None]
  return out


@golden.kind('v2_vit_train', 'v3_vit_train')
def forward_with_draws(case):
  v2 = case.meta['kind'] == 'v2_vit_train'
  config = v2_config(case.config) if v2 else v3_config(case.config)
  config = dataclasses.replace(config, packing='stream')
  state, _ = meta.complete(case.weights[''])
  x = case.inputs
  rows = {'crops': {'global': nhwc(x['x']), 'local': nhwc(x['x_local'])},
          'masks': {'global': x['mask']},
          'draws': {kind: draws(config, x, kind, len(images))
                    for kind, images in (
                        ('global', x['x']), ('local', x['x_local']))}}
  got = run(config, state, meta.table(config), rows,
            lambda net, rows: net(**rows, train=True))
  return {f'{kind}/{key}': value for kind, features in got.items()
          for key, value in named(features, tolerance_of(case)).items()}


def draws(config, inputs, kind, rows) -> dict:
  """Captured draws as the model takes them: one group, layers stacked."""
  stack = lambda pattern, part: np.stack([
      inputs[pattern.format(i)][part] for i in range(config.depth)])[None]
  out = {}
  for branch in ('attn', 'ffn'):
    if f'perm/block0/{branch}/{kind}' in inputs:
      keep = max(int(rows * (1 - config.drop_path_rate)), 1)
      out[branch] = stack(f'perm/block{{}}/{branch}/{kind}', slice(0, keep))
  if f'rope/block0/{kind}' in inputs:
    part = functools.partial(stack, f'rope/block{{}}/{kind}')
    values = {'shift': (config.rope_shift, part(slice(0, 2))),
              'log_jitter': (config.rope_jitter, part(slice(2, 4))),
              'log_rescale': (config.rope_rescale, part(4))}
    out['rope'] = {key: value for key, (on, value) in values.items() if on}
  return out


@golden.kind('v3_convnext')
def convnext_forward(case):
  o = case.config
  config = convnext.ConvNeXtConfig(
      tuple(o['depths']), tuple(o['dims']), patch_px=o['patch_size'])
  state, _ = meta.complete(case.weights[''])
  check_trip(config, case.weights[''])
  told = meta.config(state, {})
  assert (told.depths, told.dims) == (config.depths, config.dims)
  rows = {key: nhwc(value) for key, value in case.inputs.items()}

  def everything(net, rows):
    out = {}
    for call in case.calls:
      name = call['id']
      if call['method'] == 'get_intermediate_layers':
        out[name] = net.intermediate(
            rows[call['input']], layers_of(call['kwargs']['n'], config.depth),
            norm=call['kwargs'].get('norm', True))
      else:
        keys = call.get('inputs') or [call['input']]
        out[name] = net({key: rows[key] for key in keys})
    return out

  got = run(config, state, meta.table(config), rows, everything)
  out, tolerance = {}, tolerance_of(case)
  for call in case.calls:
    call.only('mode', 'eval')
    call.skip('outputs')
    name = call['id']
    if call['method'] == 'get_intermediate_layers':
      height, width = case.inputs[call['input']].shape[2:]
      indices = layers_of(call['kwargs']['n'], config.depth)
      for i, (index, features) in enumerate(zip(
          indices, got[name], strict=True)):
        step = config.patch_px or 4 * 2 ** index
        out |= {f'{name}/{i}/{key}': value for key, value in inner(
            features, call['kwargs'], (height // step, width // step),
            tolerance).items()}
      continue
    stem = name.removesuffix('0') if 'inputs' in call else None
    for i, features in enumerate(got[name].values()):
      prefix = name if stem is None else f'{stem}{i}'
      out |= {f'{prefix}/{key}': value
              for key, value in named(features, tolerance).items()}
  return out


@golden.kind('v3_rope_eval', 'v3_rope_train_augment')
def rope_tables(case):
  case.config.skip('configs')
  out = {}
  for call in case.calls:
    k, name = call['kwargs'], call['id']
    periods = functools.partial(
        positions.rope_periods, k['embed_dim'] // k['num_heads'],
        base=k['base'], min_period=k.get('min_period'),
        max_period=k.get('max_period'))
    tables = functools.partial(
        compiled.function(positions.rope), normalize=k['normalize_coords'])
    if 'HW' not in call:
      call.only('mode', 'train')
      k.skip('shift_coords', 'jitter_coords', 'rescale_coords')
      draw = {}
      for theirs, ours in (('shift', 'shift'), ('jitter', 'log_jitter'),
                           ('rescale', 'log_rescale')):
        key = f'{name}/{theirs}_coords_uniform'
        if key in case.inputs:
          value = jnp.asarray(case.inputs[key])
          draw[ours] = value if theirs == 'rescale' else value[None]
      sin, cos = tables((call['H'], call['W']), periods(), draw=draw)
      out |= {f'{name}/sin': sin[0], f'{name}/cos': cos[0]}
      continue
    for dtype, end in (('float32', ''), ('bfloat16', '_bf16')):
      out[f'{name}{end}/periods'] = periods(dtype=dtype)
      for grid in call['HW']:
        sin, cos = tables(
            tuple(grid), periods(dtype=dtype), dtype=jnp.dtype(dtype))
        where = f'{name}{end}/{grid[0]}x{grid[1]}'
        out |= {f'{where}/sin': sin.astype(jnp.float32),
                f'{where}/cos': cos.astype(jnp.float32)}
  return out
