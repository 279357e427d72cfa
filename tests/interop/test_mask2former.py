"""Names of the published segmentor's tensors, at its size and at a small one.
"""

import dataclasses
import re

import jax
import numpy as np
import pytest

from dinojax.core import errors
from dinojax.core import tree
from dinojax.interop import translate
from dinojax.interop.heads import mask2former as tables
from dinojax.models.dense import mask2former

# The segmentor of the 7B model on ADE20K.
PUBLISHED = mask2former.of_sizes(
    4096, 150, hidden=2048, num_queries=100, num_pixel_layers=6, num_layers=9)
MILLIONS = {'adapter': 227.1, 'pixels': 233.7, 'decoder': 466.6}


def shapes_of(config):
  return jax.eval_shape(lambda: dict(zip(
      ('params', 'stats'), mask2former.init(jax.random.key(0), config),
      strict=True)))


def expected(d=4096, hidden=2048, ffn=4096, classes=150, queries=100, inner=64,
             layers=(6, 9), heads=16, points=4):
  """Tensors by name, from a description of the file and not from our table."""
  out = {}

  def put(name, *shape, bias=True):
    out[f'{name}.weight'] = shape
    if bias:
      out[f'{name}.bias'] = shape[:1]

  def batch_norm(name, width):
    put(name, width)
    out[f'{name}.running_mean'] = out[f'{name}.running_var'] = (width,)

  def deformable(name, width, values, levels):
    count = heads * levels * points
    put(f'{name}.sampling_offsets', 2 * count, width)
    put(f'{name}.attention_weights', count, width)
    put(f'{name}.value_proj', values, width)
    put(f'{name}.output_proj', width, values)

  a = 'segmentation_model.0.'
  out[f'{a}level_embed'] = (3, d)
  for conv, norm, inputs in ((0, 1, 3), (3, 4, inner), (6, 7, inner)):
    put(f'{a}spm.stem.{conv}', inner, inputs, 3, 3, bias=False)
    batch_norm(f'{a}spm.stem.{norm}', inner)
  widths = (inner, 2 * inner, 4 * inner, 4 * inner)
  for i in (2, 3, 4):
    put(f'{a}spm.conv{i}.0', widths[i - 1], widths[i - 2], 3, 3, bias=False)
    batch_norm(f'{a}spm.conv{i}.1', widths[i - 1])
  for i, width in enumerate(widths):
    put(f'{a}spm.fc{i + 1}', d, width, 1, 1)
    batch_norm(f'{a}norm{i + 1}', d)
  for at in (*(f'{i}.extractor' for i in range(4)), '3.extra_extractors.0',
             '3.extra_extractors.1'):
    e = f'{a}interactions.{at}.'
    for norm in ('query_norm', 'feat_norm', 'ffn_norm'):
      put(e + norm, d)
    deformable(f'{e}attn', d, d // 2, 1)
    put(f'{e}ffn.fc1', d // 4, d)
    put(f'{e}ffn.fc2', d, d // 4)
    put(f'{e}ffn.dwconv.dwconv', d // 4, 1, 3, 3)
  out[f'{a}up.weight'], out[f'{a}up.bias'] = (d, d, 2, 2), (d,)

  p = 'segmentation_model.1.pixel_decoder.'
  for i in range(3):
    put(f'{p}input_convs.{i}.0', hidden, d, 1, 1)
    put(f'{p}input_convs.{i}.1', hidden)
  out[f'{p}encoder.level_encoding'] = (3, hidden)
  for i in range(layers[0]):
    e = f'{p}encoder.encoder.layers.{i}.'
    deformable(f'{e}self_attn', hidden, hidden, 3)
    put(f'{e}norm1', hidden)
    put(f'{e}norm2', hidden)
    put(f'{e}linear1', ffn, hidden)
    put(f'{e}linear2', hidden, ffn)
  put(f'{p}lateral_convs.0', hidden, d, 1, 1, bias=False)
  put(f'{p}lateral_convs.0.norm', hidden)
  put(f'{p}output_convs.0', hidden, hidden, 3, 3, bias=False)
  put(f'{p}output_convs.0.norm', hidden)
  put(f'{p}mask_feature', hidden, hidden, 1, 1)

  q = 'segmentation_model.1.predictor.'
  for i in range(layers[1]):
    for kind, name in (('self', 'self_attn'), ('cross', 'multihead_attn')):
      e = f'{q}transformer_{kind}_attention_layers.{i}.'
      out[f'{e}{name}.in_proj_weight'] = (3 * hidden, hidden)
      out[f'{e}{name}.in_proj_bias'] = (3 * hidden,)
      put(f'{e}{name}.out_proj', hidden, hidden)
      put(f'{e}norm', hidden)
    e = f'{q}transformer_ffn_layers.{i}.'
    put(f'{e}linear1', ffn, hidden)
    put(f'{e}linear2', hidden, ffn)
    put(f'{e}norm', hidden)
  put(f'{q}post_norm', hidden)
  put(f'{q}class_embed', classes + 1, hidden)
  for name, count in (('query_feat', queries), ('query_embed', queries),
                      ('level_embed', 3)):
    put(f'{q}{name}', count, hidden, bias=False)
  for i in range(3):
    put(f'{q}mask_embed.layers.{i}', hidden, hidden)
  return out


def test_the_published_segmentor_is_named_and_shaped_as_its_file():
  shapes = shapes_of(PUBLISHED)
  assert translate.key_shapes(tables.table(PUBLISHED), shapes) == expected()
  for part, millions in MILLIONS.items():
    count = tree.num_elements(shapes['params'][part]) / 1e6
    assert abs(count - millions) < 0.06, (part, count)


def test_sizes_are_read_from_shapes():
  state = {name: jax.ShapeDtypeStruct(shape, np.float32)
           for name, shape in expected().items()}
  got = tables.sizes_of(state, 16, 'm2f.pth')
  written = dataclasses.replace(PUBLISHED, adapter=dataclasses.replace(
      PUBLISHED.adapter, values=2048, hidden=1024))
  assert got == written  # widths that follow from others are told here
  state.pop('segmentation_model.0.level_embed')
  with pytest.raises(errors.UserError, match='m2f.pth has no segmentation_mod'):
    tables.sizes_of(state, 16, 'm2f.pth')


SMALL = dict(d=32, hidden=32, ffn=40, classes=3, queries=5, inner=8,
             layers=(2, 3), heads=4)


def drawn(seed=0):
  rng = np.random.default_rng(seed)
  return {name: np.float32(rng.normal(size=shape))
          for name, shape in expected(**SMALL).items()}


def test_tensors_go_both_ways():
  state = drawn()
  config = tables.sizes_of(state, 16, 'x')
  table = tables.table(config)
  head = translate.to_ours(state, table, shapes_of(config))
  back = translate.to_theirs(head, table)
  assert set(back) == set(state)
  for name, value in state.items():
    np.testing.assert_array_equal(back[name], value, err_msg=name)
  # No two of ours are one of theirs.
  assert sum(x.size for x in state.values()) == tree.num_elements(head)


def test_wrong_tensors_are_all_named_at_once():
  state = drawn()
  config = tables.sizes_of(state, 16, 'x')
  missing = ('segmentation_model.1.predictor.post_norm.bias',
             'segmentation_model.0.interactions.2.extractor.attn.'
             'value_proj.weight')
  for name in missing:
    state.pop(name)
  state['segmentation_model.1.predictor.class_embed.bias'] = np.zeros(
      9, np.float32)
  state['segmentation_model.0.injector'] = np.zeros(1, np.float32)
  with pytest.raises(errors.UserError) as raised:
    translate.to_ours(state, tables.table(config), shapes_of(config))
  for text in (*missing, r'class_embed.bias (9,) instead of (4,)',
               '1 unexpected: segmentation_model.0.injector'):
    assert re.search(re.escape(text), str(raised.value)), text
