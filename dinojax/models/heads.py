"""The projection head of DINO and iBOT: an MLP, then prototypes."""

import dataclasses
import itertools
import math

from flax import nnx
import jax
import jax.numpy as jnp

from dinojax.models import layers
from dinojax.parallel import sharding

# Prototypes are never brought together: rows come to them.
sharding.split_by_column(r'last_layer/(kernel|v|g)$')


# Every parameter by its path, and by which rule its rate is scaled.
LR_KINDS = ((r'mlp/fc\d+/(kernel|bias)', 'plain'),
            (r'last_layer/(kernel|g|v)', 'last_layer'))


@dataclasses.dataclass(frozen=True)
class HeadConfig:
  """Sizes of a head."""

  num_prototypes: int
  hidden_dim: int = 2048
  bottleneck_dim: int = 256
  num_layers: int = 3
  weight_norm: bool = False  # DINOv2: prototypes of learned norm g
  mlp_bias: bool = True

  def flops(self, width: int, tokens: int) -> float:
    """FLOPs of a forward pass on [tokens, width]; m·k·n counts twice."""
    sizes = [width, *[self.hidden_dim] * (self.num_layers - 1),
             self.bottleneck_dim, self.num_prototypes]
    return sum(2.0 * tokens * a * b
               for a, b in zip(sizes[:-1], sizes[1:], strict=True))


class Prototypes(nnx.Module):
  """Logits of unit vectors against prototypes; float32 out.

  Operands are in the compute dtype. On a mesh each device holds some of the
  prototypes, never all: rows come to them.

  Source: DINOv3's plain Linear; with `weight_norm`, DINOv2's torch weight
    norm, whose v keeps PyTorch's Linear initialisation and whose g starts at
    1 and is trained.
  """

  def __init__(self, width: int, config: HeadConfig, *, dtype,
               rngs: nnx.Rngs):
    self.dtype, self.weight_norm = dtype, config.weight_norm
    shape = (width, config.num_prototypes)
    if config.weight_norm:
      bound = 1 / math.sqrt(width)
      self.v = nnx.Param(jax.random.uniform(
          rngs.params(), shape, jnp.float32, -bound, bound))
      self.g = nnx.Param(jnp.ones(shape[1:], jnp.float32))
    else:
      self.kernel = nnx.Param(
          layers.normal(0.02)(rngs.params(), shape, jnp.float32))

  @property
  def columns(self) -> nnx.Variable:
    """The parameter whose last axis is prototypes."""
    return self.v if self.weight_norm else self.kernel

  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., d] unit vectors to [..., k] float32 logits.

    Under `shard_map` the prototypes, and so the logits, are a device's own
    share.
    """
    if not self.weight_norm:
      kernel = self.kernel[...]
    else:
      v = self.v[...].astype(jnp.float32)
      norm = jnp.sqrt(jnp.sum(v * v, axis=0, keepdims=True))
      kernel = v * (self.g[...].astype(jnp.float32)[None] / norm)
    return jax.lax.dot_general(
        x.astype(self.dtype), kernel.astype(self.dtype),
        (((x.ndim - 1,), (0,)), ((), ())),
        preferred_element_type=jnp.float32)


class HeadMlp(nnx.Module):
  """`num_layers` Linears with exact GELU between."""

  def __init__(self, width: int, config: HeadConfig, *, dtype,
               rngs: nnx.Rngs):
    self.num_layers = config.num_layers
    hidden = [config.hidden_dim] * (config.num_layers - 1)
    sizes = [width, *hidden, config.bottleneck_dim]
    for i, (num_in, num_out) in enumerate(zip(sizes[:-1], sizes[1:],
                                              strict=True)):
      setattr(self, f'fc{i}', layers.linear(
          num_in, num_out, use_bias=config.mlp_bias, dtype=dtype, rngs=rngs))

  def __call__(self, x: jax.Array) -> jax.Array:
    for i in range(self.num_layers):
      x = getattr(self, f'fc{i}')(x)
      if i < self.num_layers - 1:
        x = layers.gelu(x)
    return x


class Head(nnx.Module):
  """Tokens to prototype logits.

  Source: DINOHead of DINOv2 and DINOv3.
  """

  def __init__(self, width: int, config: HeadConfig, *, dtype,
               rngs: nnx.Rngs):
    self.dtype = dtype
    self.mlp = HeadMlp(width, config, dtype=dtype, rngs=rngs)
    self.last_layer = Prototypes(
        config.bottleneck_dim, config, dtype=dtype, rngs=rngs)

  def bottleneck(self, x: jax.Array) -> jax.Array:
    """[..., d] to unit vectors [..., bottleneck_dim], float32."""
    mlp = sharding.gather(self.mlp, self.dtype)
    x = mlp(x.astype(self.dtype)).astype(jnp.float32)
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    # x / max(‖x‖, 1e-6). A masked token that every branch dropped is exactly
    # zero: the references' 1e-12 lets its gradient drown all others.
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-12))

  def __call__(self, x: jax.Array) -> jax.Array:
    """[r, ..., d] to [r, ..., k] float32 logits."""
    return self.on_parts([x])[0]

  def on_parts(self, parts: list[jax.Array]) -> list[jax.Array]:
    """The head on [r_i, ..., d] of several kinds, in one product.

    On a mesh a device gets the logits of its fsdp peers' rows too, against
    its own share of the prototypes (see sharding.columns): rows are smaller
    than prototypes.
    """
    flat = [x.reshape(-1, x.shape[-1]) for x in parts]
    units = _split(self.bottleneck(jnp.concatenate(flat)), flat)
    units = [
        sharding.gather_rows(
            unit.reshape(*x.shape[:-1], -1).astype(self.dtype),
            self.last_layer.columns)
        for unit, x in zip(units, parts, strict=True)]
    flat = [x.reshape(-1, x.shape[-1]) for x in units]
    logits = _split(self.last_layer(jnp.concatenate(flat)), flat)
    return [y.reshape(*x.shape[:-1], -1)
            for y, x in zip(logits, units, strict=True)]


def _split(x: jax.Array, like: list[jax.Array]) -> list[jax.Array]:
  """Undoes the concatenation of arrays with as many rows as `like`."""
  ends = list(itertools.accumulate(part.shape[0] for part in like))
  return [x[end - part.shape[0]:end]
          for end, part in zip(ends, like, strict=True)]
