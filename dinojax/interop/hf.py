"""Folders of Hugging Face transformers: names, config.json, preprocessing.

Files on the Hub keep older names than transformers 5 uses in memory; both are
read, the newer ones are written.
"""

from collections.abc import Sequence
import re

import numpy as np

from dinojax.augment import photometric
from dinojax.core import errors
from dinojax.interop import names
from dinojax.interop import sizes
from dinojax.interop import told
from dinojax.models import convnext
from dinojax.models import families
from dinojax.models import vit

State = dict[str, np.ndarray]
Config = families.Config

POSITIONS = 'embeddings.position_embeddings'
PREPROCESSOR = 'preprocessor_config.json'
_LEGACY = (
    (r'attention\.attention\.query\.', 'attention.q_proj.'),
    (r'attention\.attention\.key\.', 'attention.k_proj.'),
    (r'attention\.attention\.value\.', 'attention.v_proj.'),
    (r'attention\.output\.dense\.', 'attention.o_proj.'),
    (r'mlp\.weights_out\.', 'mlp.down_proj.'),
    (r'^(?:dinov2|dinov2_with_registers|dinov3_vit|dinov3_convnext)\.', ''),
    (r'^model\.', ''),
)
_NO_REGISTERS = 'embeddings.register_tokens'  # DINOv3 keeps it when empty
_MODELS = {'dinov2': 'Dinov2Model',
           'dinov2_with_registers': 'Dinov2WithRegistersModel',
           'dinov3_vit': 'DINOv3ViTModel',
           'dinov3_convnext': 'DINOv3ConvNextModel'}

# Models with queries on a ViT, of which the ViT is read, see heads.eomt.
EOMT = {'eomt': 'learned', 'eomt_dinov3': 'rope'}  # by kind of positions
_GATED = {'silu': 'swiglu', 'gelu': 'geglu'}  # by hidden_act
# Of a model with a head config.json has the backbone in an object, which may
# leave out what is as usual for its kind.
INNER = 'backbone_config'
_V2 = {'hidden_size': 768, 'num_hidden_layers': 12, 'num_attention_heads': 12,
       'mlp_ratio': 4, 'layer_norm_eps': 1e-6, 'image_size': 224,
       'patch_size': 14, 'use_swiglu_ffn': False, 'qkv_bias': True}
_USUAL = {
    'dinov2': _V2, 'dinov2_with_registers': _V2 | {
        'patch_size': 16, 'num_register_tokens': 4},
    'dinov3_vit': {
        'hidden_size': 384, 'num_hidden_layers': 12, 'num_attention_heads': 6,
        'intermediate_size': 1536, 'patch_size': 16, 'layer_norm_eps': 1e-5,
        'image_size': 224, 'query_bias': True, 'proj_bias': True,
        'mlp_bias': True, 'use_gated_mlp': False, 'rope_theta': 100.0,
        'pos_embed_rescale': 2.0}}


def recognises(state: State) -> bool:
  """Tells whether the names are those of transformers."""
  return any('embeddings.cls_token' in key
             or 'stages.0.downsample_layers.0.weight' in key for key in state)


def table(config: Config) -> names.Table:
  """Rules from our parameters to the newer names, without `model.`."""
  if isinstance(config, convnext.ConvNeXtConfig):
    return names.hf_convnext(config)
  return names.vit_table(
      config, names.HF_V3 if config.position == 'rope' else names.HF_V2)


def complete(state: State) -> State:
  """Newer names, halves apart, and the zero k bias that v3 leaves out."""
  out = {}
  for key, value in state.items():
    for pattern, new in _LEGACY:
      key = re.sub(pattern, new, key)
    if '.mlp.weights_in.' in key:
      if not value.ndim or value.shape[0] % 2:
        raise errors.UserError(
            f'{key} has shape {value.shape}, which is no two halves: the file '
            'is damaged, get it again')
      gate, up = np.split(value, 2)
      out[key.replace('weights_in', 'gate_proj')] = gate
      out[key.replace('weights_in', 'up_proj')] = up
    else:
      out[key] = value
  if _NO_REGISTERS in out and not out[_NO_REGISTERS].size:
    out.pop(_NO_REGISTERS)
  for key in list(out):
    other = key.replace('.q_proj.bias', '.k_proj.bias')
    if key.endswith('.q_proj.bias') and other not in out:
      out[other] = np.zeros_like(out[key])
  return out


def reduce(state: State, config: Config, *,
           lossy: bool = False) -> tuple[State, list[str]]:
  """Reduces a state dict that `table` wrote to what the format can hold.

  Returns:
    The state dict of a file, and the names of what is left out.

  Raises:
    UserError: a bias of keys that is not zero, or a norm of local crops,
      would be left out, unless `lossy`.
  """
  if isinstance(config, convnext.ConvNeXtConfig):
    # Only this class keeps its stages under `model.`.
    return {f'model.{key}' if key.startswith('stages.') else key: value
            for key, value in state.items()}, []
  dropped, out = [], {}
  for key, value in state.items():
    if key.startswith('local_cls_norm.'):
      dropped.append(key)
    elif config.position != 'rope':
      out[key] = value
    elif key.endswith('.k_proj.bias'):
      if np.any(value) and not lossy:
        raise errors.UserError(
            f'{key} is not zero, and transformers\' DINOv3 has no bias of '
            'keys: use --format=meta, or --lossy to leave it out')
      dropped.append(key)
    else:
      out[f'model.{key}' if key.startswith('layer.') else key] = value
  if config.position == 'rope' and not config.num_registers:
    out[_NO_REGISTERS] = np.zeros((1, 0, config.embed_dim), np.float32)
  if any(key.startswith('local_cls_norm') for key in dropped) and not lossy:
    raise errors.UserError(
        'the model has a norm of its own for local crops (local_cls_norm), '
        'which transformers cannot hold: use --format=meta, or --lossy to '
        'leave it out; features do not use it')
  return out, dropped


def config(values: dict | told.Told) -> Config:
  """The configuration that a config.json describes.

  Args:
    values: its contents; of learned positions that are not square, `grid`
      says more.

  Raises:
    UserError: another kind of model, or a value that no model can have.
  """
  if not isinstance(values, told.Told):
    values = told.Told(values, 'config.json')
  made = _config(of_backbone(values))
  sizes.check(made, values.source)
  return made


def of_backbone(values: told.Told) -> told.Told:
  """The part of config.json about the backbone, of a model with a head too."""
  if INNER not in values:
    return values
  inner = values.inner(INNER)
  return inner.over(_USUAL.get(inner.get('model_type', None), {}))


def grid(values: told.Told, config: Config) -> tuple[int, int] | None:
  """Rows and columns of the learned positions; None: there are none."""
  if getattr(config, 'position', None) != 'learned':
    return None
  return config.grid(of_backbone(values).side('image_size'))


def _config(values: told.Told) -> Config:
  kind = values.get('model_type', None)
  if kind not in (*_MODELS, *EOMT):
    raise errors.UserError(
        f'{values.source} says model_type={told.text(kind)}: only '
        f'{", ".join((*_MODELS, *EOMT))} can be read')
  if kind == 'dinov3_convnext':
    return convnext.ConvNeXtConfig(
        values.wholes('depths', 4), values.wholes('hidden_sizes', 4),
        num_channels=values.whole('num_channels', 3),
        norm_epsilon=values.number('layer_norm_eps', 1e-6))
  shared = dict(
      embed_dim=values.whole('hidden_size'),
      depth=values.whole('num_hidden_layers'),
      num_heads=values.whole('num_attention_heads'),
      patch_px=_patch_px(values),
      num_channels=values.whole('num_channels', 3),
      num_registers=values.whole('num_register_tokens', 0, low=0),
      norm_epsilon=values.number('layer_norm_eps'),
      layerscale=values.number('layerscale_value', 1.0))
  if kind in ('dinov3_vit', 'eomt_dinov3'):
    return vit.ViTConfig(
        **shared, position='rope',
        ffn=_gated(values) if values.flag('use_gated_mlp') else 'mlp',
        ffn_hidden=values.whole('intermediate_size'),
        qkv_bias=values.flag('query_bias'),
        mask_k_bias=values.flag('query_bias') and not values.flag(
            'key_bias', False),
        proj_bias=values.flag('proj_bias'), ffn_bias=values.flag('mlp_bias'),
        rope_base=_rope_base(values),
        rope_rescale=values.number('pos_embed_rescale', None),
        rope_shift=values.number('pos_embed_shift', None),
        rope_jitter=values.number('pos_embed_jitter', None))
  registers = kind != 'dinov2'
  hidden = int(min(
      shared['embed_dim'] * values.number('mlp_ratio'), 2**30))
  swiglu = values.flag('use_swiglu_ffn')
  if swiglu:
    hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
  return vit.ViTConfig(
      **shared, ffn='swiglu' if swiglu else 'mlp', ffn_hidden=hidden,
      qkv_bias=kind == 'eomt' or values.flag('qkv_bias'),
      image_px=min(values.side('image_size')), token_std=1e-6,
      # transformers' Dinov2Model leaves DINOv2's offset of 0.1 out.
      interpolate_offset=0.0, interpolate_antialias=registers)


def _rope_base(values: told.Told) -> float:
  """The base of the periods of RoPE, which EoMT has in an object."""
  if 'rope_parameters' in values:
    return values.inner('rope_parameters').number('rope_theta')
  return values.number('rope_theta')


def _gated(values: told.Told) -> str:
  """The kind of a feed-forward network with a gate, by its activation."""
  if 'hidden_act' not in values:
    return 'swiglu'
  return _GATED[values.name('hidden_act', tuple(_GATED))]


def _patch_px(values: told.Told) -> int:
  height, width = values.side('patch_size')
  if height != width:
    raise errors.UserError(
        f'{values.source}: patch_size={height} × {width} is not square, and '
        'only square patches are read')
  return height


def describe(config: Config) -> dict:
  """The contents of config.json: the inverse of `config`.

  Raises:
    UserError: an option that transformers does not have.
  """
  if isinstance(config, convnext.ConvNeXtConfig):
    return _named('dinov3_convnext', {
        'depths': list(config.depths), 'hidden_sizes': list(config.dims),
        'num_channels': config.num_channels, 'image_size': 224,
        'layer_norm_eps': config.norm_epsilon,
        'layer_scale_init_value': config.layerscale, 'hidden_act': 'gelu'})
  _refuse_options(config)
  shared = {
      'hidden_size': config.embed_dim, 'num_hidden_layers': config.depth,
      'num_attention_heads': config.num_heads, 'patch_size': config.patch_px,
      'num_channels': config.num_channels, 'image_size': config.image_px,
      'layer_norm_eps': config.norm_epsilon, 'hidden_act': 'gelu',
      'layerscale_value': config.layerscale,
      'drop_path_rate': config.drop_path_rate}
  swiglu = config.ffn == 'swiglu'
  gated = config.ffn != 'mlp'
  hidden = config.ffn_hidden or 4 * config.embed_dim
  if config.position == 'rope':
    return _named('dinov3_vit', shared | {
        'num_register_tokens': config.num_registers,
        'intermediate_size': hidden, 'use_gated_mlp': gated,
        'hidden_act': 'silu' if swiglu else 'gelu',
        'query_bias': config.qkv_bias, 'key_bias': False,
        'value_bias': config.qkv_bias, 'proj_bias': config.proj_bias,
        'mlp_bias': config.ffn_bias, 'rope_theta': config.rope_base,
        'pos_embed_rescale': config.rope_rescale,
        'pos_embed_shift': config.rope_shift,
        'pos_embed_jitter': config.rope_jitter})
  shared |= {'qkv_bias': config.qkv_bias, 'use_swiglu_ffn': swiglu,
             'mlp_ratio': 4 if swiglu else hidden // config.embed_dim}
  if config.num_registers:
    return _named('dinov2_with_registers', shared | {
        'num_register_tokens': config.num_registers})
  return _named('dinov2', shared)


def preprocessor(image_px: int = 224, *,
                 mean: Sequence[float] = photometric.IMAGENET_MEAN,
                 std: Sequence[float] = photometric.IMAGENET_STD) -> dict:
  """preprocessor_config.json: resize, centre crop, normalise."""
  return {
      'image_processor_type': 'BitImageProcessor', 'do_resize': True,
      'size': {'shortest_edge': round(image_px * 256 / 224)}, 'resample': 3,
      'do_center_crop': True,
      'crop_size': {'height': image_px, 'width': image_px},
      'do_rescale': True, 'rescale_factor': 1 / 255, 'do_normalize': True,
      'image_mean': list(mean), 'image_std': list(std),
      'do_convert_rgb': True}


def _named(kind: str, values: dict) -> dict:
  return {'model_type': kind, 'architectures': [_MODELS[kind]],
          'torch_dtype': 'float32', **values}


def _refuse_options(config: vit.ViTConfig):
  v3 = config.position == 'rope'
  wanted = {'norm': 'layernorm', 'untie_cls_and_patch_norms': False,
            'rope_min_period': None, 'rope_normalize': 'separate'}
  if not v3:
    wanted |= {'proj_bias': True, 'ffn_bias': True}
  if not v3 and config.ffn != 'swiglu':
    wanted |= {'ffn': 'mlp'}
  for name, value in wanted.items():
    got = getattr(config, name)
    if got != value:
      raise errors.UserError(
          f'{name}={got!r} is not an option of transformers\' models: use '
          '--format=meta')
  hidden = config.ffn_hidden or 4 * config.embed_dim
  usual = ((int(4 * config.embed_dim * 2 / 3) + 7) // 8 * 8
           if config.ffn == 'swiglu' else
           hidden // config.embed_dim * config.embed_dim)
  if not v3 and hidden != usual:
    raise errors.UserError(
        f'ffn_hidden={hidden} is not what transformers computes for a width '
        f'of {config.embed_dim}, {usual}: use --format=meta')
