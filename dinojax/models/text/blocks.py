"""Blocks of the text tower and of the vision head: those of a ViT, scanned."""

from collections.abc import Callable, Mapping

from flax import nnx
import jax
import jax.numpy as jnp

from dinojax.kernels import attention
from dinojax.kernels import rotary
from dinojax.models import layers
from dinojax.models import vit
from dinojax.parallel import sharding

Array = jax.Array
EPSILON = 1e-5  # of every norm


class Attention(vit.Attention):
  """Attention among tokens, or from each to those before it."""

  def __init__(self, config: vit.ViTConfig, *, causal: bool, rngs: nnx.Rngs):
    super().__init__(config, rngs=rngs)
    self.causal = causal

  def mix(self, qkv: Array, rope: rotary.Rope | None) -> Array:
    """[r, n, 3·d] to the attended values [r, n, d].

    A causal one is dense: the kernels know no such mask, and a caption has 77
    tokens.
    """
    if not self.causal:
      return super().mix(qkv, rope)
    mixed = jax.nn.dot_product_attention(
        *attention.heads(qkv, self.config.num_heads, rope), is_causal=True)
    return layers.attended(mixed.reshape(*qkv.shape[:2], -1))


def stack(make: Callable[[nnx.Rngs], nnx.Module], depth: int, *,
          rngs: nnx.Rngs) -> nnx.Module:
  """Blocks whose parameters have their layer as the first axis."""
  return nnx.vmap(make)(rngs.split(depth))


def run(blocks: nnx.Module, config: vit.ViTConfig, x: Array,
        draws: Mapping[str, Array] | None = None) -> Array:
  """Tokens [r, n, d] after all blocks.

  Args:
    blocks: see `stack`.
    config: their sizes, and the dtype of the arithmetic.
    x: tokens before the first.
    draws: rows that each branch keeps, [g, l, k] int32 of 'attn' and 'ffn',
      see models.randomness; None: all rows.
  """
  # [g, l, …] to [l, g, …]: the scan walks over layers.
  drawn = jax.tree.map(lambda d: jnp.moveaxis(d, 1, 0), dict(draws or {}))

  def body(x, layer):
    block, kept = layer
    x, = sharding.gather(block, config.compute_dtype)([x], [None], [kept])
    return x, None

  return jax.lax.scan(
      layers.remat(body, config.remat), x, (blocks, drawn))[0]
