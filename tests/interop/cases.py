"""Tiny backbones of every family, none of their parameters at its start."""

import dataclasses
import functools

import numpy as np

from dinojax.core import tree
from dinojax.interop import reading
from dinojax.models import convnext
from dinojax.models import vit

V2 = vit.ViTConfig(
    48, 2, 2, 14, image_px=56, ffn_hidden=192, interpolate_offset=0.0)
V2_REG = dataclasses.replace(
    V2, num_registers=4, interpolate_antialias=True, ffn='swiglu',
    ffn_hidden=128)
V3 = vit.ViTConfig(
    48, 2, 2, 16, position='rope', num_registers=4, ffn_hidden=96,
    mask_k_bias=True, norm_epsilon=1e-5, rope_rescale=2.0)
V3_SWIGLU = dataclasses.replace(V3, ffn='swiglu', ffn_hidden=64)
V3_GEGLU = dataclasses.replace(V3_SWIGLU, ffn='geglu')
V3_BARE = dataclasses.replace(
    V3, num_registers=0, qkv_bias=False, mask_k_bias=False, proj_bias=False)
CONVNEXT = convnext.ConvNeXtConfig((1, 1, 2, 1), (16, 24, 32, 48))
MODELS = {'v2': V2, 'v2_registers': V2_REG, 'v3': V3, 'v3_swiglu': V3_SWIGLU,
          'convnext': CONVNEXT}


@functools.lru_cache(maxsize=32)
def weights(config, seed: int = 0) -> reading.Weights:
  """Random parameters, none of them at its initial value; not to be changed."""
  rng = np.random.default_rng(seed)

  def draw(name, shape):
    out = 0.054 * rng.normal(size=shape.shape) + name.endswith('/scale')
    if name.endswith('qkv/bias') and config.mask_k_bias:  # of 48 each
      out[:, 48:96] = 0
    out = out.astype(np.float32)
    out.flags.writeable = False
    return out

  return reading.Weights(config, tree.map_with_name(
      draw, reading.shapes(config)), {}, 'meta')


def images(config, sides, count=2) -> np.ndarray:
  unit = getattr(config, 'patch_px', None) or 32
  return np.random.default_rng(1).normal(
      size=(count, sides[0] * unit, sides[1] * unit, 3)).astype(np.float32)
