"""Layers that several heads share, as functions of their parameters."""

from collections.abc import Mapping, Sequence
import math

from einops import rearrange
import jax
import jax.numpy as jnp

from dinojax.core import tree
from dinojax.kernels import convolution
from dinojax.parallel import sharding

Array = jax.Array
GROUPS, GROUP_EPSILON = 32, 1e-5
_HIGHEST = jax.lax.Precision.HIGHEST


def uniform(key: Array, shape: Sequence[int], inputs: int) -> tree.Tree:
  """A kernel and a bias as PyTorch draws them by default.

  Args:
    key: random key.
    shape: shape of the kernel, the outputs last.
    inputs: values that an output is a sum of.
  """
  reach = 1 / math.sqrt(inputs)
  kernel, bias = (
      jax.random.uniform(k, s, minval=-reach, maxval=reach)
      for k, s in zip(jax.random.split(key), (shape, shape[-1:]), strict=True))
  return {'kernel': kernel, 'bias': bias}


def within(key: Array, shape: Sequence[int], reach: float, *,
           bias: bool = True) -> tree.Tree:
  """A kernel drawn evenly between ±reach, and a bias of 0."""
  kernel = jax.random.uniform(key, shape, minval=-reach, maxval=reach)
  return {'kernel': kernel} | ({'bias': jnp.zeros(shape[-1])} if bias else {})


def xavier(key: Array, shape: Sequence[int]) -> tree.Tree:
  """A kernel [..., d, e] by Xavier's rule, evenly, and a bias of 0."""
  area = math.prod(shape[:-2])
  return within(key, shape, math.sqrt(6 / (area * (shape[-2] + shape[-1]))))


def linear(params: Mapping[str, Array], x: Array) -> Array:
  """[…, e] of [..., d]."""
  out = jnp.einsum('...d,de->...e', sharding.in_one_axis(x), params['kernel'],
                   precision=_HIGHEST)
  if 'bias' in params:
    out += params['bias'][(None,) * (out.ndim - 1)]
  return sharding.in_axes_of(out, x)


def conv(params: Mapping[str, Array], x: Array, stride: int = 1) -> Array:
  """[b, y, x, o] of [b, y, x, c]; sides stay where the stride is 1."""
  out = convolution.convolve(
      params['kernel'], x, stride, params['kernel'].shape[0] // 2, _HIGHEST)
  return out + params['bias'][None, None, None] if 'bias' in params else out


def grown(params: Mapping[str, Array], x: Array) -> Array:
  """[b, k·y, k·x, o] of [b, y, x, c]: each pixel becomes a square of pixels.

  Args:
    params: kernel [c, k, k, o] and bias [o].
    x: the map.

  Source: torch.nn.ConvTranspose2d whose stride is its kernel.
  """
  # In the order of a product: CPUs turn it faster where they use it.
  squares = jnp.einsum('byxc,cklo->byxklo', x, params['kernel'],
                       precision=_HIGHEST)
  # An axis after the other: both at once lose how rows lie on a mesh.
  rows = rearrange(squares, 'b y x k l o -> b (y k) x l o')
  return rearrange(rows, 'b y x l o -> b y (x l) o') + params['bias'][
      None, None, None]


def depthwise(params: Mapping[str, Array], x: Array) -> Array:
  """[b, y, x, d] of a convolution [k, k, 1, d] of each channel by itself."""
  out = convolution.convolve(
      params['kernel'], x, 1, params['kernel'].shape[0] // 2, _HIGHEST)
  return out + params['bias'][None, None, None] if 'bias' in params else out


def group_norm(params: Mapping[str, Array], x: Array,
               groups: int = GROUPS) -> Array:
  """[b, y, x, d] normalised in an image over all pixels of groups of channels.

  Source: torch.nn.GroupNorm.
  """
  x = rearrange(x.astype(jnp.float32), 'b y x (g d) -> b y x g d', g=groups)
  mean = jnp.mean(x, axis=(1, 2, 4), keepdims=True)
  variance = jnp.mean(jnp.square(x - mean), axis=(1, 2, 4), keepdims=True)
  x = rearrange((x - mean) * jax.lax.rsqrt(variance + GROUP_EPSILON),
                'b y x g d -> b y x (g d)')
  return x * params['scale'][None, None, None] + params['bias'][
      None, None, None]


def heads(x: Array, num_heads: int) -> Array:
  """[b, n, h, d] of [b, n, h·d]."""
  return rearrange(x, 'b n (h d) -> b n h d', h=num_heads)


def attended(q: Array, k: Array, v: Array,
             looks: Array | None = None) -> Array:
  """[b, n, h·d] of queries [b, n, h, d] and of keys and values [b, m, h, d].

  Args:
    q: queries.
    k: keys.
    v: values.
    looks: [b, 1, n, m] bool, keys that a query looks at; None: all.
  """
  q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q * q.shape[-1] ** -0.5, k, v))
  scores = jnp.einsum('bhnd,bhmd->bhnm', q, k, precision=_HIGHEST)
  if looks is not None:
    scores = jnp.where(looks, scores, jnp.finfo(scores.dtype).min)
  most = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
  shares = jnp.exp(scores - most)
  # The sum divides what is mixed, not every share. An einsum begins with its
  # last operand, and CPUs are slow where shares are the second factor.
  mixed = jnp.einsum('bhmd,bhnm->bhnd', v, shares,
                     precision=_HIGHEST) / shares.sum(axis=-1)[..., None]
  return rearrange(mixed, 'b h n d -> b n (h d)')
