"""The plain mask decoder: queries in blocks of their own on frozen features.

Features of several blocks, all of their tokens, are normalised, mixed, scaled
and added; queries stand in front of them in a few blocks of a transformer.

Source: PMT (Plain Mask Transformer), arXiv 2603.25398.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from dinojax.core import tree
from dinojax.kernels import rotary
from dinojax.models import layers
from dinojax.models import positions
from dinojax.models.dense import batch_norm
from dinojax.models.dense import parts
from dinojax.models.dense import queries
from dinojax.parallel import sharding

Array = jax.Array
EPSILON = 1e-5
ROPE_BASE = 100.0


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes of a decoder.

  Attributes:
    width: width of the tokens, that of the backbone.
    num_heads: heads of its attention.
    num_classes: classes, without that of no object.
    patch_px: side of a patch.
    num_queries: queries.
    num_blocks: blocks.
    num_levels: blocks of the backbone that are read.
    hidden: width inside the blocks' MLPs; None: as the tokens.
    norm: True: a batch norm on each level, prefix tokens included.
    lateral: layers that mix the features of a level: 'mlp' of half the width,
      'linear', or 'identity'.
    residual: True adds the features to what is mixed.
    rope: True turns patches by their places.
    masked: True: queries look at their own masks, and predict before each
      block; False: at all, and once, at the end.
  """

  width: int
  num_heads: int
  num_classes: int
  patch_px: int = 16
  num_queries: int = 200
  num_blocks: int = 6
  num_levels: int = 4
  hidden: int | None = None
  norm: bool = True
  lateral: Literal['mlp', 'linear', 'identity'] = 'mlp'
  residual: bool = True
  rope: bool = True
  masked: bool = True


def init(key: Array, config: Config) -> tuple[tree.Tree, tree.Tree]:
  """Random parameters, and statistics that change nothing."""
  c, keys = config, iter(jax.random.split(key, 64))
  hidden, half = c.hidden or c.width, c.width // 2
  params = queries.init(next(keys), c.width, c.num_queries, c.num_classes,
                        queries.num_upscales(c.patch_px))
  params |= {'norm': queries.norm_init(c.width), 'levels': {}, 'blocks': {}}
  stats = {}
  square = lambda: parts.uniform(next(keys), (c.width, c.width), c.width)
  for i in range(c.num_levels):
    level = {'scale': jnp.ones(c.width)}
    if c.lateral == 'mlp':
      level |= {'fc1': parts.uniform(next(keys), (c.width, half), c.width),
                'fc2': parts.uniform(next(keys), (half, c.width), half)}
    elif c.lateral == 'linear':
      level['fc'] = square()
    if c.norm:
      level['norm'], stats[str(i)] = batch_norm.init(c.width)
    params['levels'][str(i)] = level
  for i in range(c.num_blocks):
    params['blocks'][str(i)] = {
        'norm1': queries.norm_init(c.width), 'q': square(),
        'k': {'kernel': square()['kernel']}, 'v': square(), 'o': square(),
        'ls1': jnp.ones(c.width), 'norm2': queries.norm_init(c.width),
        'fc1': parts.uniform(next(keys), (c.width, hidden), c.width),
        'fc2': parts.uniform(next(keys), (hidden, c.width), hidden),
        'ls2': jnp.ones(c.width)}
  return params, stats


def apply(params: tree.Tree, stats: tree.Tree, config: Config,
          features: Sequence[Array], grid: tuple[int, int],
          weight: Array | None = None,
          opened: Sequence[Array | None] | None = None
          ) -> tuple[list[queries.Predicted], tree.Tree]:
  """Predictions of the queries, the last one the best, and the statistics.

  Args:
    params: see `init`.
    stats: see `init`.
    config: sizes.
    features: [b, p + n, d] of each level, after the backbone's final norm.
    grid: rows and columns of patches.
    weight: [b] in training, 0 for images that are padding; None: inference.
    opened: for each block [b, q] bool, queries that look at all patches there;
      None for a block: as its masks say; True of all: see `Config.masked`.
  """
  x, new = _joined(params, stats, config, features, weight)
  rope = None
  if config.rope:
    rope = positions.rope(grid, positions.rope_periods(
        config.width // config.num_heads, base=ROPE_BASE))
  count, out = config.num_queries, []
  asked = jnp.broadcast_to(params['queries'][None], (
      x.shape[0], count, config.width))
  x = jnp.concatenate([sharding.as_rows_of(asked, x), x], axis=1)
  say = lambda x: queries.predict(
      params, queries.normed(params['norm'], x, EPSILON), count, grid)
  for i in range(config.num_blocks):
    looks = None
    if config.masked:
      predicted, masks = say(x)
      out.append(predicted)
      looks = queries.bias(queries.allowed(
          masks, opened[i] if opened else None), x.shape[1])
    x = _block(params['blocks'][str(i)], x, config.num_heads, rope, looks)
  return [*out, say(x)[0]], new


def _joined(params: tree.Tree, stats: tree.Tree, config: Config,
            features: Sequence[Array], weight: Array | None
            ) -> tuple[Array, tree.Tree]:
  """[b, p + n, d] sum of all levels, and the statistics after them."""
  total, new = 0.0, {}
  for i, feature in enumerate(features):
    part, x = params['levels'][str(i)], feature.astype(jnp.float32)
    if config.norm:
      x, new[str(i)] = batch_norm.apply(
          part['norm'], stats[str(i)], x[:, None], weight)
      x = x[:, 0]
    mixed = x
    if config.lateral == 'mlp':
      mixed = parts.linear(part['fc2'], layers.gelu(
          parts.linear(part['fc1'], x)))
    elif config.lateral == 'linear':
      mixed = parts.linear(part['fc'], x)
    total += part['scale'][None, None] * (
        x + mixed if config.residual else mixed)
  return total, new


def _block(part: Mapping, x: Array, num_heads: int, rope: rotary.Rope | None,
           looks: Array | None) -> Array:
  """A block of a transformer, [b, t, d], whose patches are turned by `rope`."""
  y = queries.normed(part['norm1'], x, EPSILON)
  q, k, v = (parts.heads(parts.linear(part[name], y), num_heads)
             for name in ('q', 'k', 'v'))
  if rope is not None:
    q, k = rotary.rotate(q, rope), rotary.rotate(k, rope)
  y = parts.attended(q, k, v, looks)
  x += part['ls1'][None, None] * parts.linear(part['o'], y)
  y = queries.normed(part['norm2'], x, EPSILON)
  y = parts.linear(part['fc2'], layers.gelu(parts.linear(part['fc1'], y)))
  return x + part['ls2'][None, None] * y
