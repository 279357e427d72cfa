"""Nested dicts of arrays, addressed by '/'-joined paths."""

from collections.abc import Callable, Iterator
import math
from typing import Any

import jax

Tree = Any


def path_name(path: tuple) -> str:
  """'backbone/blocks/attn/qkv/kernel' of a jax key path."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def items(tree: Tree) -> Iterator[tuple[str, Any]]:
  """(path, leaf) pairs in the order of jax.tree.leaves."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    yield path_name(path), leaf


def names(tree: Tree) -> list[str]:
  """Paths of all leaves in the order of jax.tree.leaves."""
  return [name for name, _ in items(tree)]


def map_with_name(function: Callable[..., Any], tree: Tree, *rest: Tree):
  """jax.tree.map whose function also receives the leaf's path."""
  return jax.tree_util.tree_map_with_path(
      lambda path, *leaves: function(path_name(path), *leaves), tree, *rest)


def num_elements(tree: Tree) -> int:
  """Number of array elements in the tree."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def is_abstract(tree: Tree) -> bool:
  """Tells whether a tree holds shapes instead of arrays."""
  return any(isinstance(leaf, jax.ShapeDtypeStruct)
             for leaf in jax.tree.leaves(tree)[:1])


def divide(tree: Tree, chosen: Callable[[str], bool]) -> tuple[dict, dict]:
  """Nested dicts of the leaves whose path is chosen, and of all others.

  Neither holds empty dicts.
  """
  parts: tuple[dict, dict] = ({}, {})
  for name, leaf in items(tree):
    *parents, last = name.split('/')
    place = parts[0 if chosen(name) else 1]
    for parent in parents:
      place = place.setdefault(parent, {})
    place[last] = leaf
  return parts


def join(first: dict, second: dict) -> dict:
  """The inverse of `divide`: all leaves of two nested dicts."""
  out = dict(first)
  for name, value in second.items():
    out[name] = join(out[name], value) if (
        name in out and isinstance(value, dict)) else value
  return out
