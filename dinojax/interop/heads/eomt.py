"""EoMT's files: a whole fine-tuned ViT with queries and what they predict.

A model is {'backbone': …, 'params': …}: the parameters of the backbone, and of
a head, see models.dense.eomt. Its last blocks and its norm are in both, under
the same tensors.
"""

import dataclasses

import numpy as np

from dinojax.core import errors
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


OUTER = 'network.'  # before all names of the authors' files
_OF_V3 = 'patch_embed.patch_embeddings.weight'  # of a DINOv3 in them
_OF_TRAINING = ('attn_mask_probs', 'criterion.empty_weight')
_PIXELS = ('encoder.pixel_mean', 'encoder.pixel_std')


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


def family(state: State) -> Names | None:
  """Words of a whole model, of an authors' file with its prefix; or None."""
  if all(f'{word}.weight' in state for word in (
      HF.head.queries, HF.head.classes)):
    return HF
  if all(f'{OUTER}{word}.weight' in state for word in (
      REPOSITORY.head.queries, REPOSITORY.head.classes)):
    return REPOSITORY
  return None


def check_alone(state: State, source: str):
  """Refuses a file that does not tell its backbone by itself.

  Raises:
    UserError: an authors' file on a DINOv3.
  """
  if OUTER + REPOSITORY.prefix + _OF_V3 in state:
    raise errors.UserError(
        f'{source} is EoMT on a DINOv3 as its authors keep it: differences '
        'from the weights that it was trained from. Add them first: `dinojax '
        f'convert import --source={source} --base=DINOV3 --out=DIR`')


def backbone(state: State, config: vit.ViTConfig) -> tuple[State, names.Table]:
  """Tensors of the ViT of a model of transformers, and their rules."""
  state = {key: value for key, value in state.items()
           if not key.startswith(_of_head(HF))}
  return complete(state, config, HF), backbone_table(config, HF)


def plain(state: State, words: Names) -> State:
  """Tensors by the names of the tables, without what training kept."""
  outer = OUTER if words is REPOSITORY else ''
  state = {key.removeprefix(outer): value for key, value in state.items()}
  left_out = (*_OF_TRAINING, *(_PIXELS if outer else ()))
  return {key: value for key, value in state.items() if key not in left_out}


def added(state: State, base: State) -> State:
  """Tensors of an authors' file of differences, without prefix, made whole.

  Args:
    state: see `plain`.
    base: tensors of the ViT that it was trained from, by the same names.

  Raises:
    UserError: another ViT.
  """
  wrong = [key for key, value in base.items()
           if key not in state or state[key].shape != value.shape]
  if wrong:
    raise errors.UserError(
        f'the differences are not from this backbone: {len(wrong)} tensors '
        f'are missing or of another shape, such as {wrong[0]}; give the '
        'DINOv3 of the same size as --base')
  return state | {key: state[key] + value for key, value in base.items()}


def is_differences(state: State) -> bool:
  """Tells whether an authors' file, with its prefix, holds differences.

  Deviations of pixels are then 0, as they do not change.
  """
  key = OUTER + _PIXELS[1]
  return key in state and not np.any(state[key])


def probabilities(state: State, words: Names) -> np.ndarray | None:
  """[l] shares of queries that are masked, by block; None: not told."""
  return state.get((OUTER if words is REPOSITORY else '') + _OF_TRAINING[0])


def _of_head(words: Names) -> tuple[str, ...]:
  """Beginnings of names that are none of the ViT."""
  head = words.head
  return (*_OF_TRAINING, *(f'{word}.' for word in (
      head.queries, head.classes, *head.masks,
      head.upscale.partition('.{i}')[0])))


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
