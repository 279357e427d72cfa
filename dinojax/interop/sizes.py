"""Checks that a network can be made of a configuration that was read."""

import dataclasses
import math
from typing import Any

from dinojax.core import errors
from dinojax.models import families
from dinojax.models import heads
from dinojax.models import layers
from dinojax.models import vit

_WIDTH, _DEPTH, _PX = 2**16, 1000, 2**16
_MOST = {
    'embed_dim': _WIDTH, 'depth': _DEPTH, 'num_heads': 4096, 'patch_px': 4096,
    'num_channels': 4096, 'image_px': _PX, 'ffn_hidden': 2**20,
    'num_registers': 4096, 'num_prototypes': 2**24, 'hidden_dim': 2**20,
    'bottleneck_dim': 2**20, 'num_layers': 64}
_MAY_BE_ZERO = ('ffn_hidden', 'num_registers')
_WORDS = {
    'ffn': ('mlp', 'swiglu', 'geglu'), 'position': ('learned', 'rope'),
    'norm': ('layernorm', 'rmsnorm'), 'remat': layers.REMAT,
    'rope_normalize': ('separate', 'max', 'min'),
    'packing': ('tuple', 'stream'),
    'dtype': ('float32', 'bfloat16', 'float16'),
    'rope_dtype': ('float32', 'bfloat16', 'float16')}
_MAX_POSITIONS = 2**22
_Config = families.Config | heads.HeadConfig


def check(config: _Config, source: str):
  """Looks at every size, word and number of a configuration.

  Raises:
    UserError: one that no backbone can have, with its value.
  """
  for field in dataclasses.fields(config):
    wrong = _wrong(field.name, getattr(config, field.name))
    if wrong:
      raise errors.UserError(f'{source} asks for {wrong}')
  if isinstance(config, vit.ViTConfig):
    wrong = _disagree(config)
    if wrong:
      raise errors.UserError(f'{source} asks for {wrong}')


def _wrong(name: str, value: Any) -> str | None:
  """Says what is wrong with one value alone; None: nothing is."""
  low = 0 if name in _MAY_BE_ZERO else 1
  if name in _WORDS and value not in _WORDS[name]:
    return f'{name}={value!r}: only {", ".join(_WORDS[name])} are known'
  if name in _MOST and value is not None and not low <= value <= _MOST[name]:
    return f'{name}={value}: it must be {low} to {_MOST[name]}'
  if name in ('depths', 'dims') and (len(value) != 4 or not all(
      1 <= x <= _WIDTH for x in value)):
    return f'{name}={value}: it must be four positive numbers'
  numbers = value if isinstance(value, tuple) else (value,)
  if any(isinstance(x, float) and not math.isfinite(x) for x in numbers):
    return f'{name}={value}: it must be finite'
  if name in ('norm_epsilon', 'rope_base') and value is not None and (
      value <= 0):
    return f'{name}={value}: it must be positive'
  if name == 'rope_periods' and value is not None and min(
      value, default=0) <= 0:
    return f'{name}={value}: they must be positive'
  return None


def _disagree(config: vit.ViTConfig) -> str | None:
  """Says which values do not go together; None: all do."""
  width, count = config.embed_dim, config.num_heads
  if width % count:
    return (f'num_heads={count}, which does not divide the width of {width}: '
            'give the number of heads that the model was trained with')
  if config.position == 'learned':
    if config.image_px < config.patch_px:
      return (f'image_px={config.image_px}, less than a patch of '
              f'{config.patch_px} pixels')
    if (config.image_px // config.patch_px) ** 2 > _MAX_POSITIONS:
      return f'image_px={config.image_px}: more than {_MAX_POSITIONS} patches'
    return None
  if width // count % 4:
    return (f'num_heads={count} of a width of {width}: RoPE needs heads of '
            'a width divisible by 4')
  bounds = (config.rope_min_period, config.rope_max_period)
  if config.rope_periods is not None:
    if len(config.rope_periods) != width // count // 4:
      return (f'{len(config.rope_periods)} RoPE periods, where num_heads='
              f'{count} takes {width // count // 4}')
  elif (config.rope_base is None) != (None not in bounds) or any(
      x is not None and x <= 0 for x in bounds):
    return (f'rope_base={config.rope_base} and RoPE periods of {bounds}: it '
            'must be the one or the other, positive')
  return None
