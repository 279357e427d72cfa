"""Rows a block at a time on CPUs, so that what lies between fits a cache.

CPUs are faster where large arrays between two products are never whole in
memory, even if that makes them twice. Accelerators take all rows at once.
"""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp

from dinojax.core import tree

Array = jax.Array
_CACHE_BYTES = 2**22  # second-level caches of two cores, about


def mapped(function: Callable[..., tree.Tree], row_bytes: int,
           *rows: Array) -> tree.Tree:
  """A function of rows [r, …], of about as many at a time as fit a cache.

  Args:
    function: rows to rows that know no others.
    row_bytes: bytes of what lies between, for a row.
    *rows: arrays of the same length.
  """
  count, size = len(rows[0]), _size(len(rows[0]), row_bytes)
  if size == count:
    return function(*rows)
  out = jax.lax.map(
      lambda block: function(*block), [_blocks(x, size) for x in rows])
  return jax.tree.map(lambda x: _joined(x, count), out)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def made_again(function: Callable[[tree.Tree, Array], Array], row_bytes: int,
               params: tree.Tree, rows: Array) -> Array:
  """A function that keeps only what it is given for gradients.

  Args:
    function: parameters and rows [r, …] to rows that know no others; it closes
      over nothing that is traced.
    row_bytes: see `mapped`.
    params: a tree of floats.
    rows: [r, …] floats.
  """
  return jax.lax.platform_dependent(
      params, rows, default=function, cpu=lambda params, rows: mapped(
          functools.partial(function, params), row_bytes, rows))


def _forward(function: Callable, row_bytes: int, params: tree.Tree,
             rows: Array) -> tuple[Array, tuple[tree.Tree, Array]]:
  return made_again(function, row_bytes, params, rows), (params, rows)


def _backward(function: Callable, row_bytes: int, kept: tuple[tree.Tree, Array],
              change: Array) -> tuple[tree.Tree, Array]:
  def whole(params, rows, change):
    return jax.vjp(function, params, rows)[1](change)

  def in_blocks(params, rows, change):
    count, size = len(rows), _size(len(rows), row_bytes)
    if size == count:
      return whole(params, rows, change)
    # The last block ends in rows whose output does not change.
    of_params, of_rows = jax.lax.map(
        lambda block: whole(params, *block),
        (_blocks(rows, size), _blocks(change, size, mode='constant')))
    return (jax.tree.map(lambda x: x.sum(axis=0), of_params),
            _joined(of_rows, count))

  return jax.lax.platform_dependent(
      *kept, change, default=whole, cpu=in_blocks)


def _size(count: int, row_bytes: int) -> int:
  """Rows of a block: as many as fit, or over half as many if all are alike."""
  most = min(max(_CACHE_BYTES // max(row_bytes, 1), 1), count)
  return next((n for n in range(most, most // 2, -1) if count % n == 0), most)


def _blocks(x: Array, size: int, mode: str = 'edge') -> Array:
  """[s, size, …] of [r, …], which ends in its last row again, or in zeros."""
  more = [(0, -len(x) % size)] + [(0, 0)] * (x.ndim - 1)
  return jnp.pad(x, more, mode=mode).reshape(
      -(-len(x) // size), size, *x.shape[1:])


def _joined(x: Array, count: int) -> Array:
  """[r, …] of blocks [s, size, …]."""
  return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])[:count]


made_again.defvjp(_forward, _backward)
