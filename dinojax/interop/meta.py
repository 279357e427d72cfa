"""Files of DINOv2 and DINOv3 themselves: hub weights and teacher checkpoints.

Beside parameters they hold buffers (the mask of the qkv bias, RoPE periods)
and, for ConvNeXt, one norm twice. These are kept as entries of their own, so
that a file comes back bit for bit.
"""

import math
import re

import numpy as np

from dinojax.core import errors
from dinojax.interop import names
from dinojax.models import convnext
from dinojax.models import families
from dinojax.models import heads
from dinojax.models import positions
from dinojax.models import vit
from dinojax.models import zoo

State = dict[str, np.ndarray]
_CHUNKED = re.compile(r'^(backbone\.)?blocks\.\d+\.(\d+)\.')
_BLOCK = re.compile(r'blocks\.(\d{1,9})\.')
_PERIODS = 'rope_embed.periods'
_BUFFERS = ('.bias_mask', _PERIODS)
_TWICE = 'norms.3.'  # the final norm of a ConvNeXt, a second time
_HEADS = ('dino_head', 'ibot_head')


def recognises(state: State) -> bool:
  """Tells whether the names are those of DINOv2's or DINOv3's own files."""
  state = unprefixed(state)
  return ('mask_token' in state and 'patch_embed.proj.weight' in state) or (
      'downsample_layers.0.0.weight' in state)


def unprefixed(state: State) -> State:
  """The backbone of a file: training files name it, hub files do not."""
  state = {key.removeprefix('module.'): value for key, value in state.items()}
  inside = {key.removeprefix('backbone.'): value
            for key, value in state.items() if key.startswith('backbone.')}
  state = inside or state
  return {_CHUNKED.sub(r'blocks.\2.', key): value
          for key, value in state.items()}


def table(config: families.Config) -> names.Table:
  """Rules from our parameters of a backbone to the names of these files.

  Raises:
    UserError: a feed-forward network that they cannot say.
  """
  if isinstance(config, convnext.ConvNeXtConfig):
    return names.meta_convnext(config)
  if config.ffn == 'geglu':
    raise errors.UserError(
        'ffn=geglu is not an option of the modules of DINOv2 and DINOv3, '
        'whose gates are SwiGLU: use --format=hf')
  return names.vit_table(
      config, names.META_V3 if config.position == 'rope' else names.META_V2)


def complete(state: State) -> tuple[State, State]:
  """Splits a backbone's tensors into parameters and entries.

  Returns:
    What the table names, the qkv bias multiplied by its mask; and what has to
    be kept to write the file again: buffers, and biases that their mask
    changes.
  """
  params, entries = {}, {}
  for key, value in unprefixed(state).items():
    if key.endswith(_BUFFERS) or key.startswith(_TWICE):
      entries[key] = value
    else:
      params[key] = value
  for key, mask in entries.items():
    bias = key.removesuffix('_mask')
    if key.endswith('.bias_mask') and bias in params:
      if mask.shape != params[bias].shape:
        raise errors.UserError(
            f'{key} has shape {mask.shape}, and {bias} {params[bias].shape}: '
            'the file is damaged, get it again')
      effective = np.where(mask == 0, 0, params[bias] * mask).astype(
          np.float32)
      if not np.array_equal(effective, params[bias]):
        entries = entries | {bias: params[bias]}
        params[bias] = effective
  return params, entries


def config(state: State, entries: State, num_heads: int | None = None
           ) -> families.Config:
  """Infers a backbone's configuration from its tensors.

  Args:
    state: parameters as `complete` returns them.
    entries: buffers and biases that it returns beside them.
    num_heads: attention heads, for sizes that were never published.

  Raises:
    UserError: the number of heads is not known.
  """
  if 'downsample_layers.0.0.weight' in state:
    return _convnext_config(state)
  v3 = 'pos_embed' not in state
  hidden, embed_dim, depth = _sizes(state)
  swiglu = 'blocks.0.mlp.w3.weight' in state
  registers = 'storage_tokens' if v3 else 'register_tokens'
  _, num_channels, _, patch_px = names.shape(
      state, 'patch_embed.proj.weight', 4)
  has = lambda name: f'blocks.0.{name}' in state
  options = dict(
      ffn='swiglu' if swiglu else 'mlp', ffn_hidden=hidden,
      num_registers=(names.shape(state, registers, 3)[1]
                     if registers in state else 0),
      qkv_bias=has('attn.qkv.bias'), proj_bias=has('attn.proj.bias'),
      ffn_bias=has('mlp.w3.bias' if swiglu else 'mlp.fc2.bias'),
      norm='layernorm' if has('norm1.bias') else 'rmsnorm',
      layerscale=1e-5 if has('ls1.gamma') else None,
      untie_cls_and_patch_norms='cls_norm.weight' in state,
      untie_global_and_local_cls_norm='local_cls_norm.weight' in state)
  if v3:
    options |= dict(position='rope', norm_epsilon=1e-5, rope_rescale=2.0,
                    mask_k_bias=any(
                        key.endswith('.bias_mask') for key in entries))
    options |= _periods(entries)
  else:
    side = _side(names.shape(state, 'pos_embed', 3)[1] - 1)
    with_registers = options['num_registers'] > 0
    options |= dict(
        image_px=side * patch_px, token_std=1e-6,
        interpolate_offset=0.0 if with_registers else 0.1,
        interpolate_antialias=with_registers)
  return vit.ViTConfig(
      embed_dim=embed_dim, depth=depth, patch_px=patch_px,
      num_channels=num_channels,
      num_heads=num_heads or zoo.num_heads(embed_dim, depth), **options)


def _side(count: int) -> int:
  """The side of the square grid that learned positions are of."""
  side = math.isqrt(max(count, 0))
  if side * side != count or not count:
    raise errors.UserError(
        f'pos_embed has positions of {count} patches, which are not a square '
        'grid: give the folder of transformers, whose config.json says how '
        'many rows and columns, or positions of square images')
  return side


def _periods(entries: State) -> dict:
  """The file's own periods: training rounded them to bfloat16."""
  if _PERIODS not in entries:
    return {}
  names.shape(entries, _PERIODS, 1)
  periods = np.asarray(entries[_PERIODS], np.float32)
  if np.array_equal(periods, positions.rope_periods(4 * len(periods))):
    return {}
  return {'rope_periods': tuple(float(x) for x in periods)}


def _sizes(state: State) -> tuple[int, int, int]:
  """Hidden width, width and depth of a ViT."""
  last = ('w3' if 'blocks.0.mlp.w3.weight' in state else 'fc2')
  embed_dim, hidden = names.shape(state, f'blocks.0.mlp.{last}.weight', 2)
  depth = 1 + max(int(match[1]) for key in state
                  if (match := _BLOCK.match(key)))
  return hidden, embed_dim, depth


def _convnext_config(state: State) -> convnext.ConvNeXtConfig:
  depths, dims = [], []
  for stage in range(4):
    blocks = {key.split('.')[2] for key in state
              if key.startswith(f'stages.{stage}.') and key.count('.') > 2}
    depths.append(len(blocks))
    dims += names.shape(state, f'stages.{stage}.0.gamma', 1)
  return convnext.ConvNeXtConfig(tuple(depths), tuple(dims))


def restore(state: State, entries: State,
            config: families.Config) -> State:
  """Restores a whole file: parameters, buffers and norms that appear twice.

  Args:
    state: parameters as the table writes them.
    entries: entries as `complete` returned them; empty for a model of our own,
      whose buffers follow from its configuration.
    config: configuration of the backbone.
  """
  if isinstance(config, convnext.ConvNeXtConfig):
    return state | {_TWICE + end: state[f'norm.{end}']
                    for end in ('weight', 'bias')}
  if config.position != 'rope':
    return state | entries
  made = {_PERIODS: config.periods}
  if config.mask_k_bias and config.qkv_bias:
    mask = np.repeat(np.float32([1, 0, 1]), config.embed_dim)
    made |= {f'blocks.{i}.attn.qkv.bias_mask': mask
             for i in range(config.depth)}
  made |= {key: value for key, value in entries.items()
           if key.endswith(_BUFFERS)}
  state = state | made
  for key in entries.keys() - made.keys():  # biases that their mask changes
    state[key] = np.where(
        state[f'{key}_mask'] == 1, state[key], entries[key])
  return state


def split_heads(state: State) -> dict[str, State]:
  """The heads of a training checkpoint, by the names of our parts."""
  state = {key.removeprefix('module.'): value for key, value in state.items()}
  parts = {name: {key.removeprefix(f'{name}.'): value
                  for key, value in state.items()
                  if key.startswith(f'{name}.')} for name in _HEADS}
  return {name: part for name, part in parts.items() if part}


def head_config(state: State) -> heads.HeadConfig:
  """Infers a head's configuration from its tensors.

  Raises:
    UserError: it is not a whole head.
  """
  weights = [key for key in state
             if key.startswith('mlp.') and key.endswith('.weight')]
  weight_norm = 'last_layer.weight_v' in state
  last = 'last_layer.weight_v' if weight_norm else 'last_layer.weight'
  first = 'mlp.weight' if len(weights) == 1 else 'mlp.0.weight'
  missing = [name for name in (first, last) if name not in state]
  if missing:
    raise errors.UserError(
        f'a head has no {" and no ".join(missing)}: it holds '
        f'{", ".join(sorted(state)[:4])}; take the heads out of the file, or '
        'give the whole checkpoint')
  num_prototypes, bottleneck_dim = names.shape(state, last, 2)
  return heads.HeadConfig(
      num_prototypes=num_prototypes, bottleneck_dim=bottleneck_dim,
      num_layers=len(weights), hidden_dim=names.shape(state, first, 2)[0],
      weight_norm=weight_norm,
      mlp_bias=first.replace('weight', 'bias') in state)


def head_table(config: heads.HeadConfig) -> names.Table:
  """Rules from our parameters of a head to the names of these files."""
  table = []
  for i in range(config.num_layers):
    theirs = 'mlp' if config.num_layers == 1 else f'mlp.{2 * i}'
    table.append(names.Rule(
        f'mlp/fc{i}/kernel', (f'{theirs}.weight',), names.LINEAR))
    if config.mlp_bias:
      table.append(names.Rule(f'mlp/fc{i}/bias', (f'{theirs}.bias',)))
  if config.weight_norm:
    return table + [
        names.Rule('last_layer/v', ('last_layer.weight_v',), names.LINEAR),
        names.Rule('last_layer/g', ('last_layer.weight_g',), names.COLUMN)]
  return table + [
      names.Rule('last_layer/kernel', ('last_layer.weight',), names.LINEAR)]
