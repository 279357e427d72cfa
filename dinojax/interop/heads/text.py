"""dino.txt of DINOv2 and DINOv3, by the names of their tensors.

Our tree is {'log_scale': [1], 'text': …, 'vision': …}, see models.text.
DINOv3 has one file of all; DINOv2 has one of the vision head and one of the
text tower, and no scale.
"""

import dataclasses

from dinojax.interop import names
from dinojax.models.text import tower
from dinojax.models.text import vision_head

LOG_SCALE, TEXT, VISION = 'log_scale', 'text', 'vision'


@dataclasses.dataclass(frozen=True)
class TextNames:
  """Words of a family of files.

  Attributes:
    text: stands before the names of the text tower.
    vision: stands before the names of the vision head.
    head_blocks: blocks of either head.
  """

  text: str
  vision: str
  head_blocks: str


META_V3 = TextNames('text_model.', 'visual_model.head.', 'blocks')
META_V2 = TextNames('', '', 'block_list')


def table(text: tower.Config, vision: vision_head.Config) -> names.Table:
  """Rules for every tensor of DINOv3's file.

  Args:
    text: sizes of the text tower.
    vision: sizes of the vision head.
  """
  return [names.Rule(LOG_SCALE, ('logit_scale',)), *text_table(text),
          *vision_table(vision)]


def text_table(config: tower.Config, words: TextNames = META_V3
               ) -> names.Table:
  """Rules for every tensor of a text tower."""
  body, head = f'{words.text}backbone', f'{words.text}head'
  out = [
      names.Rule(f'{TEXT}/token_embedding', (
          f'{body}.token_embedding.weight',)),
      names.Rule(f'{TEXT}/positions', (f'{body}.positional_embedding',))]
  for i in range(config.depth):
    out += _text_block(f'{TEXT}/blocks', f'{body}.blocks.{i}', i,
                       config.layerscale is not None)
  out += names.layer_norm(f'{TEXT}/norm', f'{body}.ln_final')
  for i in range(config.head_depth):
    out += _text_block(f'{TEXT}/head_blocks',
                       f'{head}.{words.head_blocks}.{i}', i, False)
  if config.head_depth:
    out += names.layer_norm(f'{TEXT}/head_norm', f'{head}.ln_final')
  if config.has_projection:
    out.append(_projection(TEXT, f'{head}.'))
  return out


def vision_table(config: vision_head.Config, words: TextNames = META_V3
                 ) -> names.Table:
  """Rules for every tensor of a vision head."""
  out: names.Table = []
  for i in range(config.depth):
    out += _vision_block(f'{words.vision}{words.head_blocks}.{i}', i,
                         config.layerscale is not None)
  if config.depth:
    out += names.layer_norm(f'{VISION}/norm', f'{words.vision}ln_final')
  if config.has_projection:
    out.append(_projection(VISION, words.vision))
  return out


def _text_block(path: str, words: str, layer: int, scaled: bool
                ) -> names.Table:
  rules = [
      *names.layer_norm(f'{path}/norm1', f'{words}.attention_norm'),
      *names.pair(f'{path}/attn/qkv', f'{words}.attention.qkv', bias=False),
      *names.pair(f'{path}/attn/proj', f'{words}.attention.proj'),
      *names.layer_norm(f'{path}/norm2', f'{words}.ffn_norm'),
      *names.pair(f'{path}/mlp/fc1', f'{words}.feed_forward.fc1'),
      *names.pair(f'{path}/mlp/fc2', f'{words}.feed_forward.fc2')]
  return _of_layer(rules + _scales(path, words, scaled), layer)


def _vision_block(words: str, layer: int, scaled: bool) -> names.Table:
  path = f'{VISION}/blocks'
  gates = [f'{words}.mlp.w{i}' for i in (1, 2)]
  rules = [
      *names.layer_norm(f'{path}/norm1', f'{words}.norm1'),
      *names.pair(f'{path}/attn/qkv', f'{words}.attn.qkv', bias=False),
      *names.pair(f'{path}/attn/proj', f'{words}.attn.proj'),
      *names.layer_norm(f'{path}/norm2', f'{words}.norm2'),
      names.Rule(f'{path}/mlp/w12/kernel', tuple(
          f'{gate}.weight' for gate in gates), names.LINEAR),
      names.Rule(f'{path}/mlp/w12/bias', tuple(
          f'{gate}.bias' for gate in gates)),
      *names.pair(f'{path}/mlp/w3', f'{words}.mlp.w3')]
  return _of_layer(rules + _scales(path, words, scaled), layer)


def _scales(path: str, words: str, scaled: bool) -> names.Table:
  return [names.Rule(f'{path}/ls{n}/gamma', (f'{words}.ls{n}.gamma',))
          for n in (1, 2) if scaled]


def _projection(part: str, prefix: str) -> names.Rule:
  return names.Rule(f'{part}/projection/kernel', (
      f'{prefix}linear_projection.weight',), names.LINEAR)


def _of_layer(rules: names.Table, layer: int) -> names.Table:
  return [dataclasses.replace(rule, layer=layer) for rule in rules]
