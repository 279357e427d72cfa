"""Pretraining: settings → method → step. Called, it is `dinojax.train`."""

import sys
import types

import dinojax


class _Package(types.ModuleType):
  """A package that is called like the function whose name it has."""

  def __call__(self, config, workdir, *, compile_cache=None):
    return dinojax._train(config, workdir, compile_cache=compile_cache)

  __call__.__doc__ = dinojax._train.__doc__


sys.modules[__name__].__class__ = _Package
