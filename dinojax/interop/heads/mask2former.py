"""Mask2Former of DINOv3, by the names of its tensors.

A head is {'params': …, 'stats': …}, see models.dense.mask2former. In the
published file the adapter is the first of two parts and the decoders are the
second; the backbone is in a file of its own.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from dinojax.interop import names
from dinojax.models.dense import adapter
from dinojax.models.dense import mask2former
from dinojax.models.dense import pixel_decoder
from dinojax.models.dense import query_decoder

ADAPTER, DECODERS = 'segmentation_model.0.', 'segmentation_model.1.'
PIXELS, QUERIES = (f'{DECODERS}{part}.' for part in (
    'pixel_decoder', 'predictor'))
BACKBONE = f'{ADAPTER}backbone.'
_STEM = 3  # convolutions before the first that is named by its stride
_POINTS = 4  # of a head in each map: no shape tells them from the heads


def table(config: mask2former.Config) -> names.Table:
  """Rules for every tensor of a head."""
  return (of_adapter(config.adapter, 'params/adapter', ADAPTER)
          + of_pixels(config.pixels, 'params/pixels', PIXELS)
          + of_queries(config.decoder, 'params/decoder', QUERIES))


def sizes_of(state: Mapping[str, Any], patch_px: int,
             source: str) -> mask2former.Config:
  """Sizes of a head by the shapes of its tensors.

  Heads of the queries are as many as those of the pixel decoder, and norms
  follow their branches.

  Args:
    state: tensors by name.
    patch_px: side of a patch of the backbone.
    source: name of the file.

  Raises:
    UserError: a tensor that sizes are read from is missing.
  """
  tensors = names.Sizes(state, source, 'Mask2Former of DINOv3')
  shape, count = tensors.shape, tensors.count

  extractor = f'{ADAPTER}interactions.0.extractor.'
  layer = f'{PIXELS}encoder.encoder.layers.'
  width = shape(f'{ADAPTER}level_embed')[1]
  channels, hidden = shape(f'{PIXELS}mask_feature.weight')[:2]
  heads = shape(f'{layer}0.self_attn.attention_weights.weight')[0] // (
      pixel_decoder.NUM_LEVELS * _POINTS)
  queries, inner = shape(f'{QUERIES}query_feat.weight')
  return mask2former.Config(
      adapter.Config(
          width, patch_px, channels=shape(f'{ADAPTER}spm.stem.0.weight')[0],
          num_heads=shape(f'{extractor}attn.attention_weights.weight')[
              0] // _POINTS, num_points=_POINTS,
          values=shape(f'{extractor}attn.value_proj.weight')[0],
          hidden=shape(f'{extractor}ffn.fc1.weight')[0],
          num_blocks=count(f'{ADAPTER}interactions.')),
      pixel_decoder.Config(
          (width,) * 4, hidden, channels, heads, _POINTS,
          shape(f'{layer}0.linear1.weight')[0],
          count(layer)),
      query_decoder.Config(
          hidden, inner, channels, shape(f'{QUERIES}class_embed.weight')[0] - 1,
          queries, heads,
          shape(f'{QUERIES}transformer_ffn_layers.0.linear1.weight')[0],
          count(f'{QUERIES}transformer_ffn_layers.'),
          projects=f'{QUERIES}input_proj.0.weight' in state))


def of_attention(path: str, words: str) -> names.Table:
  """Rules of a deformable attention.

  Args:
    path: path of ours.
    words: stands before all names.
  """
  return [rule for ours, theirs in (
      ('offsets', 'sampling_offsets'), ('weights', 'attention_weights'),
      ('value', 'value_proj'), ('output', 'output_proj'))
          for rule in names.pair(f'{path}/{ours}', f'{words}{theirs}')]


def of_adapter(config: adapter.Config, path: str, words: str) -> names.Table:
  """Rules of an adapter, see `of_attention`."""
  out = [names.Rule(f'{path}/levels', (f'{words}level_embed',))]
  for i in range(_STEM + 3):
    conv, norm = (f'{words}spm.stem.{3 * i + n}' if i < _STEM else
                  f'{words}spm.conv{i - 1}.{n}' for n in (0, 1))
    part = f'{path}/prior/{i}'
    out += names.pair(part, conv, names.CONV, bias=False)
    out += names.batch_norm(f'{part}/norm', f'stats/prior/{i}', norm)
  for i in range(len(adapter.STRIDES)):
    out += names.pair(f'{path}/projections/{i}', f'{words}spm.fc{i + 1}',
                      names.POINT)
    out += names.batch_norm(f'{path}/norms/{i}', f'stats/norms/{i}',
                            f'{words}norm{i + 1}')
  last = config.num_blocks - 1
  for i in range(config.num_extractors):
    at = (f'{i}.extractor' if i <= last else
          f'{last}.extra_extractors.{i - last - 1}')
    out += _extractor(f'{path}/extractors/{i}', f'{words}interactions.{at}.')
  return out + names.pair(f'{path}/grow', f'{words}up', names.TRANSPOSED)


def _extractor(path: str, words: str) -> names.Table:
  out = of_attention(f'{path}/attention', f'{words}attn.')
  for ours, theirs in (('query_norm', 'query_norm'), ('map_norm', 'feat_norm'),
                       ('norm', 'ffn_norm')):
    out += names.layer_norm(f'{path}/{ours}', f'{words}{theirs}')
  out += names.pair(f'{path}/smooth', f'{words}ffn.dwconv.dwconv', names.CONV)
  for name in ('fc1', 'fc2'):
    out += names.pair(f'{path}/{name}', f'{words}ffn.{name}')
  return out


def of_pixels(config: pixel_decoder.Config, path: str,
              words: str) -> names.Table:
  """Rules of a pixel decoder, see `of_attention`."""
  out = [names.Rule(f'{path}/levels', (f'{words}encoder.level_encoding',))]
  for i in range(pixel_decoder.NUM_LEVELS):
    out += names.pair(f'{path}/inputs/{i}', f'{words}input_convs.{i}.0',
                      names.POINT)
    out += names.layer_norm(f'{path}/inputs/{i}/norm',
                            f'{words}input_convs.{i}.1')
  for i in range(config.num_layers):
    part, at = f'{path}/layers', f'{words}encoder.encoder.layers.{i}.'
    layer = of_attention(f'{part}/attention', f'{at}self_attn.')
    for n in (1, 2):
      layer += names.layer_norm(f'{part}/norm{n}', f'{at}norm{n}')
      layer += names.pair(f'{part}/fc{n}', f'{at}linear{n}')
    out += _of_stack(layer, i)
  for name, layout in (('lateral', names.POINT), ('output', names.CONV)):
    out += names.pair(f'{path}/{name}', f'{words}{name}_convs.0', layout,
                      bias=False)
    out += names.layer_norm(f'{path}/{name}/norm',
                            f'{words}{name}_convs.0.norm')
  return out + names.pair(f'{path}/features', f'{words}mask_feature',
                          names.POINT)


def of_queries(config: query_decoder.Config, path: str,
               words: str) -> names.Table:
  """Rules of a decoder of queries, see `of_attention`."""
  out = [names.Rule(f'{path}/{ours}', (f'{words}{theirs}.weight',))
         for ours, theirs in (('queries', 'query_feat'),
                              ('places', 'query_embed'),
                              ('levels', 'level_embed'))]
  for i in range(config.num_layers):
    out += _of_stack(_query_layer(
        f'{path}/layers', f'{words}transformer_', i), i)
  out += names.layer_norm(f'{path}/norm', f'{words}post_norm')
  out += names.pair(f'{path}/class', f'{words}class_embed')
  for i in range(3):
    out += names.pair(f'{path}/mask/{i}', f'{words}mask_embed.layers.{i}')
  if config.has_inputs:
    for i in range(query_decoder.NUM_LEVELS):
      out += names.pair(f'{path}/inputs/{i}', f'{words}input_proj.{i}',
                        names.POINT)
  return out


def _query_layer(path: str, words: str, number: int) -> names.Table:
  out: names.Table = []
  for name, theirs in (('cross', 'multihead_attn'), ('self', 'self_attn')):
    at = f'{words}{name}_attention_layers.{number}.'
    out += [names.Rule(f'{path}/{name}/qkv/kernel', (
        f'{at}{theirs}.in_proj_weight',), names.LINEAR),
            names.Rule(f'{path}/{name}/qkv/bias', (
                f'{at}{theirs}.in_proj_bias',))]
    out += names.pair(f'{path}/{name}/output', f'{at}{theirs}.out_proj')
    out += names.layer_norm(f'{path}/{name}_norm', f'{at}norm')
  at = f'{words}ffn_layers.{number}.'
  for n in (1, 2):
    out += names.pair(f'{path}/fc{n}', f'{at}linear{n}')
  return out + names.layer_norm(f'{path}/norm', f'{at}norm')


def _of_stack(table: names.Table, layer: int) -> names.Table:
  """Rules of a layer of stacked parameters."""
  return [dataclasses.replace(rule, layer=layer) for rule in table]
