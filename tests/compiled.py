"""Functions as users run them: inside one program, not an operation at a time.

Every operation that is called by itself is a program to compile: most of the
work of a test, for nothing that it tests.
"""

import functools
import inspect
import types

import jax

# Arguments that are no arrays, whatever function they are of.
STATIC = ('num_iterations', 'ignore_diagonal', 'num_rows', 'topk', 'normalize',
          'per_image', 'remove_negative', 'remove_only_teacher_negative',
          'num_heads', 'implementation', 'kind', 'spec', 'dtype', 'views',
          'blur_probability', 'solarize_probability', 'grid')


def function(f):
  """The function as one program for each of its shapes."""
  names = inspect.signature(f).parameters
  return jax.jit(f, static_argnames=[name for name in STATIC if name in names])


class Functions:
  """The functions of a module, each as one program."""

  def __init__(self, module: types.ModuleType):
    self._module = module

  @functools.cache  # noqa: B019  modules live as long
  def __getattr__(self, name: str):
    return function(getattr(self._module, name))
