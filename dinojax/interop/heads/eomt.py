"""EoMT's files: a whole fine-tuned ViT with queries and what they predict.

A model is {'backbone': …, 'params': …}: the parameters of the backbone, and of
a head, see models.dense.eomt. Its last blocks and its norm are in both, under
the same tensors.
"""

import dataclasses

import numpy as np

from dinojax.interop import names
from dinojax.interop.heads import masks
from dinojax.models import vit
from dinojax.models.dense import eomt

State = dict[str, np.ndarray]
# Positions of patches alone: that of CLS is 0.
_OF_PATCHES = names.Layout(
    lambda x: np.concatenate([np.zeros_like(x[:1]), x]), lambda x: x[1:])
_OF_PATCHES_ROW = names.Layout(
    lambda x: _OF_PATCHES.to_ours(x[0]), lambda x: x[1:][None])


@dataclasses.dataclass(frozen=True)
class Names:
  """Words of a family of files.

  Attributes:
    learned: words of a ViT with learned positions.
    rope: words of a ViT with RoPE.
    prefix: stands before the names of the ViT.
    head: words of the queries and of what they predict.
  """

  learned: names.VitNames
  rope: names.VitNames
  prefix: str
  head: masks.Words

  def of(self, config: vit.ViTConfig) -> names.VitNames:
    """Words of a ViT."""
    return self.rope if config.position == 'rope' else self.learned


# EomtForUniversalSegmentation and EomtDinov3ForUniversalSegmentation.
HF = Names(
    learned=dataclasses.replace(
        names.HF_V2, block='layers.{i}.', proj='attention.out_proj',
        pos_embed='embeddings.position_embeddings.weight',
        pos_layout=_OF_PATCHES),
    rope=dataclasses.replace(
        names.HF_V3, block='layers.{i}.', norm='layernorm'),
    prefix='', head=masks.Words(
        'query', 'class_predictor', tuple(f'mask_head.fc{i}' for i in (
            1, 2, 3)), 'upscale_block.block.{i}', 'layernorm2d'))
# The authors' files, after `network.`: a ViT of timm, or of transformers.
REPOSITORY = Names(
    learned=dataclasses.replace(
        names.TIMM_V2, pos_layout=_OF_PATCHES_ROW),
    rope=dataclasses.replace(
        names.HF_V3, block='blocks.{i}.', cls_token='patch_embed.cls_token',
        mask_token='patch_embed.mask_token',
        registers='patch_embed.register_tokens',
        patch_embed='patch_embed.patch_embeddings'),
    prefix='encoder.backbone.', head=masks.WORDS)


def backbone_table(config: vit.ViTConfig, words: Names) -> names.Table:
  """Rules for every tensor of the ViT, on the parameters of a backbone."""
  return [dataclasses.replace(rule, keys=tuple(
      words.prefix + key for key in rule.keys))
          for rule in names.vit_table(config, words.of(config))]


def table(config: eomt.Config, words: Names) -> names.Table:
  """Rules for every tensor of a head, its blocks included."""
  out = masks.shared(config.upscales, '', words.head)
  for rule in backbone_table(config.backbone, words):
    if rule.path.startswith('norm/'):
      out.append(dataclasses.replace(rule, path=f'params/{rule.path}'))
    elif rule.layer is not None and rule.layer >= config.first_block:
      out.append(dataclasses.replace(
          rule, path=f'params/{rule.path}',
          layer=rule.layer - config.first_block))
  return out


def complete(state: State, config: vit.ViTConfig, words: Names) -> State:
  """Tensors of a file, with those of the ViT that it leaves out: zeros.

  EoMT hides no patch, and the keys of a DINOv3 have no bias. Registers that
  are none have a tensor all the same, which is dropped.
  """
  out = {key: value for key, value in state.items() if value.size}
  width = np.zeros(config.embed_dim, np.float32)
  for rule in backbone_table(config, words):
    for key in rule.keys:
      if key not in out and (
          rule.path == 'mask_token' or _is_key_bias(key, config)):
        out[key] = rule.layout.to_theirs(width)
  return out


def reduce(state: State, config: vit.ViTConfig, words: Names) -> State:
  """Tensors of a file: the inverse of `complete`."""
  left_out = {key for rule in backbone_table(config, words)
              for key in rule.keys if rule.path == 'mask_token'
              or _is_key_bias(key, config)}
  registers = words.of(config).registers
  if not config.num_registers and registers.endswith('register_tokens'):
    state = state | {words.prefix + registers: np.zeros(
        (1, 0, config.embed_dim), np.float32)}
  return {key: value for key, value in state.items() if key not in left_out}


def _is_key_bias(key: str, config: vit.ViTConfig) -> bool:
  return config.mask_k_bias and key.endswith('.k_proj.bias')
