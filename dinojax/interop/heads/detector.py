"""Plain-DETR of DINOv3, by the names of its tensors.

A head is {'params': …}, see models.dense.detector. The published file has the
heads of boxes and classes twice, and may hold its backbone.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np

from dinojax.core import errors
from dinojax.interop import names
from dinojax.models.dense import box_decoder
from dinojax.models.dense import detector

TRANSFORMER = 'transformer.'
TWICE = f'{TRANSFORMER}decoder.'  # stands before the second copy of heads
# Stand before the backbone in a file, with windows and without.
BACKBONES = ('backbone.0._backbone.backbone.', 'backbone.0.backbone.')
_NORMS = ('backbone.0._backbone.', 'backbone.0.')
_COPIED = ('class_embed.', 'bbox_embed.')
_MLP = ('cpb_mlp1', 'cpb_mlp2')  # of columns, and of rows
# Windows along a side, of the 7B and of others: no tensor tells them.
_MOST_WINDOWS, _WINDOWS, _WIDE = 3, 2, 4 * 4096


def table(config: detector.Config) -> names.Table:
  """Rules for every tensor of a head."""
  out = [names.Rule('params/queries', ('query_embed.weight',)),
         names.Rule('params/level', (f'{TRANSFORMER}level_embed',), names.ROW)]
  out += names.pair('params/input', 'input_proj.0.0', names.POINT)
  out += names.layer_norm('params/input/norm', 'input_proj.0.1')
  for i in range(config.num_encoder_layers):
    out += _of_stack(_encoder_layer(
        'params/encoder', f'{TRANSFORMER}encoder.layers.{i}.'), i)
  out += of_proposals('params/proposals', TRANSFORMER)
  out += names.pair('params/places', f'{TRANSFORMER}pos_trans')
  out += names.layer_norm('params/places/norm', f'{TRANSFORMER}pos_trans_norm')
  out += of_decoder(config.decoder, 'params/decoder', f'{TRANSFORMER}decoder.')
  out += of_heads('params/heads', '', config.decoder.num_layers + 1)
  if config.norms:
    start = _NORMS[not config.windows]
    for i in range(len(config.widths)):
      out += names.layer_norm(
          f'params/norms/{i}', f'{start}layer_norms.{i}.ln')
  return out


def of_decoder(config: box_decoder.Config, path: str,
               words: str) -> names.Table:
  """Rules of a decoder.

  Args:
    config: its sizes.
    path: path of ours.
    words: stands before all names.
  """
  out: names.Table = []
  for i in range(config.num_layers):
    out += _of_stack(_decoder_layer(
        f'{path}/layers', f'{words}layers.{i}.'), i)
  if config.pre_norm:
    out += names.layer_norm(f'{path}/norm', f'{words}final_layer_norm')
  return out


def of_heads(path: str, words: str, count: int, *,
             classes: bool = True) -> names.Table:
  """Rules of a stack of heads, see `of_decoder`.

  Args:
    path: path of ours.
    words: stands before all names.
    count: heads.
    classes: False: boxes alone.
  """
  out: names.Table = []
  for i in range(count):
    part = names.pair(f'{path}/class', f'{words}class_embed.{i}') if (
        classes) else []
    for j in range(3):
      part += names.pair(
          f'{path}/box/{j}', f'{words}bbox_embed.{i}.layers.{j}')
    out += _of_stack(part, i)
  return out


def of_proposals(path: str, words: str) -> names.Table:
  """Rules of proposals, see `of_decoder`."""
  at = f'{words}enc_output_proj.'
  out = names.pair(f'{path}/grow', f'{at}0.0', names.TRANSPOSED)
  out += names.pair(f'{path}/half', f'{at}2.0', names.CONV)
  for ours, theirs in (('0', '3.0'), ('1', '3.3')):
    out += names.pair(f'{path}/quarter/{ours}', f'{at}{theirs}', names.CONV)
  out += names.layer_norm(f'{path}/quarter/norm', f'{at}3.1.ln')
  out += names.pair(f'{path}/output', f'{words}enc_output')
  return out + names.layer_norm(f'{path}/norm', f'{words}enc_output_norm')


def _encoder_layer(path: str, words: str) -> names.Table:
  out = _self(f'{path}/self', f'{words}self_attn.')
  for ours, theirs in (('self_norm', 'norm1'), ('norm', 'norm2')):
    out += names.layer_norm(f'{path}/{ours}', f'{words}{theirs}')
  return out + _fully_connected(path, words)


def _decoder_layer(path: str, words: str) -> names.Table:
  out = _self(f'{path}/self', f'{words}self_attn.')
  cross = f'{words}cross_attn.'
  for ours, theirs in (('q', 'q'), ('k', 'k'), ('v', 'v'),
                       ('output', 'proj')):
    out += names.pair(f'{path}/cross/{ours}', f'{cross}{theirs}')
  for axis, theirs in zip(('columns', 'rows'), _MLP, strict=True):
    out += names.pair(f'{path}/cross/{axis}/0', f'{cross}{theirs}.0')
    out += names.pair(f'{path}/cross/{axis}/1', f'{cross}{theirs}.2',
                      bias=False)
  for ours, theirs in (('cross_norm', 'norm1'), ('self_norm', 'norm2'),
                       ('norm', 'norm3')):
    out += names.layer_norm(f'{path}/{ours}', f'{words}{theirs}')
  return out + _fully_connected(path, words)


def _self(path: str, words: str) -> names.Table:
  return [names.Rule(f'{path}/qkv/kernel', (f'{words}in_proj_weight',),
                     names.LINEAR),
          names.Rule(f'{path}/qkv/bias', (f'{words}in_proj_bias',)),
          *names.pair(f'{path}/output', f'{words}out_proj')]


def _fully_connected(path: str, words: str) -> names.Table:
  return [rule for n in (1, 2)
          for rule in names.pair(f'{path}/fc{n}', f'{words}linear{n}')]


def _of_stack(table: names.Table, layer: int) -> names.Table:
  """Rules of a layer of stacked parameters."""
  return [dataclasses.replace(rule, layer=layer) for rule in table]


def is_detector(state: Mapping[str, Any]) -> bool:
  """Tells whether tensors are of a detector of DINOv3."""
  return 'input_proj.0.0.weight' in state and 'query_embed.weight' in state


def sizes_of(state: Mapping[str, Any], widths: tuple[int, ...],
             patch_px: int, source: str) -> detector.Config:
  """Sizes of a head by the shapes of its tensors.

  Half of its queries are of training alone.

  Args:
    state: tensors by name.
    widths: width of each layer of the backbone that is read.
    patch_px: side of a patch of the backbone.
    source: name of the file.

  Raises:
    UserError: a tensor that sizes are read from is missing, or features of
      another backbone.
  """
  tensors = names.Sizes(state, source, 'detector of DINOv3')
  shape, count = tensors.shape, tensors.count

  inputs, whole = shape('input_proj.0.0.weight')[1], sum(widths)
  if inputs not in (whole, 2 * whole):
    raise errors.UserError(
        f'{source} reads maps of {inputs} values, and the layers of this '
        f'backbone have {whole}, or {2 * whole} with windows: give the '
        'backbone that it was trained on')
  layer = f'{TRANSFORMER}decoder.layers.'
  cross = f'{layer}0.cross_attn.{_MLP[0]}.'
  queries, hidden = shape('query_embed.weight')
  decoder = box_decoder.Config(
      shape('class_embed.0.weight')[0], hidden, shape(f'{cross}2.weight')[0],
      shape(f'{layer}0.linear1.weight')[0], count(layer),
      shape(f'{cross}0.weight')[0], patch_px)
  windows = 0 if inputs == whole else (
      _MOST_WINDOWS if whole >= _WIDE else _WINDOWS)
  return detector.Config(
      tuple(n * (inputs // whole) for n in widths), decoder,
      num_queries=queries - queries // 2, num_extra=queries // 2,
      num_encoder_layers=count(f'{TRANSFORMER}encoder.layers.'),
      encoder_ffn=shape(f'{TRANSFORMER}encoder.layers.0.linear1.weight')[0],
      windows=windows)


def checked(state: Mapping[str, Any], source: str) -> dict[str, Any]:
  """Tensors of a file without the second copy of its heads.

  Raises:
    UserError: copies that are not equal.
  """
  out = {}
  for name, value in state.items():
    if not name.startswith(tuple(TWICE + word for word in _COPIED)):
      out[name] = value
    elif not np.array_equal(value, state.get(name.removeprefix(TWICE))):
      raise errors.UserError(
          f'{source} has {name} and {name.removeprefix(TWICE)}, which are one '
          'tensor in every detector of DINOv3, with different values: get it '
          'again')
  return out
