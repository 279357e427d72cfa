"""Mask2Former on a frozen ViT: adapter, pixel decoder and queries.

Parameters and statistics are nested dicts by the names of the parts; arrays
are global.

Source: DINOv3's segmentor; Mask2Former (arXiv 2112.01527) behind a ViT-Adapter
  without injectors.
"""

from collections.abc import Sequence
import dataclasses
import math

import jax

from dinojax.core import tree
from dinojax.models.dense import adapter
from dinojax.models.dense import pixel_decoder
from dinojax.models.dense import queries
from dinojax.models.dense import query_decoder

Array = jax.Array
_MOST_HEADS, _HEAD_WIDTH, _MOST_FFN = 16, 32, 4096


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes of all parts.

  Attributes:
    adapter: sizes of the adapter.
    pixels: sizes of the pixel decoder.
    decoder: sizes of the decoder of queries.
  """

  adapter: adapter.Config
  pixels: pixel_decoder.Config
  decoder: query_decoder.Config

  @property
  def num_classes(self) -> int:
    """Classes, without that of no object."""
    return self.decoder.num_classes


def of_sizes(width: int, num_classes: int, *, patch_px: int = 16,
             hidden: int = 256, num_queries: int = 100,
             num_pixel_layers: int = 6, num_layers: int = 9) -> Config:
  """A head for a backbone.

  Args:
    width: width of the backbone.
    num_classes: classes, without that of no object.
    patch_px: side of a patch.
    hidden: width of both decoders, a multiple of 32.
    num_queries: queries.
    num_pixel_layers: layers of the pixel decoder.
    num_layers: layers of the queries.

  Source: Mask2Former's sizes for a width of 256 (8 heads, but for queries an
    FFN twice as wide), DINOv3's for 2048, with a backbone of 4096.
  """
  heads = min(max(hidden // _HEAD_WIDTH, 1), _MOST_HEADS)
  of_decoders = {'num_heads': heads, 'ffn': min(4 * hidden, _MOST_FFN)}
  return Config(
      adapter.Config(width, patch_px, num_heads=math.gcd(
          adapter.Config.num_heads, width // 2)),
      pixel_decoder.Config((width,) * 4, hidden, hidden, **of_decoders,
                           num_layers=num_pixel_layers),
      query_decoder.Config(hidden, hidden, hidden, num_classes, num_queries,
                           **of_decoders, num_layers=num_layers))


def init(key: Array, config: Config) -> tuple[tree.Tree, tree.Tree]:
  """Random parameters, and statistics that change nothing."""
  keys = jax.random.split(key, 3)
  params, stats = adapter.init(keys[0], config.adapter)
  return {'adapter': params,
          'pixels': pixel_decoder.init(keys[1], config.pixels),
          'decoder': query_decoder.init(keys[2], config.decoder)}, stats


def apply(params: tree.Tree, stats: tree.Tree, config: Config, images: Array,
          maps: Sequence[Array], weight: Array | None = None,
          kept: Array | None = None
          ) -> tuple[list[queries.Predicted], tree.Tree]:
  """Predictions of the queries, the last one the best, and the statistics.

  Args:
    params: see `init`.
    stats: see `init`.
    config: sizes.
    images: [b, y, x, c] normalised.
    maps: four of [b, y, x, d] of patches, after the backbone's final norm.
    weight: [b] in training, 0 for images that are padding; None: inference.
    kept: see adapter.draw.

  Raises:
    UserError: sides that maps at strides of 4 to 32 do not fit.
  """
  pyramid, stats = adapter.apply(params['adapter'], stats, config.adapter,
                                 images, maps, weight, kept)
  features, sources = pixel_decoder.apply(
      params['pixels'], config.pixels, pyramid)
  return query_decoder.apply(
      params['decoder'], config.decoder, features, sources), stats


def weight_decays(params: tree.Tree) -> tree.Tree:
  """Factors of the weight decay, 0 or 1.

  Norms, biases, queries and encodings of levels do not decay.

  Source: Mask2Former's training.
  """
  return tree.map_with_name(
      lambda name, _: float(name.endswith('/kernel')), params)
