"""Plain mask decoders, by the names of their tensors in PMT's files.

A head is {'params': …, 'stats': …}, see models.dense.mask_decoder.
"""

import dataclasses

from dinojax.interop import names
from dinojax.models.dense import mask_decoder

DECODER, NORMS = 'decoder.', 'bn.'  # of a file, after `network.`


@dataclasses.dataclass(frozen=True)
class Words:
  """Words of the queries and of what they predict.

  Attributes:
    queries: table of the queries.
    classes: layer of the classes.
    masks: layers of the embedding of masks.
    upscale: step from patches to masks, of number {i}.
    norm: norm of such a step.
  """

  queries: str
  classes: str
  masks: tuple[str, str, str]
  upscale: str
  norm: str


WORDS = Words('q', 'class_head', tuple(f'mask_head.{i}' for i in (0, 2, 4)),
              'upscale.{i}', 'norm')


def table(config: mask_decoder.Config, prefix: str = DECODER,
          norms: str = NORMS) -> names.Table:
  """Rules for every tensor of a decoder.

  Args:
    config: sizes.
    prefix: stands before the names of the decoder.
    norms: stands before the numbers of the batch norms of the levels.
  """
  out = shared(mask_decoder.queries.num_upscales(config.patch_px), prefix)
  out += names.layer_norm('params/norm', f'{prefix}decoder_norm')
  for i in range(config.num_levels):
    level, words = f'params/levels/{i}', f'{prefix}lateral_projections.{i}'
    if config.lateral == 'mlp':
      out += names.pair(f'{level}/fc1', f'{words}.0') + names.pair(
          f'{level}/fc2', f'{words}.2')
    elif config.lateral == 'linear':
      out += names.pair(f'{level}/fc', words)
    out.append(names.Rule(f'{level}/scale', (f'{prefix}scalers.{i}',)))
    if config.norm:
      out += names.batch_norm(f'{level}/norm', f'stats/{i}', f'{norms}{i}')
  for i in range(config.num_blocks):
    block, words = f'params/blocks/{i}', f'{prefix}blocks.{i}'
    for n in (1, 2):
      out += names.layer_norm(f'{block}/norm{n}', f'{words}.norm{n}')
      out.append(names.Rule(f'{block}/ls{n}', (
          f'{words}.layer_scale{n}.lambda1',)))
    for name in ('q', 'k', 'v', 'o'):
      out += names.pair(f'{block}/{name}', f'{words}.attention.{name}_proj',
                  bias=name != 'k')
    out += names.pair(f'{block}/fc1', f'{words}.mlp.up_proj') + names.pair(
        f'{block}/fc2', f'{words}.mlp.down_proj')
  return out


def shared(num_upscales: int, prefix: str,
           words: Words = WORDS) -> names.Table:
  """Rules of the queries and of what they predict.

  Args:
    num_upscales: steps from patches to masks.
    prefix: stands before all names.
    words: the names.
  """
  out = [names.Rule('params/queries', (f'{prefix}{words.queries}.weight',))]
  out += names.pair('params/class', f'{prefix}{words.classes}')
  for i, word in enumerate(words.masks):
    out += names.pair(f'params/mask/{i}', f'{prefix}{word}')
  for i in range(num_upscales):
    part, word = f'params/upscale/{i}', prefix + words.upscale.format(i=i)
    out += names.pair(f'{part}/grow', f'{word}.conv1', names.TRANSPOSED)
    out.append(names.Rule(f'{part}/smooth/kernel', (
        f'{word}.conv2.weight',), names.CONV))
    out += names.layer_norm(f'{part}/norm', f'{word}.{words.norm}')
  return out
