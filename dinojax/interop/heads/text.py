"""dino.txt of DINOv2 and DINOv3, by the names of their tensors.

Our tree is {'log_scale': [1], 'text': …, 'vision': …}, see models.text.
DINOv3 has one file of all; DINOv2 has one of the vision head and one of the
text tower, and no scale.
"""

from collections.abc import Mapping
import dataclasses
import re

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from dinojax.core import tree
from dinojax.interop import names
from dinojax.interop import translate
from dinojax.losses import contrastive
from dinojax.models.text import tower
from dinojax.models.text import vision_head

LOG_SCALE, TEXT, VISION = 'log_scale', 'text', 'vision'
_HEAD_DIM = 64


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


def shapes(text: tower.Config, vision: vision_head.Config) -> tree.Tree:
  """Abstract parameters of both, and of the scale."""
  of = lambda make: nnx.to_pure_dict(nnx.state(
      nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))), nnx.Param))
  return {LOG_SCALE: jax.ShapeDtypeStruct((1,), jnp.float32),
          TEXT: of(lambda rngs: tower.Tower(text, rngs=rngs)),
          VISION: of(lambda rngs: vision_head.VisionHead(vision, rngs=rngs))}


def from_v3(state: translate.State, text: tower.Config,
            vision: vision_head.Config, source: str = 'the file'
            ) -> tree.Tree:
  """Parameters of DINOv3's file, float32 numpy.

  Raises:
    UserError: a tensor that is missing, or one too many.

  Differs: upstream passes over what is missing or is not known.
  """
  return translate.to_ours(state, table(text, vision), shapes(text, vision),
                           source=source)


def from_v2(text_state: translate.State, vision_state: translate.State,
            text: tower.Config, vision: vision_head.Config,
            sources: tuple[str, str] = ('the text file', 'the vision file')
            ) -> tree.Tree:
  """Parameters of DINOv2's two files, see `from_v3`; the scale is at its start.
  """
  wanted, out = shapes(text, vision), {LOG_SCALE: np.float32(
      [contrastive.LOG_SCALE_START])}
  for part, state, rules, source in (
      (TEXT, text_state, text_table(text, META_V2), sources[0]),
      (VISION, vision_state, vision_table(vision, META_V2), sources[1])):
    out |= translate.to_ours(
        state, rules, {part: wanted[part]}, source=source)
  return out


def to_v3(params: tree.Tree, text: tower.Config, vision: vision_head.Config
          ) -> translate.State:
  """DINOv3's file of parameters: the inverse of `from_v3`."""
  return translate.to_theirs(params, table(text, vision))


def to_v2(params: tree.Tree, text: tower.Config, vision: vision_head.Config
          ) -> tuple[translate.State, translate.State]:
  """DINOv2's files of the text tower and of the vision head; without a scale.
  """
  return (translate.to_theirs(params, text_table(text, META_V2)),
          translate.to_theirs(params, vision_table(vision, META_V2)))


def text_config(state: translate.State, words: TextNames = META_V3
                ) -> tower.Config:
  """Sizes of a text tower by its tensors; the rest is as published.

  Heads have 64 numbers, as the published ones have.

  Raises:
    UserError: the file has no text tower.
  """
  body, head = f'{words.text}backbone', f'{words.text}head'
  shape = lambda name, axes=2: names.shape(state, name, axes)
  vocabulary, width = shape(f'{body}.token_embedding.weight')
  matrix = f'{head}.linear_projection.weight'
  projects = matrix in state
  hidden, _ = shape(f'{body}.blocks.0.feed_forward.fc1.weight')
  return tower.Config(
      width=width, depth=_count(state, f'{body}.blocks'),
      num_heads=max(width // _HEAD_DIM, 1), ffn_ratio=hidden / width,
      context=shape(f'{body}.positional_embedding')[0], vocabulary=vocabulary,
      embed_dim=shape(matrix)[0] if projects else width, projects=projects,
      head_depth=_count(state, f'{head}.{words.head_blocks}'),
      layerscale=1.0 if f'{body}.blocks.0.ls1.gamma' in state else None)


def vision_config(state: translate.State, width: int, num_heads: int,
                  words: TextNames = META_V3) -> vision_head.Config:
  """Sizes of a vision head by its tensors; the rest is as published.

  Args:
    state: tensors of a file.
    width: width of the backbone.
    num_heads: heads of the backbone.
    words: names of a family of files.
  """
  matrix = f'{words.vision}linear_projection.weight'
  projects, part_dim = matrix in state, width
  if projects:
    part_dim, _ = names.shape(state, matrix, 2)
  blocks = f'{words.vision}{words.head_blocks}'
  return vision_head.Config(
      width=width, num_heads=num_heads, depth=_count(state, blocks),
      embed_dim=2 * part_dim, projects=projects,
      layerscale=1e-5 if f'{blocks}.0.ls1.gamma' in state else None)


def _count(state: Mapping[str, np.ndarray], prefix: str) -> int:
  """Blocks whose names begin with a prefix and a number."""
  pattern = re.compile(re.escape(prefix) + r'\.(\d{1,4})\.')
  numbers = [int(match[1]) for match in map(pattern.match, state) if match]
  return max(numbers, default=-1) + 1


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
