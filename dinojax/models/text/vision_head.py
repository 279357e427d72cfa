"""The vision head of dino.txt: tokens of a frozen backbone to an embedding.

Source: Jose et al., "DINOv2 Meets Text" (arXiv 2412.16334), and the weights
  that DINOv2 and DINOv3 publish of it.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
from typing import Literal

from flax import nnx
import jax
import jax.numpy as jnp

from dinojax.core import fields
from dinojax.models import layers
from dinojax.models import randomness
from dinojax.models import vit
from dinojax.models import zoo
from dinojax.models.text import blocks
from dinojax.models.text import tower
from dinojax.parallel import sharding

Array = jax.Array
TOKENS = ('cls', 'registers', 'patches')
_ROWS = 'rows'  # the kind of crops that randomness draws for
_GEM_POWER, _GEM_LEAST = 3.0, 1e-6


@dataclasses.dataclass(frozen=True)
class Config:
  """Everything that shapes a vision head; the defaults are the published one.
  """

  width: fields.Positive = 1024  # Width of the backbone's tokens.
  num_heads: fields.Positive = 16  # Heads of attention, as the backbone has.
  depth: fields.Natural = 2  # Blocks; 0: no norm after them either.
  embed_dim: fields.Positive = 2048  # Width of the embedding of an image.
  use_cls: bool = True  # CLS is a part of the embedding.
  use_patches: bool = True  # Pooled patches are a part of it.
  pooling: Literal['mean', 'max', 'gem'] = 'mean'  # How patches are pooled.
  projects: bool = False  # Projects even where the widths agree.
  patch_layer: fields.Positive = 1  # Patches are of this block from the end.
  layerscale: fields.NonNegative | None = 1e-5  # LayerScale's start; None: no.
  drop_path_rate: fields.BelowOne = 0.3  # Share of rows that skip a branch.
  dtype: str = 'float32'  # Activations: auto, float32 or bfloat16.
  remat: str = fields.free('dots')  # Values made again, see layers.REMAT.
  attention: str = 'xla'  # Kernel: auto, or one of kernels.attention.

  @property
  def part_dim(self) -> int:
    """Width of a token after the head, and of each half of an embedding."""
    return self.embed_dim // (2 if self.use_cls and self.use_patches else 1)

  def layers(self, depth: int) -> tuple[int, ...]:
    """Blocks of a backbone of so many that the head reads, see `inputs`."""
    return tuple(sorted({depth - self.patch_layer, depth - 1}))

  @property
  def has_projection(self) -> bool:
    """True if a matrix follows the blocks."""
    return self.projects or self.part_dim != self.width

  @property
  def blocks(self) -> vit.ViTConfig:
    """Options of the blocks: DINOv3's, without positions."""
    return vit.ViTConfig(
        self.width, self.depth, self.num_heads, patch_px=1, ffn='swiglu',
        ffn_hidden=zoo.swiglu_hidden(self.width, 4.0, 64),
        norm_epsilon=blocks.EPSILON, qkv_bias=False,
        layerscale=self.layerscale, drop_path_rate=self.drop_path_rate,
        dtype=self.dtype, remat=self.remat, attention=self.attention)

  def for_platform(self, platform: str) -> 'Config':
    """The head with 'auto' replaced by what suits cpu, gpu or tpu."""
    options = self.blocks.for_platform(platform)
    return dataclasses.replace(
        self, dtype=options.dtype, attention=options.attention)

  def mistakes(self) -> Iterator[str]:
    """Yields a sentence for each thing that does not fit in these options."""
    if self.width % self.num_heads:
      yield (f'width={self.width} of the vision head is not divisible by '
             f'num_heads={self.num_heads}')
    if not (self.use_cls or self.use_patches):
      yield 'use_cls and use_patches are both False: set one of them to True'
    if self.use_cls and self.use_patches and self.embed_dim % 2:
      yield (f'embed_dim={self.embed_dim} is halved between CLS and patches: '
             'give an even number')


class VisionHead(nnx.Module):
  """Tokens of a backbone to the embedding of an image, not normalised."""

  def __init__(self, config: Config, *, rngs: nnx.Rngs):
    self.config = config
    d, dtype = config.width, config.blocks.compute_dtype
    if config.depth:
      self.blocks = blocks.stack(
          lambda r: vit.Block(config.blocks, rngs=r), config.depth, rngs=rngs)
      self.norm = layers.LayerNorm(
          d, epsilon=blocks.EPSILON, dtype=dtype, rngs=rngs)
    if config.has_projection:
      self.projection = tower.projection(d, config.part_dim, dtype, rngs)

  def __call__(self, rows: Mapping[str, Array]) -> dict[str, Array]:
    """Embeddings of images.

    Args:
      rows: cls [r, d], registers [r, n, d] and patches [r, p, d], after the
        backbone's final norm, see `inputs`; draws as `draw` returns them, or
        absent.

    Returns:
      embedding [r, e] float32, CLS first; cls [r, e'] and patches [r, p, e']
      of the head, see Config.part_dim.
    """
    config, dtype = self.config, self.config.blocks.compute_dtype
    x = jnp.concatenate(
        [rows['cls'][:, None].astype(dtype), rows['registers'].astype(dtype),
         rows['patches'].astype(dtype)], axis=1)
    if config.depth:
      x = blocks.run(self.blocks, config.blocks, x, rows.get('draws'))
      x = sharding.gather(self.norm, dtype)(x)
    if config.has_projection:
      x = sharding.gather(self.projection, dtype)(x)
    cls, patches = x[:, 0], x[:, 1 + rows['registers'].shape[1]:]
    parts = [cls.astype(jnp.float32)] if config.use_cls else []
    if config.use_patches:
      parts.append(_pooled(patches.astype(jnp.float32), config.pooling))
    return {'embedding': jnp.concatenate(parts, axis=-1), 'cls': cls,
            'patches': patches}


def inputs(features: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
  """Tokens that the head reads, of a backbone's layers in their order.

  CLS is the last layer's; registers and patches are the first one's, see
  Config.patch_layer.
  """
  first, last = features[0], features[-1]
  return {'cls': last['cls'], 'registers': first['registers'],
          'patches': first['patches']}


def draw(key: Array, config: Config, *, num_groups: int,
         rows: int) -> dict[str, Array]:
  """Rows that each branch of each block keeps; {} where all do.

  Args:
    key: random key of the step.
    config: rates.
    num_groups: groups of images, g.
    rows: images of a group.

  Returns:
    'attn' and 'ffn' [g, l, k] int32.
  """
  if not config.depth:
    return {}
  return randomness.draw(
      key, config.blocks, num_groups=num_groups, rows={_ROWS: rows}).get(
          _ROWS, {})


def _pooled(patches: Array, pooling: str) -> Array:
  """[r, d] of patches [r, p, d]."""
  if pooling == 'mean':
    return jnp.mean(patches, axis=1)
  if pooling == 'max':
    return jnp.max(patches, axis=1)
  large = jnp.maximum(patches, _GEM_LEAST)
  return jnp.mean(large ** _GEM_POWER, axis=1) ** (1 / _GEM_POWER)
