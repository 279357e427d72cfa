"""Published models by name: sizes, options and where they come from."""

import dataclasses

from dinojax.core import errors
from dinojax.models import convnext
from dinojax.models import families
from dinojax.models import vit

# width, depth, heads. Source: DINOv2 and DINOv3 model cards and factories.
_SIZES = {
    'ti': (192, 12, 3),
    's': (384, 12, 6),
    'b': (768, 12, 12),
    'l': (1024, 24, 16),
    'so400m': (1152, 27, 18),
    'h': (1280, 32, 20),
    'g': (1536, 40, 24),
    '7b': (4096, 40, 32),
}
# DINOv3: FFN kind, ratio, alignment of the hidden width.
_V3_FFN = {
    'vits16': ('s', 'mlp', 4, 0),
    'vits16plus': ('s', 'swiglu', 6, 8),
    'vitb16': ('b', 'mlp', 4, 0),
    'vitl16': ('l', 'mlp', 4, 0),
    'vitl16plus': ('l', 'swiglu', 6, 8),
    'vith16plus': ('h', 'swiglu', 6, 8),
    'vit7b16': ('7b', 'swiglu', 3, 64),
}
# Blocks and widths of the stages.
_CONVNEXT = {
    'tiny': ((3, 3, 9, 3), (96, 192, 384, 768)),
    'small': ((3, 3, 27, 3), (96, 192, 384, 768)),
    'base': ((3, 3, 27, 3), (128, 256, 512, 1024)),
    'large': ((3, 3, 27, 3), (192, 384, 768, 1536)),
}
_V2 = ('vits14', 'vitb14', 'vitl14', 'vitg14')


def swiglu_hidden(embed_dim: int, ratio: float, align: int = 8) -> int:
  """Hidden width of SwiGLU: two thirds of the MLP's, rounded up."""
  hidden = int(int(embed_dim * ratio) * 2 / 3)
  return -(-hidden // align) * align


def names() -> list[str]:
  """Every name that `vit_config` knows."""
  v2 = [f'dinov2_{name}{reg}' for name in _V2 for reg in ('', '_reg4')]
  return v2 + [f'dinov3_{name}' for name in _V3_FFN]


def convnext_names() -> list[str]:
  """Every name that `convnext_config` knows."""
  return [f'dinov3_convnext_{name}' for name in _CONVNEXT]


def convnext_config(name: str, **overrides) -> convnext.ConvNeXtConfig:
  """The configuration of a published ConvNeXt, 'dinov3_convnext_tiny'.

  Args:
    name: see `convnext_names`.
    **overrides: fields of ConvNeXtConfig.

  Raises:
    UserError: unknown name.
  """
  if name not in convnext_names():
    raise errors.UserError(
        f'model {name!r} is not known: use one of '
        f'{", ".join(convnext_names())}')
  depths, dims = _CONVNEXT[name.rpartition('_')[2]]
  return dataclasses.replace(
      convnext.ConvNeXtConfig(depths, dims), **overrides)


def size(letter: str) -> dict[str, int]:
  """Width, depth and heads of 's', 'b', 'l', 'so400m', 'h', 'g' or '7b'."""
  embed_dim, depth, num_heads = _SIZES[letter]
  return dict(embed_dim=embed_dim, depth=depth, num_heads=num_heads)


def num_heads(embed_dim: int, depth: int) -> int:
  """Heads of the published model of this width and depth.

  Raises:
    UserError: there is none, so the number has to be given.
  """
  for width, layers, heads in _SIZES.values():
    if (width, layers) == (embed_dim, depth):
      return heads
  raise errors.UserError(
      f'no published model is {embed_dim} wide and {depth} deep, so its '
      'number of heads is not known: give num_heads=N in Python, --num_heads=N '
      'on the command line')


def vit_config(name: str, **overrides) -> vit.ViTConfig:
  """The configuration of a published ViT.

  Args:
    name: such as 'dinov2_vitg14_reg4' or 'dinov3_vit7b16'; the learned grid
      of DINOv2 is that of the released files, 518 px.
    **overrides: fields of ViTConfig.

  Raises:
    UserError: unknown name.

  Source: the hub constructors of DINOv2 and DINOv3.
  """
  family, _, rest = name.partition('_')
  if name not in names():
    raise errors.UserError(
        f'model {name!r} is not known: use one of {", ".join(names())}')
  make = _dinov2 if family == 'dinov2' else _dinov3
  return dataclasses.replace(make(rest), **overrides)


def _dinov2(name: str) -> vit.ViTConfig:
  letter, registers = name[3], name.endswith('_reg4')
  sizes = size(letter)
  ffn = dict(ffn_hidden=4 * sizes['embed_dim'])
  if letter == 'g':
    ffn = dict(ffn='swiglu', ffn_hidden=swiglu_hidden(sizes['embed_dim'], 4))
  return vit.ViTConfig(
      **sizes, **ffn, patch_px=14, image_px=518, position='learned',
      num_registers=4 if registers else 0,
      interpolate_offset=0.0 if registers else 0.1,
      interpolate_antialias=registers, norm_epsilon=1e-6, token_std=1e-6)


def _dinov3(name: str) -> vit.ViTConfig:
  letter, ffn, ratio, align = _V3_FFN[name]
  sizes = size(letter)
  hidden = (swiglu_hidden(sizes['embed_dim'], ratio, align)
            if ffn == 'swiglu' else int(sizes['embed_dim'] * ratio))
  return vit.ViTConfig(
      **sizes, ffn=ffn, ffn_hidden=hidden, patch_px=16, position='rope',
      num_registers=4, norm_epsilon=1e-5, qkv_bias=letter != '7b',
      mask_k_bias=letter != '7b', rope_rescale=2.0,
      untie_global_and_local_cls_norm=letter == '7b')


def published() -> tuple[str, ...]:
  """Names of published models of all families."""
  return (*names(), *convnext_names())


def config(name: str) -> families.Config:
  """The configuration of a published model of any family.

  Raises:
    UserError: an unknown name, with the known ones.
  """
  return vit_config(name) if name in names() else convnext_config(name)
