"""Assignments of least cost: every row of a table gets columns of its own.

Rows are few, columns many. Prices make a start at which most rows have what
they want, and every column that is still missing is found along a shortest
path, in as many steps as there are rows that it moves.

Source: successive shortest paths with prices (Jonker and Volgenant), for rows
  that get several columns each.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

Array = jax.Array


def assign(costs: Array, present: Array, copies: int = 1) -> Array:
  """[q] the row that each column is given to, −1 for none.

  The sum of the costs is least; every row that is present gets `copies`
  columns, as far as there are columns.

  Args:
    costs: [t, q] finite costs.
    present: [t] bool, rows that get columns.
    copies: columns of a row.
  """
  if costs.shape[0] * copies > costs.shape[1]:
    return _by_table(costs, present, copies)
  price, value, owner = _start(costs, present, copies)
  missing = jnp.where(present, copies - _owned(owner, len(costs)), 0)

  def step(state):
    price, value, owner, missing = state
    row = jnp.argmax(missing > 0)
    path = _search(costs, price, value, owner, row)
    price = price + jnp.where(
        path.seen, jnp.maximum(path.length - path.of_row, 0), 0)
    value = value - jnp.where(
        path.done, jnp.maximum(path.length - path.of_column, 0), 0)
    return (price, value, _moved(owner, path, row),
            missing.at[row].add(-1))

  *_, owner, _ = jax.lax.while_loop(
      lambda state: jnp.any(state[3] > 0), step,
      (price, value, owner, missing))
  return owner


def _start(costs: Array, present: Array,
           copies: int) -> tuple[Array, Array, Array]:
  """Prices of rows and columns, and owners of columns that fit them.

  A row would pay for its last column: the cheaper ones are worth less than
  nothing to others, and belong to the row to which they are worth the most.
  """
  last = costs.min(1) if copies == 1 else (
      -jax.lax.top_k(-costs, copies)[0][:, -1])
  price = jnp.where(present, last, 0.0)
  slack = jnp.where(present[:, None], costs - price[:, None], jnp.inf)
  least, first = slack.min(0), slack.argmin(0).astype(jnp.int32)
  mine = first[None] == jnp.arange(len(costs))[:, None]
  cheaper, equal = mine & (least < 0)[None], mine & (least == 0)[None]
  # Several columns may cost as much as the last.
  room = copies - cheaper.sum(1, keepdims=True)
  kept = cheaper | (equal & (jnp.cumsum(equal, axis=1) <= room))
  owner = jnp.where(kept.any(0), first, -1)
  return price, jnp.minimum(least, 0.0), owner


class _Path(NamedTuple):
  """A shortest path from a row to a column that nobody has.

  Attributes:
    end: the column.
    length: its distance.
    before: [q] row before a column.
    entry: [t] column before a row.
    seen: [t] bool, rows on the way.
    of_row: [t] their distances.
    done: [q] bool, columns that these own.
    of_column: [q] distances of columns.
  """

  end: Array
  length: Array
  before: Array
  entry: Array
  seen: Array
  of_row: Array
  done: Array
  of_column: Array


def _search(costs: Array, price: Array, value: Array, owner: Array,
            row: Array) -> _Path:
  """The shortest path from a row that lacks a column."""
  count, columns = costs.shape
  rows = jnp.arange(count)
  away = lambda row: jnp.maximum(costs[row] - price[row] - value, 0)

  def nearest(path):
    distance = jnp.where(path.done, jnp.inf, path.of_column)
    end = jnp.argmin(distance).astype(jnp.int32)
    return path._replace(end=end, length=distance[end])

  def step(path):
    row = owner[path.end]
    theirs = owner == row
    done = path.done | theirs
    further = path.length + away(row)
    closer = ~done & (further < path.of_column)
    of_column = jnp.where(theirs & ~path.done, path.length, jnp.where(
        closer, further, path.of_column))
    at_row = rows == row
    return nearest(_Path(
        path.end, path.length,
        jnp.where(closer, row, path.before),
        jnp.where(at_row, path.end, path.entry), path.seen | at_row,
        jnp.where(at_row, path.length, path.of_row), done, of_column))

  mine = owner == row
  start = nearest(_Path(
      jnp.int32(0), jnp.float32(0), jnp.full(columns, row, jnp.int32),
      jnp.full(count, -1, jnp.int32), rows == row,
      jnp.zeros(count), mine, jnp.where(mine, 0.0, away(row))))
  # Of several tables some are done first: they look for a column in vain.
  return jax.lax.while_loop(
      lambda path: (owner[path.end] >= 0) & jnp.isfinite(path.length), step,
      start)


def _moved(owner: Array, path: _Path, row: Array) -> Array:
  """Owners of columns after each on a path has gone to the row before it."""
  def step(state):
    owner, column, _ = state
    new = path.before[column]
    return (owner.at[column].set(new), path.entry[new], new == row)

  owner, _, _ = jax.lax.while_loop(
      lambda state: ~state[2], step,
      (owner, path.end, ~jnp.isfinite(path.length)))
  return owner


def _owned(owner: Array, count: int) -> Array:
  """[t] columns of each row."""
  return jnp.sum(owner[None] == jnp.arange(count)[:, None], axis=1)


def _by_table(costs: Array, present: Array, copies: int) -> Array:
  """`assign` where rows may want more columns than there are.

  Every copy is a row. Rows that are not there cost so much that to leave
  another row without a column for them never pays.
  """
  table = jnp.repeat(costs, copies, axis=0)
  there = jnp.repeat(present, copies)
  low = jnp.min(jnp.where(there[:, None], table, jnp.inf))
  high = jnp.max(jnp.where(there[:, None], table, -jnp.inf))
  idle = jnp.where(there.any(), high + (table.shape[1] + 1) * (
      high - low), 0.0) + 1
  rows, columns = optax.assignment.hungarian_algorithm(
      jnp.where(there[:, None], table, idle))
  rows = rows.astype(jnp.int32)
  return jnp.full(costs.shape[1], -1, jnp.int32).at[columns].set(
      jnp.where(there[rows], rows // copies, -1))
