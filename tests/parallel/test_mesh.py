"""Options of the compiler are those that the installed one knows."""

import types

import jax
import numpy as np
import pytest

from dinojax.core import errors
from dinojax.parallel import mesh as mesh_lib


def of(platform):
  """What stands for a mesh whose devices are not here."""
  return types.SimpleNamespace(devices=np.array(
      [types.SimpleNamespace(platform=platform)], object))


@pytest.mark.parametrize('deterministic', [False, True])
@pytest.mark.parametrize('platform', ['cpu', 'gpu', 'tpu'])
def test_the_compiler_takes_them(platform, deterministic):
  options = mesh_lib.compiler_options(
      of(platform), deterministic=deterministic)
  assert ('xla_gpu_exclude_nondeterministic_ops' in options) == (
      deterministic and platform == 'gpu')
  compiled = jax.jit(lambda x: x + 1).lower(1.0).compile(options)
  assert compiled(1.0) == 2.0


def test_an_option_that_no_compiler_has_is_an_error():
  """That is, the test above would notice."""
  with pytest.raises(jax.errors.JaxRuntimeError, match='No such'):
    jax.jit(lambda x: x + 1).lower(1.0).compile({'xla_gpu_nonsense': True})
  with mesh_lib.activate(mesh_lib.make()):
    assert not mesh_lib._knows('xla_gpu_nonsense', True)


def test_a_compiler_that_cannot_be_deterministic_says_so(monkeypatch):
  monkeypatch.setattr(mesh_lib, '_knows', lambda *_: False)
  assert mesh_lib.compiler_options(of('gpu')) == {}
  with pytest.raises(errors.UserError, match='train.deterministic=True'):
    mesh_lib.compiler_options(of('gpu'), deterministic=True)
