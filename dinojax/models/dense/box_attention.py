"""Attention of boxes to a map: where a cell lies to a box's edges counts.

A small network turns the distances of a cell's column from the left and the
right edge of a box into a number for each head, another one those of its row
from the top and bottom; their sum is added to the logits.

Source: Plain-DETR's global cross-attention with box-relative positions.
"""

import functools

from einops import rearrange
import jax
import jax.numpy as jnp

from dinojax.core import tree
from dinojax.kernels import blocks
from dinojax.kernels import map_attention
from dinojax.models.dense import parts

Array = jax.Array
_STD = 0.02
_HIGHEST = jax.lax.Precision.HIGHEST


def init(key: Array, hidden: int, num_heads: int, inner: int) -> tree.Tree:
  """Random parameters, normal with a deviation of 0.02.

  Args:
    key: random key.
    hidden: width of queries and map.
    num_heads: heads.
    inner: width within the networks of the distances.
  """
  keys = iter(jax.random.split(key, 8))

  def layer(inputs, outputs, bias=True):
    kernel = _STD * jax.random.normal(next(keys), (inputs, outputs))
    return {'kernel': kernel} | ({'bias': jnp.zeros(outputs)} if bias else {})

  distances = lambda: {'0': layer(2, inner),
                       '1': layer(inner, num_heads, bias=False)}
  return {name: layer(hidden, hidden)
          for name in ('q', 'k', 'v', 'output')} | {
              'columns': distances(), 'rows': distances()}


def apply(params: tree.Tree, queries: Array, keys: Array, values: Array,
          edges: Array, inside: Array, *, stride_px: int,
          log: bool = False) -> Array:
  """[b, n, d] of queries at a map; on a mesh, inside `sharding.by_rows`.

  Args:
    params: see `init`.
    queries: [b, n, d].
    keys: [b, y, x, d] map, with its positions.
    values: [b, y, x, d] map.
    edges: [b, n, 4] corners of the queries' boxes, in pixels.
    inside: [b, y, x] bool: cells that are image.
    stride_px: side of a cell.
    log: True takes logarithms of distances.
  """
  num_heads = params['rows']['1']['kernel'].shape[-1]
  q, k, v = (rearrange(parts.linear(params[name], x),
                       'b ... (h d) -> (b h) (...) d', h=num_heads)
             for name, x in (('q', queries), ('k', keys), ('v', values)))
  # Boxes of all images in one axis: CPUs would turn what lies between to learn
  # from several.
  flat = rearrange(edges, 'b n e -> (b n) e')
  columns, rows = (rearrange(blocks.made_again(
      functools.partial(_distances, count=count, stride_px=stride_px, log=log),
      4 * count * params[name]['1']['kernel'].shape[0], params[name],
      flat[:, axis::2]), '(b n) h c -> (b h) n c', b=len(edges))
                   for axis, (name, count) in enumerate((
                       ('columns', keys.shape[2]), ('rows', keys.shape[1]))))
  out = map_attention.attend(
      q * q.shape[-1] ** -0.5, k, v, columns, rows, inside)
  return parts.linear(params['output'], rearrange(
      out, '(b h) n d -> b n (h d)', h=num_heads))


def _distances(params: tree.Tree, edges: Array, *, count: int, stride_px: int,
               log: bool) -> Array:
  """[m, h, count] of the two edges [m, 2] of boxes along an axis."""
  first, second = params['0'], params['1']['kernel']
  centers = (jnp.arange(count, dtype=jnp.float32) + 0.5) * stride_px
  if log:
    away = edges[:, None] - centers[None, :, None]
    away = jnp.sign(away) * jnp.log2(jnp.abs(away) + 1) / 3
    hidden = parts.linear(first, away)
  else:
    # What edges give at 0, less what the way to a cell takes: 6e-7 of them is
    # lost where both are large.
    way = centers[:, None] * first['kernel'].sum(axis=0, keepdims=True)
    hidden = parts.linear(first, edges)[:, None] - way[None]
  # Weights are turned before, and not what is hidden: as a product gives heads
  # first, and as logits need them.
  turned = jax.lax.optimization_barrier(second.T)
  out = jnp.einsum('hi,mi->hm', turned, jax.nn.relu(
      rearrange(hidden, 'm c i -> (m c) i')), precision=_HIGHEST)
  return rearrange(out, 'h (m c) -> m h c', c=count)
