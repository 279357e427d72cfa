"""Attention of boxes to a map: where a cell lies to a box's edges counts.

A small network turns the distances of a cell's column from the left and the
right edge of a box into a number for each head, another one those of its row
from the top and bottom; their sum is added to the logits.

Source: Plain-DETR's global cross-attention with box-relative positions.
"""

from einops import rearrange
import jax
import jax.numpy as jnp

from dinojax.core import tree
from dinojax.models.dense import parts

Array = jax.Array
PADDED = -100.0  # added to logits of cells beyond the image
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
  """[b, n, d] of queries at a map.

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
  split = lambda x: rearrange(x, '... (h d) -> ... h d', h=num_heads)
  q, k, v = (split(parts.linear(params[name], x)) for name, x in (
      ('q', queries), ('k', keys), ('v', values)))
  height, width = keys.shape[1:3]
  columns = _distances(params['columns'], edges[..., 0::2], width, stride_px,
                       log)
  rows = _distances(params['rows'], edges[..., 1::2], height, stride_px, log)
  out = _attended(q * q.shape[-1] ** -0.5, k, v, columns, rows, inside)
  return parts.linear(params['output'], rearrange(
      out, 'b n h d -> b n (h d)'))


def _distances(params: tree.Tree, edges: Array, count: int, stride_px: int,
               log: bool) -> Array:
  """[b, n, count, h] of the two edges [b, n, 2] of boxes along an axis."""
  centers = (jnp.arange(count, dtype=jnp.float32) + 0.5) * stride_px
  away = edges[:, :, None] - centers[None, None, :, None]
  if log:
    away = jnp.sign(away) * jnp.log2(jnp.abs(away) + 1) / 3
  return parts.linear(params['1'], jax.nn.relu(parts.linear(
      params['0'], away)))


def _attended(q: Array, k: Array, v: Array, columns: Array, rows: Array,
              inside: Array) -> Array:
  """[b, n, h, d] of queries [b, n, h, d] at a map [b, y, x, h, d].

  Args:
    q: queries, scaled.
    k: keys.
    v: values.
    columns: [b, n, x, h] what is added for a column.
    rows: [b, n, y, h] what is added for a row.
    inside: [b, y, x] bool.
  """
  flat = lambda x: rearrange(x, 'b y x h d -> b (y x) h d')
  scores = jnp.einsum('bnhd,bmhd->bhnm', q, flat(k), precision=_HIGHEST)
  bias = (rearrange(columns, 'b n x h -> b h n x')[..., None, :]
          + rearrange(rows, 'b n y h -> b h n y')[..., None])
  scores += rearrange(bias, 'b h n y x -> b h n (y x)')
  beyond = jnp.where(inside, 0.0, PADDED)
  scores += rearrange(beyond, 'b y x -> b (y x)')[:, None, None]
  # The sum divides what is mixed, not every share: a pass less each way.
  most = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
  shares = jnp.exp(scores - most)
  mixed = jnp.einsum('bhnm,bmhd->bnhd', shares, flat(v), precision=_HIGHEST)
  return mixed / rearrange(shares.sum(-1), 'b h n -> b n h')[..., None]
