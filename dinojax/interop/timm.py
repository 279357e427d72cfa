"""timm's state dicts of DINOv2 and DINOv3: what they fold, merge or drop."""

import dataclasses

import numpy as np

from dinojax.core import errors
from dinojax.interop import meta
from dinojax.interop import names
from dinojax.interop import told
from dinojax.models import convnext
from dinojax.models import families
from dinojax.models import vit

State = dict[str, np.ndarray]
Config = families.Config


def recognises(state: State) -> bool:
  """Tells whether the names are timm's, whose ViTs have no mask token."""
  return 'stem.0.weight' in state or (
      'patch_embed.proj.weight' in state and 'mask_token' not in state)


def table(config: Config) -> names.Table:
  """Rules from our parameters to the names that `complete` returns."""
  if isinstance(config, convnext.ConvNeXtConfig):
    return names.timm_convnext(config)
  return names.vit_table(
      config, names.TIMM_V3 if config.position == 'rope' else names.TIMM_V2)


def complete(state: State) -> State:
  """Adds what timm drops: mask token, CLS position, the bias of k."""
  if 'stem.0.weight' in state:
    return dict(state)
  out = dict(state)
  embed_dim = names.shape(state, 'cls_token', 3)[-1]
  out['mask_token'] = np.zeros((1, embed_dim), np.float32)
  if 'pos_embed' in state and 'reg_token' in state:
    # timm adds the position of CLS to the CLS token itself.
    out['pos_embed'] = np.concatenate(
        [np.zeros((1, 1, embed_dim), np.float32),
         _like(state, 'pos_embed', (1, None, embed_dim))], axis=1)
  for key in [key for key in out if key.endswith('.q_bias')]:
    q, v = (out.pop(name) for name in (key, key.replace(
        '.q_bias', '.v_bias')) if names.shape(state, name, 1))
    out.pop(key.replace('.q_bias', '.k_bias'), None)  # a buffer of zeros
    out[key.replace('.q_bias', '.qkv.bias')] = np.concatenate(
        [q, np.zeros_like(q), v])
  return out


def _like(state: State, name: str, wanted: tuple) -> np.ndarray:
  """A tensor of a shape, of which None may be any length."""
  shape = names.shape(state, name, len(wanted))
  if any(b not in (None, a) for a, b in zip(shape, wanted, strict=True)):
    raise errors.UserError(
        f'{name} has shape {shape} instead of '
        f'{tuple("any" if n is None else n for n in wanted)}: the file is '
        'damaged, get it again')
  return state[name]


def config(state: State, num_heads: int | None = None) -> Config:
  """Infers the configuration from the tensors of `complete`."""
  if 'stem.0.weight' in state:
    blocks = lambda s: {
        key.split('.')[3] for key in state
        if key.startswith(f'stages.{s}.blocks.') and key.count('.') > 3}
    return convnext.ConvNeXtConfig(
        tuple(len(blocks(s)) for s in range(4)),
        tuple(names.shape(state, f'stages.{s}.blocks.0.gamma', 1)[0]
              for s in range(4)))
  config = meta.config(_as_meta(state), {}, num_heads)
  # timm's DINOv3 has no bias of keys.
  return dataclasses.replace(
      config, mask_k_bias=config.position == 'rope' and config.qkv_bias)


def check_square(values: told.Told | None, config: Config):
  """Checks, by config.json, that learned positions are of square images.

  Raises:
    UserError: they are not; 9 × 16 of them would pass for 12 × 12.
  """
  if values is None or getattr(config, 'position', None) != 'learned':
    return
  told_size = []
  if 'model_args' in values:
    told_size.append(values.inner('model_args').get('img_size', None))
  if 'pretrained_cfg' in values:
    size = values.inner('pretrained_cfg').get('input_size', None)
    told_size.append(size[1:] if isinstance(size, list) else None)
  for size in told_size[:1] if told_size and told_size[0] else told_size:
    if isinstance(size, list) and len(set(map(str, size))) > 1:
      raise errors.UserError(
          f'{values.source} says that the model takes images of {size} '
          'pixels: positions of images that are not square are not read from '
          'files of timm')


def reduce(state: State, config: Config, *,
           lossy: bool = False) -> tuple[State, list[str]]:
  """Reduces a state dict that `table` wrote to what timm can hold.

  Returns:
    The state dict of timm's model, and the names of what is left out.

  Raises:
    UserError: an option that timm lacks; unless `lossy`, a bias of keys that
      is not zero, or a norm of local crops, would be left out.
  """
  if isinstance(config, convnext.ConvNeXtConfig):
    return dict(state), []
  _refuse_options(config, lossy)
  dropped = [key for key in state
             if key == 'mask_token' or key.startswith('local_cls_norm.')]
  out = {key: value for key, value in state.items() if key not in dropped}
  if config.position == 'learned':
    if config.num_registers:
      position = out['pos_embed']
      out['cls_token'] = out['cls_token'] + position[:, :1]
      out['pos_embed'] = position[:, 1:]
    return out, dropped
  for key in list(out):
    if key.endswith('.qkv.bias'):
      q, k, v = np.split(out.pop(key), 3)
      if np.any(k) and not lossy:
        raise errors.UserError(
            f'{key} has a bias of keys that is not zero, and timm\'s DINOv3 '
            'has none: use --format=meta, or --lossy to leave it out')
      if np.any(k):
        dropped.append(key.replace('.qkv.bias', '.k_bias'))
      if np.any(q) or np.any(v):
        out[key.replace('.qkv.bias', '.q_bias')] = q
        out[key.replace('.qkv.bias', '.v_bias')] = v
      else:
        dropped.append(key)
  biases = [key for key in out if key.endswith('.q_bias')]
  if biases and len(biases) < config.depth:
    for i in range(config.depth):  # some layers are zero: keep them all
      for part in 'qv':
        out.setdefault(f'blocks.{i}.attn.{part}_bias',
                       np.zeros(config.embed_dim, np.float32))
    dropped = [key for key in dropped if not key.endswith('.qkv.bias')]
  return out, dropped


def model_name(config: Config, state: State) -> str:
  """The timm architecture that a state dict of `reduce` belongs to.

  Raises:
    UserError: timm has no such size.
  """
  if isinstance(config, convnext.ConvNeXtConfig):
    known = {((3, 3, 9, 3), 96): 'tiny', ((3, 3, 27, 3), 96): 'small',
             ((3, 3, 27, 3), 128): 'base', ((3, 3, 27, 3), 192): 'large'}
    size = known.get((config.depths, config.dims[0]))
  else:
    v3 = config.position == 'rope'
    known = {(384, 12, 'mlp'): 'small', (768, 12, 'mlp'): 'base',
             (1024, 24, 'mlp'): 'large'} | ({
                 (384, 12, 'swiglu'): 'small_plus',
                 (1280, 32, 'swiglu'): 'huge_plus',
                 (4096, 40, 'swiglu'): '7b'} if v3 else {
                     (1536, 40, 'swiglu'): 'giant'})
    usual = config.patch_px == (16 if v3 else 14) and (
        config.num_registers in ((4,) if v3 else (0, 4)))
    size = usual and known.get((config.embed_dim, config.depth, config.ffn))
  if not size:
    raise errors.UserError(
        'timm has no DINO model of this size: use --format=meta or hf')
  return _name(config, state, size)


def architecture(config: Config, state: State) -> tuple[str, dict]:
  """Arguments of timm.create_model that hold a state dict of `reduce`.

  Returns:
    The name, and what differs from what timm makes of it: of a size that was
    never published, the nearest name and every size.
  """
  try:
    name, options = model_name(config, state), {}
  except errors.UserError:
    name, options = _nearest(config, state)
  if getattr(config, 'position', None) == 'learned':
    options['img_size'] = config.image_px
  return name, options


def _nearest(config: Config, state: State) -> tuple[str, dict]:
  if isinstance(config, convnext.ConvNeXtConfig):
    return _name(config, state, 'tiny'), {
        'depths': config.depths, 'dims': config.dims}
  v3, swiglu = config.position == 'rope', config.ffn == 'swiglu'
  size = ('small_plus' if v3 else 'giant') if swiglu else 'small'
  # timm's SwiGLU of DINOv2 counts gate and value together.
  hidden = (config.ffn_hidden or 4 * config.embed_dim) * (
      2 if swiglu and not v3 else 1)
  ratio = hidden / config.embed_dim
  if int(ratio * config.embed_dim) < hidden:  # as timm rounds
    ratio = (hidden + 0.5) / config.embed_dim
  options = {
      'patch_size': config.patch_px, 'embed_dim': config.embed_dim,
      'depth': config.depth, 'num_heads': config.num_heads,
      'mlp_ratio': ratio}
  if config.num_registers != 4:
    options['num_reg_tokens' if v3 else 'reg_tokens'] = config.num_registers
  if v3 and swiglu:
    options['swiglu_align_to'] = 1
  return _name(config, state, size), options


def _name(config: Config, state: State, size: str) -> str:
  if isinstance(config, convnext.ConvNeXtConfig):
    return f'convnext_{size}.dinov3_lvd1689m'
  if config.position == 'rope':
    bias = any(key.endswith('.q_bias') for key in state)
    return f'vit_{size}_patch16_dinov3' + ('_qkvb' if bias else '')
  registers = '_reg4' if config.num_registers else ''
  return f'vit_{size}_patch14{registers}_dinov2'


def _refuse_options(config: vit.ViTConfig, lossy: bool):
  for name, value in (('norm', 'layernorm'),
                      ('untie_cls_and_patch_norms', False),
                      ('ffn', 'swiglu' if config.ffn == 'swiglu' else 'mlp')):
    got = getattr(config, name)
    if got != value:
      raise errors.UserError(
          f'{name}={got!r} is not an option of timm\'s models: use '
          '--format=meta')
  if config.untie_global_and_local_cls_norm and not lossy:
    raise errors.UserError(
        'the model has a norm of its own for local crops (local_cls_norm), '
        'which timm cannot hold: use --format=meta, or --lossy to leave it '
        'out; features do not use it')


def _as_meta(state: State) -> State:
  """The names that `meta.config` reads."""
  v3 = 'pos_embed' not in state
  ends = {'gamma_1': 'ls1.gamma', 'gamma_2': 'ls2.gamma'}
  swiglu = v3 and 'blocks.0.mlp.fc1_g.weight' in state or (
      not v3 and names.shape(state, 'blocks.0.mlp.fc1.weight', 2)[0]
      != names.shape(state, 'blocks.0.mlp.fc2.weight', 2)[1])
  out = {}
  for key, value in state.items():
    for old, new in ends.items():
      key = key.replace(old, new)
    if swiglu:
      key = key.replace('mlp.fc2.', 'mlp.w3.')
    out[key.replace(
        'reg_token', 'storage_tokens' if v3 else 'register_tokens')] = value
  return out
