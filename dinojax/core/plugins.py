"""Packages by which JAX reaches accelerators."""

import importlib.util

_KNOWN = ('jaxlib', 'jax-cuda13-plugin', 'jax-cuda12-plugin', 'libtpu')


def installed() -> list[str]:
  """Names of those that are installed."""
  return [name for name in _KNOWN
          if importlib.util.find_spec(name.replace('-', '_'))]
