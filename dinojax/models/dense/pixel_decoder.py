"""A pyramid of maps becomes one fine map of features, and three of sources.

The three coarser maps attend to each other at a few points; the result joins
the finest map.

Source: Mask2Former's pixel decoder, in the form of DINOv3.
"""

from collections.abc import Sequence
import dataclasses
import math

import jax
import jax.numpy as jnp

from dinojax.core import tree
from dinojax.kernels import resample
from dinojax.models import positions
from dinojax.models.dense import deformable
from dinojax.models.dense import parts
from dinojax.models.dense import queries as queries_lib
from dinojax.parallel import sharding

Array = jax.Array
NUM_LEVELS = 3
EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes of a decoder.

  Attributes:
    widths: channels of the four maps, the finest first.
    hidden: channels within, a multiple of 32.
    channels: channels of the map of features.
    num_heads: heads of the attention.
    num_points: points of a head in each map.
    ffn: width of the feed-forward layers.
    num_layers: layers of attention.
  """

  widths: tuple[int, int, int, int]
  hidden: int
  channels: int
  num_heads: int = 16
  num_points: int = 4
  ffn: int = 4096
  num_layers: int = 6

  @property
  def attention(self) -> deformable.Config:
    """Sizes of the attention."""
    return deformable.Config(self.hidden, self.num_heads, NUM_LEVELS,
                             self.num_points)


def init(key: Array, config: Config) -> tree.Tree:
  """Random parameters; those of the layers are a stack [l, …]."""
  c, keys = config, iter(jax.random.split(key, 16))
  conv = lambda *shape, bias: parts.within(
      next(keys), shape, math.sqrt(3 / math.prod(shape[:-1])), bias=bias)
  norm = lambda: queries_lib.norm_init(c.hidden)

  def layer(key):
    keys = jax.random.split(key, 3)
    return {'attention': deformable.init(keys[0], c.attention),
            'norm1': norm(), 'fc1': parts.xavier(keys[1], (c.hidden, c.ffn)),
            'fc2': parts.xavier(keys[2], (c.ffn, c.hidden)), 'norm2': norm()}

  return {
      'inputs': {str(i): parts.xavier(next(keys), (width, c.hidden)) | {
          'norm': norm()} for i, width in enumerate(reversed(c.widths[1:]))},
      'levels': jax.random.normal(next(keys), (NUM_LEVELS, c.hidden)),
      'layers': jax.vmap(layer)(jax.random.split(next(keys), c.num_layers)),
      'lateral': conv(c.widths[0], c.hidden, bias=False) | {'norm': norm()},
      'output': conv(3, 3, c.hidden, c.hidden, bias=False) | {'norm': norm()},
      'features': conv(c.hidden, c.channels, bias=True)}


def apply(params: tree.Tree, config: Config, maps: Sequence[Array]
          ) -> tuple[Array, list[Array]]:
  """The map of features, and three maps, the coarsest first.

  Args:
    params: see `init`.
    config: sizes.
    maps: four of [b, y, x, d] at strides of 4, 8, 16 and 32.

  Returns:
    [b, y, x, c] at stride 4, and [b, y, x, d] at strides of 32, 16 and 8.
  """
  finest, *coarser = maps
  grids = [_normed(params['inputs'][str(i)], parts.linear(
      params['inputs'][str(i)], x)) for i, x in enumerate(reversed(coarser))]
  sizes = [x.shape[1:3] for x in grids]
  rows = deformable.joined(grids)
  places = jnp.concatenate([
      positions.sine(size, config.hidden) + params['levels'][i][None]
      for i, size in enumerate(sizes)])[None]
  references = deformable.centers(sizes)[None, :, None]
  rows, _ = jax.lax.scan(
      lambda rows, part: (_layer(
          part, config, rows, places, references, sizes), None),
      rows, params['layers'])
  grids = deformable.split(rows, sizes)
  x = _normed(params['lateral'], parts.linear(params['lateral'], finest))
  x += resample.resize_linear(grids[-1], x.shape[1:3])
  x = jax.nn.relu(_normed(params['output'], parts.conv(params['output'], x)))
  return parts.linear(params['features'], x), grids


def _normed(part: tree.Tree, x: Array) -> Array:
  return parts.group_norm(part['norm'], x)


def _layer(part: tree.Tree, config: Config, rows: Array, places: Array,
           references: Array, sizes: deformable.Sizes) -> Array:
  """Rows [b, m, d] after a layer; they are normalised after each branch."""
  out = rows + deformable.apply(part['attention'], config.attention,
                                rows + places, references, rows, sizes)
  out = queries_lib.normed(part['norm1'], out, EPSILON)
  out += parts.linear(part['fc2'], jax.nn.relu(parts.linear(part['fc1'], out)))
  return sharding.as_rows_of(
      queries_lib.normed(part['norm2'], out, EPSILON), rows)
