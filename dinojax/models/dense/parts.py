"""Layers that several heads share, as functions of their parameters."""

from collections.abc import Mapping, Sequence
import math

from einops import rearrange
import jax
import jax.numpy as jnp

from dinojax.core import tree

Array = jax.Array
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


def linear(params: Mapping[str, Array], x: Array) -> Array:
  """[…, e] of [..., d]."""
  out = jnp.einsum('...d,de->...e', x, params['kernel'], precision=_HIGHEST)
  if 'bias' not in params:
    return out
  return out + params['bias'][(None,) * (out.ndim - 1)]


def conv(params: Mapping[str, Array], x: Array, stride: int = 1) -> Array:
  """[b, y, x, o] of [b, y, x, c]; sides stay where the stride is 1."""
  pad = params['kernel'].shape[0] // 2
  out = jax.lax.conv_general_dilated(
      x, params['kernel'], (stride, stride), ((pad, pad), (pad, pad)),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'), precision=_HIGHEST)
  return out + params['bias'][None, None, None] if 'bias' in params else out


def grown(params: Mapping[str, Array], x: Array) -> Array:
  """[b, k·y, k·x, o] of [b, y, x, c]: each pixel becomes a square of pixels.

  Args:
    params: kernel [c, k, k, o] and bias [o].
    x: the map.

  Source: torch.nn.ConvTranspose2d whose stride is its kernel.
  """
  squares = jnp.einsum('byxc,cklo->bykxlo', x, params['kernel'],
                       precision=_HIGHEST)
  # An axis after the other: both at once lose how rows lie on a mesh.
  rows = rearrange(squares, 'b y k x l o -> b (y k) x l o')
  return rearrange(rows, 'b y x l o -> b y (x l) o') + params['bias'][
      None, None, None]
