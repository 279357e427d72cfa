"""Platforms that JAX starts: without TPU on machines that have none."""

import importlib.util

import jax

from dinojax.core import plugins
from dinojax.parallel import hardware


def leave_out_tpus():
  """Keeps JAX from starting libtpu on a machine without TPUs.

  There it is a compiler for other machines, and prints errors when it is
  asked for devices. Does nothing where JAX_PLATFORMS says what is wanted.
  """
  if importlib.util.find_spec('libtpu') and not jax.config.jax_platforms:
    chosen = without_tpus(
        tpu=hardware.has_tpu(), nvidia=hardware.has_nvidia(),
        plugins=plugins.installed())
    if chosen:
      jax.config.update('jax_platforms', chosen)


def without_tpus(*, tpu: bool, nvidia: bool, plugins: list[str]) -> str:
  """The value of jax_platforms; '': what JAX finds by itself.

  Args:
    tpu: True if the machine has a TPU.
    nvidia: True if the machine has NVIDIA's driver.
    plugins: packages by which JAX reaches accelerators.
  """
  has_cuda = any(name.startswith('jax-cuda') for name in plugins)
  if tpu:
    return ''
  return 'cuda,cpu' if nvidia and has_cuda else 'cpu'
