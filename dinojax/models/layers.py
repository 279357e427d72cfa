"""The parts of a block. Parameters are float32; arithmetic in `dtype`."""

from collections.abc import Callable
import math

import einops
from flax import nnx
import jax
from jax import ad_checkpoint
import jax.numpy as jnp

from dinojax.kernels import convolution
from dinojax.models import vectors

# PyTorch's trunc_normal_(std=0.02) cuts at ±2, 100 standard deviations away:
# it is a plain normal. JAX's truncated_normal would cut at two.
normal = nnx.initializers.normal


class Linear(nnx.Linear):
  """x · kernel + bias; the gradient of the bias is summed in float32."""

  def __call__(self, x: jax.Array) -> jax.Array:
    kernel = self.kernel[...].astype(self.dtype)
    out = jax.lax.dot_general(
        x.astype(self.dtype), kernel, (((x.ndim - 1,), (0,)), ((), ())))
    return out if self.bias is None else vectors.add(out, self.bias[...])


class Conv(nnx.Conv):
  """A convolution whose bias has a gradient summed in float32."""

  def __call__(self, x: jax.Array) -> jax.Array:
    kernel = self.kernel[...].astype(self.dtype)
    out = convolution.convolve(
        kernel, x.astype(self.dtype), self.strides, self.padding)
    return vectors.add(out, self.bias[...])


def linear(num_in: int, num_out: int, *, dtype, rngs: nnx.Rngs,
           use_bias: bool = True) -> Linear:
  """A Linear with the references' initialisation (normal 0.02, bias 0).

  Weights of blocks meet their inputs in these, and in vit.Attention.project:
  products in another format, such as DINOv3's float8, belong there.
  """
  return Linear(
      num_in, num_out, use_bias=use_bias, dtype=dtype,
      kernel_init=normal(0.02), rngs=rngs)


def conv(num_in: int, num_out: int, size: int, *, stride: int = 1,
         groups: int = 1, padding: int = 0, dtype, rngs: nnx.Rngs) -> Conv:
  """A square convolution of [r, y, x, c], initialised like `linear`."""
  return Conv(
      num_in, num_out, (size, size), strides=stride, padding=padding,
      feature_group_count=groups, dtype=dtype, kernel_init=normal(0.02),
      rngs=rngs)


_BLOCK_INPUT, _ATTENDED, _FFN = 'block_input', 'attended', 'ffn'
_policies = jax.checkpoint_policies
# What the backward pass finds stored; the rest is computed again.
_SAVED = {
    'dots': _policies.save_from_both_policies(
        _policies.dots_with_no_batch_dims_saveable,
        _policies.save_only_these_names(_ATTENDED)),
    'ffn': _policies.save_only_these_names(_ATTENDED, _FFN),
    'blocks': _policies.nothing_saveable,
    'offload': _policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[], offload_src='device',
        names_which_can_be_offloaded=[_BLOCK_INPUT],
        offload_dst='pinned_host')}
REMAT = ('none', *_SAVED)


def remat(body: Callable, kind: str) -> Callable:
  """The body of a scan over blocks, with less kept for the backward pass.

  Args:
    body: function for jax.lax.scan: (carry, part) to (carry, output).
    kind: 'none' keeps all; 'dots' what is costly to compute, products with
      weights and attended values; 'ffn' attended values and, of the products,
      those of the feed-forward, two thirds of the work; 'blocks' only the
      inputs of blocks; 'offload' the same, in the memory of the host.
  """
  if kind == 'none':
    return body

  def named(carry, part):
    if kind == 'offload':  # a name that no policy reads would only cost
      carry = jax.tree.map(
          lambda x: ad_checkpoint.checkpoint_name(x, _BLOCK_INPUT), carry)
    return body(carry, part)

  return jax.checkpoint(named, prevent_cse=False, policy=_SAVED[kind])


def attended(x: jax.Array) -> jax.Array:
  """Marks what attention gives, so that `remat` may keep it."""
  return ad_checkpoint.checkpoint_name(x, _ATTENDED)


def _kept(x: jax.Array) -> jax.Array:
  """Marks a product of the feed-forward, so that `remat` may keep it."""
  return ad_checkpoint.checkpoint_name(x, _FFN)


class RMSNorm(nnx.Module):
  """x / rms(x) · scale; statistics in float32, cast back before the scale."""

  def __init__(self, width: int, *, epsilon: float, dtype):
    self.epsilon, self.dtype = epsilon, dtype
    self.scale = nnx.Param(jnp.ones((width,), jnp.float32))

  def __call__(self, x: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    square = jnp.mean(wide * wide, axis=-1, keepdims=True)
    x = (wide * jax.lax.rsqrt(square + self.epsilon)).astype(self.dtype)
    return vectors.scale(x, self.scale[...])


class LayerNorm(nnx.LayerNorm):
  """Float32 inside; scale and bias have gradients summed in float32.

  Source: torch.nn.functional.layer_norm under autocast, of parameters that
  were rounded to the dtype of the arithmetic.
  """

  def __call__(self, x: jax.Array) -> jax.Array:
    lead = (1,) * (x.ndim - 1)
    scale, bias = (
        vectors.rounded(vector[...], self.dtype).reshape(*lead, -1)
        for vector in (self.scale, self.bias))
    x = x.astype(self.dtype).astype(jnp.float32)
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(x * x, axis=-1, keepdims=True)
    x = x * (jax.lax.rsqrt(variance + self.epsilon) * scale) + bias
    return x.astype(self.dtype)


def norm(kind: str, width: int, *, epsilon: float, dtype, rngs: nnx.Rngs):
  """'layernorm' or 'rmsnorm' over the last axis."""
  if kind == 'rmsnorm':
    return RMSNorm(width, epsilon=epsilon, dtype=dtype)
  if kind != 'layernorm':
    raise ValueError(f'norm={kind!r}: use layernorm or rmsnorm')
  return LayerNorm(width, epsilon=epsilon, dtype=dtype, rngs=rngs)


def in_float32(module: nnx.Module) -> nnx.Module:
  """A norm, gathered for one use, with a result that is not rounded.

  For what KoLeo compares: rows that differ by less than bfloat16 shows.
  """
  module.dtype = jnp.float32
  return module


class LayerScale(nnx.Module):
  """A learned factor per channel of a residual branch."""

  def __init__(self, width: int, value: float, *, dtype):
    self.dtype = dtype
    self.gamma = nnx.Param(jnp.full((width,), value, jnp.float32))

  def __call__(self, x: jax.Array) -> jax.Array:
    return vectors.scale(x.astype(self.dtype), self.gamma[...])


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
  """Exact GELU, x·Φ(x), in float32; the backward pass keeps only x.

  Left to itself, differentiation keeps three arrays of the width of a
  hidden layer, the largest of a block.
  """
  wide = x.astype(jnp.float32)
  return (wide * _normal_cdf(wide)).astype(x.dtype)


def _normal_cdf(x: jax.Array) -> jax.Array:
  return 0.5 * (1 + jax.lax.erf(x * math.sqrt(0.5)))


def _gelu_backward(x: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
  wide = x.astype(jnp.float32)
  density = jnp.exp(-0.5 * wide * wide) * (1 / math.sqrt(2 * math.pi))
  slope = _normal_cdf(wide) + wide * density
  return ((cotangent.astype(jnp.float32) * slope).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


class Mlp(nnx.Module):
  """Linear, exact GELU, Linear."""

  def __init__(self, width: int, hidden: int, *, use_bias: bool, dtype,
               rngs: nnx.Rngs):
    kwargs = dict(use_bias=use_bias, dtype=dtype, rngs=rngs)
    self.fc1 = linear(width, hidden, **kwargs)
    self.fc2 = linear(hidden, width, **kwargs)

  def __call__(self, x: jax.Array) -> jax.Array:
    return _kept(self.fc2(gelu(_kept(self.fc1(x)))))


class SwiGlu(nnx.Module):
  """w3(silu(gate) · value); the first half of w12 is the gate.

  Differs: DINOv3 keeps the two halves as w1 and w2; one product reads the
  input once.
  """

  def __init__(self, width: int, hidden: int, *, use_bias: bool, dtype,
               rngs: nnx.Rngs):
    kwargs = dict(use_bias=use_bias, dtype=dtype, rngs=rngs)
    self.w12 = linear(width, 2 * hidden, **kwargs)
    self.w3 = linear(hidden, width, **kwargs)

  def __call__(self, x: jax.Array) -> jax.Array:
    gate, value = jnp.split(_kept(self.w12(x)), 2, axis=-1)
    return _kept(self.w3(self.open(gate) * value))

  @staticmethod
  def open(gate: jax.Array) -> jax.Array:
    """Factors of the values."""
    return jax.nn.silu(gate)


class GeGlu(SwiGlu):
  """w3(gelu(gate) · value), SwiGLU with another gate.

  Source: the gated MLP of transformers' DINOv3 where hidden_act is gelu.
  """

  @staticmethod
  def open(gate: jax.Array) -> jax.Array:
    """Factors of the values."""
    return gelu(gate)


class PatchEmbed(nnx.Module):
  """Non-overlapping patches, projected; a remainder is cropped away.

  Source: the references keep PyTorch's Conv2d initialisation, uniform in
  ±1/√fan_in for the weight and the bias.
  """

  def __init__(self, patch_px: int, num_channels: int, width: int, *, dtype,
               rngs: nnx.Rngs):
    self.patch_px, self.dtype = patch_px, dtype
    bound = 1 / math.sqrt(num_channels * patch_px**2)

    def uniform(shape):
      return jax.random.uniform(
          rngs.params(), shape, jnp.float32, -bound, bound)

    self.kernel = nnx.Param(uniform((patch_px, patch_px, num_channels, width)))
    self.bias = nnx.Param(uniform((width,)))

  def __call__(self, images: jax.Array) -> jax.Array:
    """[r, y, x, c] to [r, p, d], patches row by row."""
    _, y, x, c = images.shape
    size = self.patch_px
    rows, columns = y // size, x // size
    images = images[:, :rows * size, :columns * size].astype(self.dtype)
    patches = einops.rearrange(
        images, 'r (y i) (x j) c -> r (y x) (i j c)', i=size, j=size)
    kernel = self.kernel[...].astype(self.dtype)
    out = patches @ kernel.reshape(size * size * c, -1)
    return vectors.add(out, self.bias[...])


def tokenwise(function: Callable[[jax.Array], jax.Array],
              crops: list[jax.Array], packing: str) -> list[jax.Array]:
  """Applies a per-token function to crops of several sizes.

  Args:
    function: maps [..., d] to [..., e], token by token.
    crops: [r_i, n_i, d] per crop size.
    packing: 'stream' joins all tokens into one matrix (fastest on CPU),
      'tuple' calls the function once per crop size (no copies).

  Returns:
    [r_i, n_i, e] per crop size.
  """
  if packing == 'tuple' or len(crops) == 1:
    return [function(x) for x in crops]
  flat = [x.reshape(-1, x.shape[-1]) for x in crops]
  out = function(jnp.concatenate(flat))
  starts = [0]
  for x in flat:
    starts.append(starts[-1] + x.shape[0])
  return [
      out[a:b].reshape(*x.shape[:-1], -1)
      for x, a, b in zip(crops, starts[:-1], starts[1:], strict=True)]
