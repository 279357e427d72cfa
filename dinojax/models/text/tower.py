"""The text tower of dino.txt: ids of tokens to an embedding of each text.

Source: Jose et al., "DINOv2 Meets Text" (arXiv 2412.16334), and the weights
  that DINOv2 and DINOv3 publish of it.
"""

from collections.abc import Iterator, Mapping
import dataclasses
from typing import Literal

from flax import nnx
import jax
import jax.numpy as jnp

from dinojax.core import fields
from dinojax.models import layers
from dinojax.models import vectors
from dinojax.models import vit
from dinojax.models.text import blocks
from dinojax.parallel import sharding

Array = jax.Array
_HEAD_RATIO = 4.0  # of the hidden width of the head's blocks


@dataclasses.dataclass(frozen=True)
class Config:
  """Everything that shapes a text tower; the defaults are the published one."""

  width: fields.Positive = 1280  # Width of tokens.
  depth: fields.Positive = 24  # Blocks.
  num_heads: fields.Positive = 20  # Heads of attention.
  ffn_ratio: fields.Above0 = 4.0  # Hidden width of the MLPs, in widths.
  context: fields.Positive = 77  # Tokens of the longest text.
  vocabulary: fields.Positive = 49408  # Ids of the tokenizer.
  embed_dim: fields.Positive = 2048  # Width of the embedding of a text.
  causal: bool = True  # Tokens see only those before them.
  pooling: Literal['argmax', 'first', 'last'] = 'argmax'  # Token that is read.
  layerscale: fields.NonNegative | None = None  # LayerScale's start; None: no.
  dropout: fields.BelowOne = 0.0  # Share of values dropped before the blocks.
  head_depth: fields.Natural = 0  # Blocks of the head, with a norm after them.
  head_causal: bool = False  # As `causal`, of the head's blocks.
  projects: bool = False  # Projects even where the widths agree.
  dtype: str = 'float32'  # Activations: auto, float32 or bfloat16.
  remat: str = fields.free('dots')  # Values made again, see layers.REMAT.
  attention: str = 'xla'  # Kernel where not causal: auto, or a name.

  @property
  def blocks(self) -> vit.ViTConfig:
    """Options of the blocks."""
    return self._blocks(self.depth, self.ffn_ratio, self.layerscale)

  @property
  def head_blocks(self) -> vit.ViTConfig:
    """Options of the head's blocks."""
    return self._blocks(self.head_depth, _HEAD_RATIO, None)

  def _blocks(self, depth: int, ratio: float,
              layerscale: float | None) -> vit.ViTConfig:
    return vit.ViTConfig(
        self.width, depth, self.num_heads, patch_px=1,
        ffn_hidden=int(self.width * ratio), norm_epsilon=blocks.EPSILON,
        qkv_bias=False, layerscale=layerscale, dtype=self.dtype,
        remat=self.remat, attention=self.attention)

  @property
  def has_projection(self) -> bool:
    """True if a matrix makes the embedding of the token that is read."""
    return self.projects or self.embed_dim != self.width

  def for_platform(self, platform: str) -> 'Config':
    """The tower with 'auto' replaced by what suits cpu, gpu or tpu."""
    options = self.blocks.for_platform(platform)
    return dataclasses.replace(
        self, dtype=options.dtype, attention=options.attention)

  def mistakes(self) -> Iterator[str]:
    """Yields a sentence for each thing that does not fit in these options."""
    if self.width % self.num_heads:
      yield (f'width={self.width} of the text tower is not divisible by '
             f'num_heads={self.num_heads}')
    if self.remat not in layers.REMAT:
      yield (f'remat={self.remat!r} is not known: use one of '
             f'{", ".join(layers.REMAT)}')


class Block(vit.Block):
  """A block of the tower."""

  def __init__(self, config: vit.ViTConfig, *, causal: bool, out_std: float,
               rngs: nnx.Rngs):
    """Draws the parameters.

    Args:
      config: sizes.
      causal: see Config.
      out_std: deviation of what ends a branch.
      rngs: random streams.

    Source: the release; the biases of its MLP are PyTorch's own.
    """
    super().__init__(config, rngs=rngs)
    d, hidden = config.embed_dim, config.ffn_hidden
    self.attn = blocks.Attention(config, causal=causal, rngs=rngs)
    uniform = lambda size, inputs: jax.random.uniform(
        rngs.params(), (size,), jnp.float32, -inputs ** -0.5, inputs ** -0.5)
    for layer, std in ((self.attn.qkv, d ** -0.5), (self.attn.proj, out_std),
                       (self.mlp.fc1, (2 * d) ** -0.5),
                       (self.mlp.fc2, out_std)):
      layer.kernel = _normal(rngs, std, *layer.kernel.shape)
    self.mlp.fc1.bias = nnx.Param(uniform(hidden, d))
    self.mlp.fc2.bias = nnx.Param(uniform(d, hidden))


class Tower(nnx.Module):
  """Ids [r, n] of tokens to embeddings [r, e] of texts, not normalised."""

  def __init__(self, config: Config, *, rngs: nnx.Rngs):
    self.config = config
    d, dtype = config.width, config.blocks.compute_dtype
    norm = lambda: layers.LayerNorm(
        d, epsilon=blocks.EPSILON, dtype=dtype, rngs=rngs)
    self.token_embedding = _normal(rngs, 0.02, config.vocabulary, d)
    self.positions = _normal(rngs, 0.01, config.context, d)
    self.blocks = blocks.stack(
        lambda r: Block(
            config.blocks, causal=config.causal, rngs=r,
            out_std=d ** -0.5 * (2 * config.depth) ** -0.5),
        config.depth, rngs=rngs)
    self.norm = norm()
    if config.head_depth:
      self.head_blocks = blocks.stack(
          lambda r: Block(config.head_blocks, causal=config.head_causal,
                          rngs=r, out_std=d ** -0.5),
          config.head_depth, rngs=rngs)
      self.head_norm = norm()
    if config.has_projection:
      self.projection = projection(d, config.embed_dim, dtype, rngs)

  def tokens(self, ids: Array, draws: Mapping[str, Array] | None = None
             ) -> Array:
    """[r, n, d] tokens after the blocks and their norm.

    Args:
      ids: [r, n] int32, n at most the context.
      draws: see `draw`; None: nothing is random.

    Raises:
      ValueError: too many tokens.
    """
    config, count = self.config, ids.shape[1]
    if count > config.context:
      raise ValueError(f'texts of {count} tokens, and the tower takes '
                       f'{config.context}: cut them there')
    # In float32: the gradient of a token is a sum over texts.
    table = sharding.gather(self.token_embedding, jnp.float32)[...]
    places = sharding.gather(self.positions, jnp.float32)[...]
    x = vectors.add(table[ids], places[:count])
    if draws and 'dropout' in draws:
      stays = draws['dropout'][:, :count]
      x = jnp.where(stays, x / (1 - config.dropout), 0.0)
    options = config.blocks
    x = blocks.run(self.blocks, options, x.astype(options.compute_dtype))
    return sharding.gather(self.norm, options.compute_dtype)(x)

  def __call__(self, ids: Array, draws: Mapping[str, Array] | None = None
               ) -> Array:
    """[r, e] float32 embeddings; see `tokens`."""
    config, dtype = self.config, self.config.blocks.compute_dtype
    x = self.tokens(ids, draws)
    if config.head_depth:
      x = blocks.run(self.head_blocks, config.head_blocks, x)
    # What follows knows one token at a time: those that are read are enough.
    x = _pooled(x, ids, config.pooling)
    if config.head_depth:
      x = sharding.gather(self.head_norm, dtype)(x)
    if config.has_projection:
      x = sharding.gather(self.projection, dtype)(x)
    return x.astype(jnp.float32)


def draw(key: Array, config: Config, rows: int) -> dict[str, Array]:
  """All that is random in a pass of training; {} without dropout.

  Args:
    key: random key of the step.
    config: rates.
    rows: texts of the global batch.

  Returns:
    'dropout' [r, context, d] bool, True for values that stay.
  """
  if not config.dropout:
    return {}
  return {'dropout': jax.random.bernoulli(
      key, 1 - config.dropout, (rows, config.context, config.width))}


def projection(num_in: int, num_out: int, dtype, rngs: nnx.Rngs
               ) -> layers.Linear:
  """A matrix without bias, of deviation 1/√num_in."""
  out = layers.linear(num_in, num_out, use_bias=False, dtype=dtype, rngs=rngs)
  out.kernel = _normal(rngs, num_in ** -0.5, num_in, num_out)
  return out


def _normal(rngs: nnx.Rngs, std: float, *shape: int) -> nnx.Param:
  return nnx.Param(std * jax.random.normal(
      rngs.params(), shape, jnp.float32))


def _pooled(x: Array, ids: Array, pooling: str) -> Array:
  """[r, d] of tokens [r, n, d]: of the largest id, the first or the last."""
  if pooling == 'first':
    return x[:, 0]
  if pooling == 'last':
    return x[:, -1]
  return jax.vmap(lambda row, i: row[i])(x, jnp.argmax(ids, axis=1))
