"""Plain mask decoders, by the names of their tensors in PMT's files.

A head is {'params': …, 'stats': …}, see models.dense.mask_decoder.
"""

from dinojax.interop import names
from dinojax.models.dense import mask_decoder

DECODER, NORMS = 'decoder.', 'bn.'  # of a file, after `network.`


def table(config: mask_decoder.Config, prefix: str = DECODER,
          norms: str = NORMS) -> names.Table:
  """Rules for every tensor of a decoder.

  Args:
    config: sizes.
    prefix: stands before the names of the decoder.
    norms: stands before the numbers of the batch norms of the levels.
  """
  out = shared(mask_decoder.queries.num_upscales(config.patch_px), prefix, 'q')
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


def shared(num_upscales: int, prefix: str, word: str) -> names.Table:
  """Rules of the queries and of what they predict.

  Args:
    num_upscales: steps from patches to masks.
    prefix: stands before all names.
    word: name of the queries.
  """
  out = [names.Rule('params/queries', (f'{prefix}{word}.weight',))]
  out += names.pair('params/class', f'{prefix}class_head')
  for i in range(3):
    out += names.pair(f'params/mask/{i}', f'{prefix}mask_head.{2 * i}')
  for i in range(num_upscales):
    part, words = f'params/upscale/{i}', f'{prefix}upscale.{i}'
    out += names.pair(f'{part}/grow', f'{words}.conv1', names.TRANSPOSED)
    out.append(names.Rule(f'{part}/smooth/kernel', (
        f'{words}.conv2.weight',), names.CONV))
    out += names.layer_norm(f'{part}/norm', f'{words}.norm')
  return out
