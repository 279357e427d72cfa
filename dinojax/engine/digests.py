"""Digests of arrays, computed where they are: what was saved is what is read.

A sum over elements of a mixed number of their bits and place, modulo 2³²: any
division over devices gives the same, nothing is gathered, and one changed
element always changes it (by mixing, which is a bijection); several do but
for one case in 4·10⁹.

It reads the state once: 4 bytes a value. Measured: see docs/reliability.md.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from dinojax.core import tree


@jax.jit
def digest(x: jax.Array) -> jax.Array:
  """uint32 [] of an array of any shape, type and sharding."""
  if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
    x = jax.random.key_data(x)
  if x.dtype == jnp.bool_:
    x = x.astype(jnp.uint8)
  kind = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
  bits = jax.lax.bitcast_convert_type(x, kind).astype(jnp.uint32)
  place = jnp.full(x.shape, len(x.shape) + 1, jnp.uint32)
  for axis in range(x.ndim):
    # Not a number of the element: that needs more than 32 bits.
    place = _mix(place ^ jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis))
  return jnp.sum(_mix(bits ^ place), dtype=jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
  """A bijection of 32 bits in which every bit depends on all.

  Source: C. Wellons, "Prospecting for hash functions", lowbias32.
  """
  x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
  return x ^ (x >> 16)


def of_item(item: tree.Tree) -> dict[str, list[int]]:
  """Digest and shape of every array by name; the same on all hosts.

  One after the other: programs under way together may meet their collectives
  in another order on another host, and then all wait for ever.
  """
  return {name: [int(digest(leaf)), *leaf.shape]
          for name, leaf in tree.items(item)}


def differing(known: Mapping[str, list[int]], item: tree.Tree) -> list[str]:
  """Names of arrays that are not those that `known` was made from."""
  digests = of_item(item)
  return [name for name in digests if known.get(name) != digests[name]]


def misfit(known: Mapping[str, list[int]], wanted: tree.Tree) -> str:
  """How arrays of these names and shapes are not those that are wanted.

  Args:
    known: as of `of_item`.
    wanted: arrays or their shapes.

  Returns:
    A phrase about the first that differs; '' if none does.
  """
  names = tree.names(wanted)
  for name, want in tree.items(wanted):
    if name not in known:
      return f'{name} is not in it'
    if tuple(known[name][1:]) != want.shape:
      return f'{name} is {known[name][1:]}, not {list(want.shape)}'
  return ''.join(f'{name} is only in the checkpoint'
                 for name in list(known) if name not in names)[:200]
