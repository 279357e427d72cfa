"""Tables of tensor names: one per family, used in both directions.

A table is a list of rules; a rule ties one of our leaves, or one layer of a
stacked one, to one tensor of a file, or to several that are joined.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import re

import numpy as np

from dinojax.core import errors
from dinojax.models import convnext
from dinojax.models import vit


@dataclasses.dataclass(frozen=True)
class Layout:
  """How a tensor of a file turns into ours, and back."""

  to_ours: Callable[[np.ndarray], np.ndarray]
  to_theirs: Callable[[np.ndarray], np.ndarray]


SAME = Layout(lambda x: x, lambda x: x)
LINEAR = Layout(np.transpose, np.transpose)  # [out, in] and [in, out]
CONV = Layout(lambda x: x.transpose(2, 3, 1, 0),  # OIHW and HWIO
              lambda x: x.transpose(3, 2, 0, 1))
ROW = Layout(lambda x: x[0], lambda x: x[None])  # [1, …]
TOKEN = Layout(lambda x: x[0, 0], lambda x: x[None, None])  # [1, 1, d]
# Of transposed convolutions: [in, out, y, x] and [in, y, x, out].
TRANSPOSED = Layout(lambda x: x.transpose(0, 2, 3, 1),
                    lambda x: x.transpose(0, 3, 1, 2))
POINT = Layout(lambda x: x[:, :, 0, 0].T,  # [out, in, 1, 1], [in, out]
               lambda x: x.T[:, :, None, None])
COLUMN = Layout(lambda x: x[:, 0], lambda x: x[:, None])  # [k, 1]


@dataclasses.dataclass(frozen=True)
class Rule:
  """One leaf of ours and its tensors in a file.

  Attributes:
    path: name of our leaf, 'blocks/attn/qkv/kernel'.
    keys: names in the file; several tensors are joined along our last axis, in
      order.
    layout: conversion of each of these tensors.
    layer: index of the layer in a stacked leaf; None: it is not stacked.
  """

  path: str
  keys: tuple[str, ...]
  layout: Layout = SAME
  layer: int | None = None


Table = list[Rule]


def shape(state: Mapping[str, np.ndarray], name: str,
          axes: int) -> tuple[int, ...]:
  """The shape of a tensor from which sizes are read.

  Raises:
    UserError: there is none, it has other axes, or one of length zero.
  """
  if name not in state:
    raise errors.UserError(
        f'a backbone has no {name}: the file is damaged or not whole, get it '
        'again')
  lengths = state[name].shape
  if len(lengths) != axes or 0 in lengths:
    raise errors.UserError(
        f'{name} has shape {lengths}, and should have {axes} axes: the file is '
        'damaged, get it again')
  return lengths


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Sizes of a published head by its tensors.

  Attributes:
    state: tensors by name.
    source: name of the file, for messages.
    what: kind of head, which has what is asked for.
  """

  state: Mapping[str, np.ndarray]
  source: str
  what: str

  def shape(self, name: str) -> tuple[int, ...]:
    """The shape of a tensor.

    Raises:
      UserError: it is missing.
    """
    if name not in self.state:
      raise errors.UserError(
          f'{self.source} has no {name}, which every {self.what} has: it is '
          'damaged or another head; get it again')
    return self.state[name].shape

  def count(self, words: str) -> int:
    """Parts that are numbered from 0 behind the words and a dot."""
    places = [int(match[1]) for name in self.state if (
        match := re.match(rf'{re.escape(words)}(\d+)\.', name))]
    return max(places, default=-1) + 1


@dataclasses.dataclass(frozen=True)
class VitNames:
  """The words of one family of ViT files; several words are joined parts.

  `block` comes before the words from `norm1` on, with the layer in place of
  {i}.
  """

  cls_token: str
  mask_token: str
  mask_layout: Layout
  patch_embed: str
  registers: str
  pos_embed: str
  norm: str
  block: str
  qkv: tuple[str, ...]
  proj: str
  ls1: str
  ls2: str
  fc1: str
  fc2: str
  w12: tuple[str, ...]
  w3: str
  pos_layout: Layout = ROW


META_V2 = VitNames(
    cls_token='cls_token', mask_token='mask_token', mask_layout=ROW,
    patch_embed='patch_embed.proj', registers='register_tokens',
    pos_embed='pos_embed', norm='norm', block='blocks.{i}.',
    qkv=('attn.qkv',), proj='attn.proj', ls1='ls1.gamma', ls2='ls2.gamma',
    fc1='mlp.fc1', fc2='mlp.fc2', w12=('mlp.w12',), w3='mlp.w3')
META_V3 = dataclasses.replace(
    META_V2, registers='storage_tokens', w12=('mlp.w1', 'mlp.w2'))
HF_V2 = VitNames(
    cls_token='embeddings.cls_token', mask_token='embeddings.mask_token',
    mask_layout=ROW, patch_embed='embeddings.patch_embeddings.projection',
    registers='embeddings.register_tokens',
    pos_embed='embeddings.position_embeddings', norm='layernorm',
    block='encoder.layer.{i}.',
    qkv=('attention.q_proj', 'attention.k_proj', 'attention.v_proj'),
    proj='attention.o_proj', ls1='layer_scale1.lambda1',
    ls2='layer_scale2.lambda1', fc1='mlp.fc1', fc2='mlp.fc2',
    w12=('mlp.gate_proj', 'mlp.up_proj'), w3='mlp.down_proj')
HF_V3 = dataclasses.replace(
    HF_V2, mask_layout=TOKEN, patch_embed='embeddings.patch_embeddings',
    norm='norm', block='layer.{i}.', fc1='mlp.up_proj', fc2='mlp.down_proj')
TIMM_V2 = dataclasses.replace(
    META_V2, registers='reg_token', w12=('mlp.fc1',), w3='mlp.fc2')
TIMM_V3 = dataclasses.replace(
    TIMM_V2, ls1='gamma_1', ls2='gamma_2', w12=('mlp.fc1_g', 'mlp.fc1_x'))


def batch_norm(params: str, stats: str, words: str) -> Table:
  """Rules of a batch norm; the count of its batches is not kept.

  Args:
    params: path of its scale and shift.
    stats: path of its statistics.
    words: name of the module.
  """
  return [Rule(f'{params}/scale', (f'{words}.weight',)),
          Rule(f'{params}/shift', (f'{words}.bias',)),
          Rule(f'{stats}/mean', (f'{words}.running_mean',)),
          Rule(f'{stats}/variance', (f'{words}.running_var',))]


def layer_norm(path: str, words: str) -> Table:
  """Rules of a layer norm."""
  return [Rule(f'{path}/scale', (f'{words}.weight',)),
          Rule(f'{path}/bias', (f'{words}.bias',))]


def pair(path: str, words: str, layout: Layout = LINEAR, *,
         bias: bool = True) -> Table:
  """Rules of a layer's kernel and bias."""
  out = [Rule(f'{path}/kernel', (f'{words}.weight',), layout)]
  return out + ([Rule(f'{path}/bias', (f'{words}.bias',))] if bias
                else [])


def vit_table(config: vit.ViTConfig, names: VitNames) -> Table:
  """Every parameter of a ViT by the words of a family."""
  table = [
      Rule('cls_token', (names.cls_token,), TOKEN),
      Rule('mask_token', (names.mask_token,), names.mask_layout),
      Rule('patch_embed/kernel', (f'{names.patch_embed}.weight',), CONV),
      Rule('patch_embed/bias', (f'{names.patch_embed}.bias',))]
  if config.num_registers:
    table.append(Rule('registers', (names.registers,), ROW))
  if config.position == 'learned':
    table.append(Rule('pos_embed', (names.pos_embed,), names.pos_layout))
  for norm in _final_norms(config):
    table += _norm(config, norm, names.norm if norm == 'norm' else norm)
  for i in range(config.depth):
    table += _block(config, names, i)
  return table


def _block(config: vit.ViTConfig, names: VitNames, i: int) -> Table:
  at = names.block.format(i=i)
  table = []
  for norm in ('norm1', 'norm2'):
    table += _norm(config, f'blocks/{norm}', f'{at}{norm}', i)

  def linear(ours: str, words: tuple[str, ...], bias: bool):
    for part, layout in (('kernel', LINEAR), ('bias', SAME))[:1 + bias]:
      end = 'weight' if part == 'kernel' else 'bias'
      table.append(Rule(f'blocks/{ours}/{part}', tuple(
          f'{at}{word}.{end}' for word in words), layout, i))

  linear('attn/qkv', names.qkv, config.qkv_bias)
  linear('attn/proj', (names.proj,), config.proj_bias)
  if config.ffn != 'mlp':
    linear('mlp/w12', names.w12, config.ffn_bias)
    linear('mlp/w3', (names.w3,), config.ffn_bias)
  else:
    linear('mlp/fc1', (names.fc1,), config.ffn_bias)
    linear('mlp/fc2', (names.fc2,), config.ffn_bias)
  if config.layerscale:
    table += [Rule(f'blocks/{ours}/gamma', (f'{at}{word}',), SAME, i)
              for ours, word in (('ls1', names.ls1), ('ls2', names.ls2))]
  return table


def meta_convnext(config: convnext.ConvNeXtConfig) -> Table:
  """DINOv3's names; the stem's norm follows its conv, elsewhere it leads."""
  return _convnext(config, reduce=lambda s, j: f'downsample_layers.{s}.{j}',
                   block='stages.{s}.{k}', norm='norm', parts={})


def hf_convnext(config: convnext.ConvNeXtConfig) -> Table:
  """transformers 5's names of DINOv3ConvNextModel."""
  return _convnext(
      config, reduce=lambda s, j: f'stages.{s}.downsample_layers.{j}',
      block='stages.{s}.layers.{k}', norm='layer_norm', parts={
          'dwconv': 'depthwise_conv', 'norm': 'layer_norm',
          'pwconv1': 'pointwise_conv1', 'pwconv2': 'pointwise_conv2'})


def timm_convnext(config: convnext.ConvNeXtConfig) -> Table:
  """timm's names of its DINOv3 ConvNeXts."""
  reduce = lambda s, j: (
      f'stem.{j}' if s == 0 else f'stages.{s}.downsample.{j}')
  return _convnext(
      config, reduce=reduce, block='stages.{s}.blocks.{k}', norm='head.norm',
      parts={'dwconv': 'conv_dw', 'pwconv1': 'mlp.fc1',
             'pwconv2': 'mlp.fc2'})


def _convnext(config, *, reduce, block: str, norm: str,
              parts: dict[str, str]) -> Table:
  table = _affine('norm', norm)
  for s, depth in enumerate(config.depths):
    conv, lead = (0, 1) if s == 0 else (1, 0)
    table += _affine(f'stage{s}/norm', reduce(s, lead))
    table += [Rule(f'stage{s}/reduce/kernel', (f'{reduce(s, conv)}.weight',),
                   CONV),
              Rule(f'stage{s}/reduce/bias', (f'{reduce(s, conv)}.bias',))]
    for k in range(depth):
      at, ours = block.format(s=s, k=k), f'stage{s}/blocks'
      name = lambda part, at=at: f'{at}.{parts.get(part, part)}'
      table += _affine(f'{ours}/norm', name('norm'), k)
      for part, layout in (('dwconv', CONV), ('pwconv1', LINEAR),
                           ('pwconv2', LINEAR)):
        table += [
            Rule(f'{ours}/{part}/kernel', (f'{name(part)}.weight',), layout,
                 k),
            Rule(f'{ours}/{part}/bias', (f'{name(part)}.bias',), SAME, k)]
      table.append(Rule(f'{ours}/scale/gamma', (f'{at}.gamma',), SAME, k))
  return table


def _final_norms(config: vit.ViTConfig) -> Iterator[str]:
  yield 'norm'
  if config.untie_cls_and_patch_norms:
    yield 'cls_norm'
  if config.untie_global_and_local_cls_norm:
    yield 'local_cls_norm'


def _norm(config: vit.ViTConfig, ours: str, theirs: str,
          layer: int | None = None) -> Table:
  if config.norm == 'rmsnorm':
    return [Rule(f'{ours}/scale', (f'{theirs}.weight',), SAME, layer)]
  return _affine(ours, theirs, layer)


def _affine(ours: str, theirs: str, layer: int | None = None) -> Table:
  return [Rule(f'{ours}/scale', (f'{theirs}.weight',), SAME, layer),
          Rule(f'{ours}/bias', (f'{theirs}.bias',), SAME, layer)]
