"""An adapter that makes a pyramid of maps from a frozen ViT and its image.

Convolutions of the image give maps at strides 4, 8, 16 and 32 (the spatial
prior). Those of 8, 16 and 32 are queries that read the features of four blocks
by deformable attention, a block after the other; the features are added to the
maps in the end. Nothing enters the ViT, which runs once.

Source: ViT-Adapter (arXiv 2205.08534) without its injectors, as DINOv3 uses it.
"""

from collections.abc import Sequence
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.core import errors
from dinojax.core import tree
from dinojax.kernels import resample
from dinojax.models import layers
from dinojax.models.dense import batch_norm
from dinojax.models.dense import deformable
from dinojax.models.dense import parts
from dinojax.models.dense import queries as queries_lib
from dinojax.parallel import sharding

Array = jax.Array
Size = tuple[int, int]
STRIDES = (4, 8, 16, 32)
NUM_EXTRA = 2  # extractors more of the last block
LEAST_PX = 64  # of a side: the coarsest map has more than a pixel
EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes of an adapter.

  Attributes:
    width: width of the backbone, and of all maps.
    patch_px: side of a patch.
    channels: channels of the first convolutions of the image.
    num_heads: heads of the attention.
    num_points: points of a head.
    values: width of its values; None: half the width.
    hidden: width inside the blocks of convolutions; None: a quarter.
    drop_path: share of images in training whose blocks of convolutions are
      skipped.
    num_blocks: blocks of the backbone that are read.
  """

  width: int
  patch_px: int = 16
  channels: int = 64
  num_heads: int = 16
  num_points: int = 4
  values: int | None = None
  hidden: int | None = None
  drop_path: float = 0.3
  num_blocks: int = 4

  @property
  def num_extractors(self) -> int:
    """Extractors, those of the last block included."""
    return self.num_blocks + NUM_EXTRA

  @property
  def attention(self) -> deformable.Config:
    """Sizes of the attention."""
    return deformable.Config(self.width, self.num_heads, 1, self.num_points,
                             self.values or self.width // 2)

  @property
  def unit_px(self) -> int:
    """Sides of images are multiples of it."""
    return math.lcm(STRIDES[-1], self.patch_px)


def check(size: Size, patch_px: int):
  """Refuses images whose maps would not lie on each other.

  Raises:
    UserError: sides that are no multiples of 32 and of the patch, or small.
  """
  unit = math.lcm(STRIDES[-1], patch_px)
  if all(n % unit == 0 and n >= LEAST_PX for n in size):
    return
  better = [max(round(n / unit), -(-LEAST_PX // unit)) * unit for n in size]
  raise errors.UserError(
      f'Mask2Former has maps at strides of 4 to 32 and patches of {patch_px} '
      f'pixels, on which {size[0]} × {size[1]} pixels do not lie: give sides '
      f'that are multiples of {unit}, such as {better[0]} × {better[1]}')


def init(key: Array, config: Config) -> tuple[tree.Tree, tree.Tree]:
  """Random parameters, and statistics that change nothing."""
  c, keys = config, iter(jax.random.split(key, 64))
  channels = _channels(c)
  prior, stats = {}, {}
  for i, (inputs, outputs) in enumerate(zip(
      (3, *channels), channels, strict=False)):
    norm, stats[str(i)] = batch_norm.init(outputs)
    prior[str(i)] = {'norm': norm} | _normal(
        next(keys), (3, 3, inputs, outputs), 9 * outputs, bias=False)
  projections = {str(i): _normal(next(keys), (inputs, c.width), c.width)
                 for i, inputs in enumerate(channels[2:])}
  norms, of_norms = zip(*(batch_norm.init(c.width) for _ in STRIDES),
                        strict=True)
  number = lambda values: {str(i): x for i, x in enumerate(values)}
  return {
      'prior': prior, 'projections': projections,
      'levels': jax.random.normal(next(keys), (3, c.width)),
      'extractors': number(_extractor(next(keys), c)
                           for _ in range(c.num_extractors)),
      'grow': _normal(next(keys), (c.width, 2, 2, c.width), 4 * c.width),
      'norms': number(norms)}, {'prior': stats, 'norms': number(of_norms)}


def _channels(config: Config) -> tuple[int, ...]:
  """Channels after each convolution of the image."""
  c = config.channels
  return c, c, c, 2 * c, 4 * c, 4 * c


def _extractor(key: Array, config: Config) -> tree.Tree:
  c, keys = config, jax.random.split(key, 4)
  hidden = c.hidden or c.width // 4
  norm = queries_lib.norm_init
  return {
      'query_norm': norm(c.width), 'map_norm': norm(c.width),
      'attention': deformable.init(keys[0], c.attention),
      'norm': norm(c.width), 'fc1': _small(keys[1], (c.width, hidden)),
      'smooth': _normal(keys[2], (3, 3, 1, hidden), 9),
      'fc2': _small(keys[3], (hidden, c.width))}


def _small(key: Array, shape: Sequence[int]) -> tree.Tree:
  """A linear layer of small weights, without bias at first."""
  return {'kernel': layers.normal(0.02)(key, shape),
          'bias': jnp.zeros(shape[-1])}


def _normal(key: Array, shape: Sequence[int], outputs: int, *,
            bias: bool = True) -> tree.Tree:
  """A convolution each of whose pixels is part of so many outputs."""
  out = {'kernel': math.sqrt(2 / outputs) * jax.random.normal(key, shape)}
  return out | ({'bias': jnp.zeros(shape[-1])} if bias else {})


def draw(key: Array, config: Config, num_images: int) -> Array:
  """[e, b] factors of the blocks of convolutions: 0, or what makes up for it.

  Source: stochastic depth of whole images.
  """
  stays = 1 - config.drop_path
  kept = jax.random.bernoulli(key, stays, (config.num_extractors, num_images))
  return kept / max(stays, 1e-6)


def apply(params: tree.Tree, stats: tree.Tree, config: Config, images: Array,
          maps: Sequence[Array], weight: Array | None = None,
          kept: Array | None = None) -> tuple[list[Array], tree.Tree]:
  """Four maps at strides 4 to 32, and the running statistics after them.

  Args:
    params: see `init`.
    stats: see `init`.
    config: sizes.
    images: [b, y, x, c] normalised.
    maps: [b, y, x, d] of patches of each block, after the final norm.
    weight: [b] in training, 0 for images that are padding; None: inference.
    kept: see `draw`; None: nothing is skipped.

  Raises:
    UserError: see `check`.
  """
  check(images.shape[1:3], config.patch_px)
  grids, of_prior = prior(params, stats['prior'], images, weight)
  *_, grids[1:] = extracted(params, config, grids[1:], maps, kept)
  out, of_norms = merged(params, stats['norms'], grids, maps, weight)
  return out, {'prior': of_prior, 'norms': of_norms}


def prior(params: tree.Tree, stats: tree.Tree, images: Array,
          weight: Array | None = None) -> tuple[list[Array], tree.Tree]:
  """Four maps [b, y, x, d] of the image, the finest first, and statistics."""
  x, new, out = images.astype(jnp.float32), {}, []
  for i in range(len(params['prior'])):
    part = params['prior'][str(i)]
    x = parts.conv(part, x, stride=1 if i in (1, 2) else 2)
    x, new[str(i)] = batch_norm.apply(part['norm'], stats[str(i)], x, weight)
    x = jax.nn.relu(x)
    if i == 2:
      x = sharding.by_rows(_pooled, x)
    if i >= 2:
      out.append(parts.linear(params['projections'][str(i - 2)], x))
  return out, new


def _pooled(x: Array) -> Array:
  """[b, y/2, x/2, c] largest of three times three pixels."""
  return jax.lax.reduce_window(
      x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1),
      ((0, 0), (1, 1), (1, 1), (0, 0)))


def extracted(params: tree.Tree, config: Config, grids: Sequence[Array],
              maps: Sequence[Array], kept: Array | None = None
              ) -> list[list[Array]]:
  """The three coarser maps, after each block of the backbone was read.

  Args:
    params: see `init`.
    config: sizes.
    grids: three of [b, y, x, d] of the image.
    maps: see `apply`.
    kept: see `draw`.
  """
  sizes = [x.shape[1:3] for x in grids]
  levels = params['levels'][:, None, None, None]
  queries = deformable.joined([x + levels[i] for i, x in enumerate(grids)])
  references = deformable.centers(sizes)[None, :, None]
  out, turn = [], 0
  for i, x in enumerate(maps):
    is_last = i == len(maps) - 1
    for _ in range(1 + NUM_EXTRA * is_last):
      queries = _extract(
          params['extractors'][str(turn)], config, queries, references, x,
          sizes, None if kept is None else sharding.as_rows_of(
              kept[turn], queries))
      turn += 1
    out.append(deformable.split(queries, sizes))
  return out


def _extract(part: tree.Tree, config: Config, queries: Array,
             references: np.ndarray, x: Array, sizes: Sequence[Size],
             kept: Array | None) -> Array:
  """Queries [b, n, d] after they have read a map [b, y, x, d]."""
  normed = queries_lib.normed
  queries += deformable.apply(
      part['attention'], config.attention,
      normed(part['query_norm'], queries, EPSILON), references,
      deformable.joined([normed(part['map_norm'], x, EPSILON)]),
      [x.shape[1:3]])
  y = parts.linear(part['fc1'], normed(part['norm'], queries, EPSILON))
  y = deformable.joined([parts.depthwise(part['smooth'], grid)
                         for grid in deformable.split(y, sizes)])
  y = parts.linear(part['fc2'], layers.gelu(y))
  return queries + (y if kept is None else y * kept[:, None, None])


def merged(params: tree.Tree, stats: tree.Tree, grids: Sequence[Array],
           maps: Sequence[Array], weight: Array | None = None
           ) -> tuple[list[Array], tree.Tree]:
  """Four maps of image and features together, and the statistics after them.

  Args:
    params: see `init`.
    stats: see `init`.
    grids: four of [b, y, x, d] of the image, of which the last three have read
      the features.
    maps: see `apply`.
    weight: see `apply`.
  """
  finest = grids[0] + parts.grown(params['grow'], grids[1])
  out, new = [], {}
  for i, (grid, x) in enumerate(zip((finest, *grids[1:]), maps, strict=True)):
    x = x.astype(jnp.float32)
    if x.shape != grid.shape:
      x = resample.resize_linear(x, grid.shape[1:3])
    normal, new[str(i)] = batch_norm.apply(
        params['norms'][str(i)], stats[str(i)], grid + x, weight)
    out.append(normal)
  return out, new
