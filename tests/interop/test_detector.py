"""Names of the published detector's tensors, at its size and at a small one.
"""

import re

import jax
import numpy as np
import pytest

from dinojax.core import errors
from dinojax.core import tree
from dinojax.interop import translate
from dinojax.interop.heads import detector as tables
from dinojax.models.dense import detector


def shapes_of(config):
  return jax.eval_shape(lambda: {
      'params': detector.init(jax.random.key(0), config)})


def expected(inputs=8 * 4096, hidden=768, ffn=2048, classes=91, queries=3000,
             layers=(6, 6), heads=8, inner=512):
  """Tensors by name, from a description of the file and not from our table."""
  out = {}

  def put(name, *shape, bias=True):
    out[f'{name}.weight'] = shape
    if bias:
      out[f'{name}.bias'] = shape[:1]

  def attention(name):
    out[f'{name}.in_proj_weight'] = (3 * hidden, hidden)
    out[f'{name}.in_proj_bias'] = (3 * hidden,)
    put(f'{name}.out_proj', hidden, hidden)

  put('input_proj.0.0', hidden, inputs, 1, 1)
  put('input_proj.0.1', hidden)
  put('query_embed', queries, hidden, bias=False)
  for i in range(layers[1] + 1):
    put(f'class_embed.{i}', classes, hidden)
    for j, width in enumerate((hidden, hidden, 4)):
      put(f'bbox_embed.{i}.layers.{j}', width, hidden)
  t = 'transformer.'
  out[f'{t}level_embed'] = (1, hidden)
  for i in range(layers[0]):
    e = f'{t}encoder.layers.{i}.'
    attention(f'{e}self_attn')
    for n in (1, 2):
      put(f'{e}norm{n}', hidden)
    put(f'{e}linear1', ffn, hidden)
    put(f'{e}linear2', hidden, ffn)
  put(f'{t}enc_output', hidden, hidden)
  put(f'{t}enc_output_norm', hidden)
  put(f'{t}pos_trans', 2 * hidden, 2 * hidden)
  put(f'{t}pos_trans_norm', 2 * hidden)
  for name in ('0.0', '2.0', '3.0', '3.3'):
    put(f'{t}enc_output_proj.{name}', hidden, hidden, 2, 2)
  put(f'{t}enc_output_proj.3.1.ln', hidden)
  for i in range(layers[1]):
    e = f'{t}decoder.layers.{i}.'
    attention(f'{e}self_attn')
    for name in ('q', 'k', 'v', 'proj'):
      put(f'{e}cross_attn.{name}', hidden, hidden)
    for name in ('cpb_mlp1', 'cpb_mlp2'):
      put(f'{e}cross_attn.{name}.0', inner, 2)
      put(f'{e}cross_attn.{name}.2', heads, inner, bias=False)
    for n in (1, 2, 3):
      put(f'{e}norm{n}', hidden)
    put(f'{e}linear1', ffn, hidden)
    put(f'{e}linear2', hidden, ffn)
  put(f'{t}decoder.final_layer_norm', hidden)
  return out


@pytest.mark.parametrize('width, windows, millions', [
    (4096, 3, 129.1), (1024, 2, 110.2)])
def test_the_published_detectors_are_named_and_shaped_as_their_files(
    width, windows, millions):
  state = {name: jax.ShapeDtypeStruct(shape, np.float32)
           for name, shape in expected(8 * width).items()}
  assert tables.is_detector(state)
  config = tables.sizes_of(state, (width,) * 4, 16, 'detr.pth')
  assert config.windows == windows
  assert (config.num_queries, config.num_extra) == (1500, 1500)
  assert config.widths == (2 * width,) * 4
  shapes = shapes_of(config)
  assert translate.key_shapes(tables.table(config), shapes) == expected(
      8 * width)
  assert abs(tree.num_elements(shapes) / 1e6 - millions) < 0.06


SMALL = dict(inputs=64, hidden=32, ffn=24, classes=3, queries=10,
             layers=(1, 2), heads=4, inner=8)


def drawn(seed=0):
  rng = np.random.default_rng(seed)
  return {name: np.float32(rng.normal(size=shape))
          for name, shape in expected(**SMALL).items()}


def test_tensors_go_both_ways():
  state = drawn()
  config = tables.sizes_of(state, (8,) * 4, 16, 'x')
  assert config.decoder.num_heads == 4
  head = translate.to_ours(state, tables.table(config), shapes_of(config))
  back = translate.to_theirs(head, tables.table(config))
  assert set(back) == set(state)
  for name, value in state.items():
    np.testing.assert_array_equal(back[name], value, err_msg=name)


def test_heads_are_there_twice_and_equal():
  state = drawn()
  copies = {tables.TWICE + name: value.copy() for name, value in state.items()
            if name.startswith(('class_embed', 'bbox_embed'))}
  assert tables.checked(state | copies, 'x').keys() == state.keys()
  copies['transformer.decoder.class_embed.1.bias'][0] += 1
  with pytest.raises(errors.UserError, match='x has transformer.decoder.class_'
                     'embed.1.bias and class_embed.1.bias, which are one'):
    tables.checked(state | copies, 'x')


def test_missing_tensors_and_other_backbones_are_a_sentence():
  state = drawn()
  with pytest.raises(errors.UserError, match='x reads maps of 64 values, and '
                     'the layers of this backbone have 40, or 80 with windows'):
    tables.sizes_of(state, (10,) * 4, 16, 'x')
  config = tables.sizes_of(state, (8,) * 4, 16, 'x')
  lost = 'transformer.enc_output.bias'
  state.pop(lost)
  with pytest.raises(errors.UserError, match=re.escape(lost)):
    translate.to_ours(state, tables.table(config), shapes_of(config))
  state.pop('class_embed.0.weight')
  with pytest.raises(errors.UserError, match='x has no class_embed.0.weight'):
    tables.sizes_of(state, (8,) * 4, 16, 'x')
