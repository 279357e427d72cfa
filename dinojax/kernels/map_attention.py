"""Attention to a map whose logits have a term of the column and of the row.

Logits are by far its largest arrays. They are not kept for gradients: they are
made again, and what is kept of them is the largest one of each query and the
sum of its exponentials.

Accelerators get the terms out of the product of queries and keys: keys have a 1
at their column and at their row, which costs a matrix unit little, while to
turn logits into maps would cost more than all products. CPUs add the terms,
over the two axes of the map, and take as many heads at a time as fit a cache.

Source: the global cross-attention of Plain-DETR.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dinojax.kernels import blocks

Array = jax.Array
PADDED = -100.0  # added to logits of cells beyond the image
_HIGHEST = jax.lax.Precision.HIGHEST


@jax.custom_vjp
def attend(q: Array, k: Array, v: Array, columns: Array, rows: Array,
           inside: Array) -> Array:
  """[g, n, d] of queries at the y·x cells of a map, row after row.

  Args:
    q: [g, n, d] scaled queries of heads; g: all heads of an image, then those
      of the next one, of the images of this device. All are of one dtype.
    k: [g, y·x, d] keys.
    v: [g, y·x, d] values.
    columns: [g, n, x] what is added to logits of a column.
    rows: [g, n, y] what is added to logits of a row.
    inside: [b, y, x] bool: cells that are image; logits of others lose 100.
  """
  return _forward(q, k, v, columns, rows, inside)[0]


def _forward(q: Array, k: Array, v: Array, columns: Array, rows: Array,
             inside: Array) -> tuple[Array, tuple[Array, ...]]:
  beyond = jnp.where(inside, 0.0, PADDED).astype(k.dtype)[:, None]
  images, _, *sides = beyond.shape
  beyond = jnp.broadcast_to(
      beyond, (images, len(q) // images, *sides)).reshape(-1, *sides)
  given = q, k, columns, rows, beyond, v
  out, most, total = jax.lax.platform_dependent(
      *given, default=functools.partial(_mix, _PRODUCT),
      cpu=_in_blocks(functools.partial(_mix, _SUMS)))
  return out, (*given, out, most, total)


def _backward(kept: tuple[Array, ...], change: Array) -> tuple:
  q, k, columns, rows, v = jax.lax.platform_dependent(
      *kept, change, default=functools.partial(_changes, _PRODUCT),
      cpu=_in_blocks(functools.partial(_changes, _SUMS)))
  return q, k, v, columns, rows, None


class _Way(NamedTuple):
  """How terms come into logits.

  Attributes:
    shares: exponentials of logits, undivided, and the largest logits.
    total: their sum [g, n, 1].
    read: gradients of queries and of both terms, of those of logits.
  """

  shares: Callable[..., tuple[Array, Array]]
  total: Callable[[Array], Array]
  read: Callable[..., tuple[Array, Array, Array]]


def _mix(way: _Way, q: Array, k: Array, columns: Array, rows: Array,
         beyond: Array, v: Array) -> tuple[Array, Array, Array]:
  """Mixed values, the largest logit and the sum of a query's exponentials."""
  each, most = way.shares(q, k, columns, rows, beyond)
  # The sum divides what is mixed, not every share.
  total = way.total(each)
  return _product(each, v, 2, 1) / total, most, total


def _changes(way: _Way, q: Array, k: Array, columns: Array, rows: Array,
             beyond: Array, v: Array, out: Array, most: Array, total: Array,
             change: Array) -> tuple[Array, ...]:
  """Gradients of queries, keys, both terms and values."""
  change /= total
  each, _ = way.shares(q, k, columns, rows, beyond, most)
  of_total = jnp.sum(change * out, axis=-1, keepdims=True)
  of_logits = each * (_product(change, v, 2, 2) - of_total)
  of_queries, of_columns, of_rows = way.read(of_logits, k, columns, rows)
  return (of_queries, _product(of_logits, q, 1, 1), of_columns, of_rows,
          _product(each, change, 1, 1))


def _by_product(q: Array, k: Array, columns: Array, rows: Array, beyond: Array,
                most: Array | None = None) -> tuple[Array, Array]:
  """Shares where logits are a product."""
  keys = jnp.concatenate(
      [_with_ones(k, columns, rows), beyond.reshape(len(k), -1, 1)], axis=-1)
  queries = jnp.concatenate(
      [q, columns, rows, jnp.ones_like(q[..., :1])], axis=-1)
  logits = _product(queries, keys, 2, 2)
  most = logits.max(axis=-1, keepdims=True) if most is None else most
  return jnp.exp(logits - most), most


def _read_by_product(of_logits: Array, k: Array, columns: Array,
                     rows: Array) -> tuple[Array, Array, Array]:
  """Gradients that are one product."""
  out = _product(of_logits, _with_ones(k, columns, rows), 2, 1)
  width = k.shape[-1]
  return tuple(jnp.split(out, [width, width + columns.shape[-1]], axis=-1))


def _with_ones(k: Array, columns: Array, rows: Array) -> Array:
  """[g, y·x, d + x + y]: keys, and a 1 at a cell's column and at its row."""
  x, y = columns.shape[-1], rows.shape[-1]
  ones = jnp.concatenate(
      [jnp.tile(jnp.eye(x, dtype=k.dtype), (y, 1)),
       jnp.repeat(jnp.eye(y, dtype=k.dtype), x, axis=0)], axis=-1)
  return jnp.concatenate(
      [k, jnp.broadcast_to(ones, (len(k), *ones.shape))], axis=-1)


def _by_sums(q: Array, k: Array, columns: Array, rows: Array, beyond: Array,
             most: Array | None = None) -> tuple[Array, Array]:
  """Shares where terms are added."""
  logits = _product(q, k, 2, 2)
  maps = logits.reshape(*rows.shape, columns.shape[-1])
  maps += rows[..., None] + beyond[:, None]
  if most is None:
    # Over the rows first: columns are what a processor takes side by side.
    most = (maps.max(axis=-2) + columns).max(axis=-1, keepdims=True)
  each = jnp.exp(maps + columns[..., None, :] - most[..., None])
  return each.reshape(logits.shape), most


def _read_by_sums(of_logits: Array, k: Array, columns: Array,
                  rows: Array) -> tuple[Array, Array, Array]:
  """Gradients of the terms that are sums over the map."""
  maps = of_logits.reshape(*rows.shape, columns.shape[-1])
  return _product(of_logits, k, 2, 1), maps.sum(axis=-2), maps.sum(axis=-1)


def _in_blocks(function: Callable) -> Callable:
  """The function, on as many heads at a time as have logits of a cache."""
  return lambda q, k, *more: blocks.mapped(
      function, 4 * q.shape[1] * k.shape[1], q, k, *more)


def _product(a: Array, b: Array, i: int, j: int) -> Array:
  """Matrices of heads, summed over one axis of each."""
  return jax.lax.dot_general(
      a, b, (((i,), (j,)), ((0,), (0,))), precision=_HIGHEST)


_PRODUCT = _Way(_by_product, lambda each: each.sum(axis=-1, keepdims=True),
                _read_by_product)
# CPUs add up a row one by one, and have products that do not.
_SUMS = _Way(_by_sums, lambda each: jnp.matmul(
    each, jnp.ones((each.shape[-1], 1), each.dtype), precision=_HIGHEST),
             _read_by_sums)
attend.defvjp(_forward, _backward)
