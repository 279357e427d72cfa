"""Published sizes in every format, from shapes alone: nothing is allocated."""

import dataclasses
import math
import re

import numpy as np
import pytest

from dinojax.core import errors
from dinojax.core import tree
from dinojax.interop import hf
from dinojax.interop import meta
from dinojax.interop import reading
from dinojax.interop import timm
from dinojax.interop import translate
from dinojax.models import zoo

CONFIGS = {name: zoo.vit_config(name) for name in zoo.names()} | {
    name: zoo.convnext_config(name) for name in zoo.convnext_names()}
# What no tensor of a file shows.
UNSEEN = ('drop_path_rate', 'dtype', 'packing', 'attention', 'remat',
          'layerscale', 'token_std')

EXTRA = {'dinov2': set(), 'convnext': {'norms.N.weight', 'norms.N.bias'},
         'dinov3': {'rope_embed.periods', 'blocks.N.attn.qkv.bias_mask'}}


def views(shapes: dict) -> dict:
  """Tensors of these shapes that take no memory."""
  return {key: np.broadcast_to(np.float32(0), shape)
          for key, shape in shapes.items()}


def seen(config, *but):
  return {field.name: getattr(config, field.name)
          for field in dataclasses.fields(config)
          if field.name not in (*UNSEEN, *but)}


@pytest.mark.parametrize('name', CONFIGS)
def test_a_file_of_meta_says_what_it_is(name):
  config = CONFIGS[name]
  shapes = reading.shapes(config)
  keys = translate.key_shapes(meta.table(config), shapes)
  assert sum(map(math.prod, keys.values())) == tree.num_elements(shapes)
  state = meta.restore(views(keys), {}, config)
  told = meta.config(*meta.complete(state))
  assert seen(told) == seen(config)
  # What the file holds beside parameters: buffers, and one norm twice.
  assert {re.sub(r'\d+', 'N', key) for key in state.keys() - keys.keys()} == (
      EXTRA[name.split('_')[1] if 'convnext' in name else name[:6]] - (
          {'blocks.N.attn.qkv.bias_mask'} if '7b' in name else set()))


@pytest.mark.parametrize('name', CONFIGS)
def test_a_folder_of_transformers_says_what_it_is(name):
  config = CONFIGS[name]
  keys = translate.key_shapes(hf.table(config), reading.shapes(config))
  assert sum(map(math.prod, keys.values())) == tree.num_elements(
      reading.shapes(config))
  told = hf.config(hf.describe(config))
  # It has no offset of positions, no local norm; and 7B none of q and v.
  differs = ('interpolate_offset', 'untie_global_and_local_cls_norm')
  if not getattr(config, 'qkv_bias', True):
    differs += ('mask_k_bias',)
  assert seen(told, *differs) == seen(config, *differs)
  assert getattr(told, 'layerscale', 1) == getattr(config, 'layerscale', 1)


@pytest.mark.parametrize('name', CONFIGS)
def test_a_file_of_timm_says_what_it_is(name):
  config = CONFIGS[name]
  if name == 'dinov3_vitl16plus':
    with pytest.raises(errors.UserError, match='no DINO model of this size'):
      timm.model_name(config, {})
    return
  keys = translate.key_shapes(timm.table(config), reading.shapes(config))
  state, _ = timm.reduce(views(keys), config, lossy=True)
  assert timm.model_name(config, state)
  told = timm.config(timm.complete(state), getattr(config, 'num_heads', None))
  differs = ('untie_global_and_local_cls_norm', 'qkv_bias', 'mask_k_bias')
  assert seen(told, *differs) == seen(config, *differs)
