"""Vectors that all rows share: biases, scales, tokens, positions.

The gradient of each is a sum over thousands of rows. Left to itself,
differentiation adds them up in the dtype of the activations, and bfloat16 has
8 bits: a row that is 1/256 of the sum so far is lost. Here the sums are
float32, as PyTorch's are, without a float32 copy of the activations.
"""

import functools

import jax
import jax.numpy as jnp

Array = jax.Array


def add(x: Array, vector: Array) -> Array:
  """x + vector in the dtype of x, [..., d…] and [d…]."""
  return _add(x, vector.astype(jnp.float32))


def scale(x: Array, vector: Array) -> Array:
  """x · vector in the dtype of x, [..., d…] and [d…]."""
  return _scale(x, vector.astype(jnp.float32))


def replace(x: Array, mask: Array, vector: Array) -> Array:
  """[..., d], the vector [d] where the mask [...] is set."""
  return _replace(x, mask, vector.astype(jnp.float32))


def repeat(vector: Array, rows: int, dtype: jnp.dtype) -> Array:
  """[n, d] for every row, [rows, n, d] in `dtype`."""
  return _repeat(rows, dtype, vector.astype(jnp.float32))


def rounded(vector: Array, dtype: jnp.dtype) -> Array:
  """The values that `vector` has in `dtype`, as float32.

  Arithmetic with them is float32, and so is the sum that is their gradient.
  """
  return _rounded(dtype, vector.astype(jnp.float32))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rounded(dtype: jnp.dtype, vector: Array) -> Array:
  return vector.astype(dtype).astype(jnp.float32)


_rounded.defvjp(lambda dtype, vector: (_rounded(dtype, vector), None),
                lambda dtype, _, change: (change,))


@jax.custom_vjp
def _add(x: Array, vector: Array) -> Array:
  return x + _beside(x, vector)


_add.defvjp(lambda x, vector: (_add(x, vector), vector.ndim),
            lambda ndim, change: (change, _over_rows(change, ndim)))


@jax.custom_vjp
def _scale(x: Array, vector: Array) -> Array:
  return x * _beside(x, vector)


def _scale_backward(kept: tuple[Array, Array],
                    change: Array) -> tuple[Array, Array]:
  x, vector = kept
  # Widened within the sum: compilers make one loop of it.
  products = change.astype(jnp.float32) * x.astype(jnp.float32)
  return change * _beside(x, vector), _over_rows(products, vector.ndim)


_scale.defvjp(lambda x, vector: (_scale(x, vector), (x, vector)),
              _scale_backward)


@jax.custom_vjp
def _replace(x: Array, mask: Array, vector: Array) -> Array:
  return jnp.where(mask[..., None], _beside(x, vector), x)


def _replace_backward(mask: Array, change: Array) -> tuple[Array, None, Array]:
  rest = jnp.where(mask[..., None], jnp.zeros((), change.dtype), change)
  return rest, None, _over_rows(change, 1, mask)


_replace.defvjp(
    lambda x, mask, vector: (_replace(x, mask, vector), mask),
    _replace_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _repeat(rows: int, dtype: jnp.dtype, vector: Array) -> Array:
  return jnp.broadcast_to(vector.astype(dtype)[None], (rows, *vector.shape))


_repeat.defvjp(
    lambda rows, dtype, vector: (_repeat(rows, dtype, vector), None),
    lambda rows, dtype, _, change: (_over_rows(change, change.ndim - 1),))


def _beside(x: Array, vector: Array) -> Array:
  """The vector in the dtype and with as many axes as x."""
  lead = (1,) * (x.ndim - vector.ndim)
  return vector.reshape(lead + vector.shape).astype(x.dtype)


def _over_rows(x: Array, ndim: int, mask: Array | None = None) -> Array:
  """Sum over the leading axes of x, where the mask is set; float32.

  Args:
    x: [..., d…], any dtype.
    ndim: axes at the end that stay.
    mask: [...] bool, the rows that are added; None: all.
  """
  lead = tuple(range(x.ndim - ndim))
  if x.dtype == jnp.float32:
    where = None if mask is None else mask[..., None]
    return jnp.sum(x, lead, where=where)
  # A product with ones reads x as it is and adds in float32. For a sum of
  # x.astype(float32) a compiler may well store that.
  ones = jnp.ones(x.shape[:len(lead)], x.dtype) if mask is None else (
      mask.astype(x.dtype))
  return jax.lax.dot_general(
      ones, x, ((lead, lead), ((), ())), preferred_element_type=jnp.float32)
