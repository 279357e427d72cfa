"""Convolutions: their gradients, on a mesh and in loops."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.kernels import convolution
from dinojax.parallel import mesh as mesh_lib
from tests import close

CASES = {  # size of the kernel, its channels in and out, stride, pad, sides
    'same': (3, 4, 6, 1, 1, (8, 9)), 'half': (3, 4, 6, 2, 1, (8, 9)),
    'half-odd': (3, 4, 6, 2, 1, (9, 7)), 'one': (1, 4, 6, 1, 0, (5, 4)),
    'patches': (4, 3, 6, 4, 0, (13, 8)), 'channels': (7, 1, 8, 1, 3, (6, 5)),
    'valid': (3, 2, 2, 1, 0, (5, 6))}


def drawn(case):
  size, channels, outputs, stride, pad, sides = CASES[case]
  rng = np.random.default_rng(0)
  width = outputs if channels == 1 else channels
  normal = lambda *shape: np.float32(rng.normal(size=shape))
  return (normal(size, size, channels, outputs), normal(4, *sides, width),
          stride, pad)


def gradients(function, kernel, x, stride, pad):
  loss = lambda kernel, x: jnp.sum(jnp.sin(function(kernel, x, stride, pad)))
  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(kernel, x)


@pytest.mark.parametrize('case', CASES)
def test_gradients_are_those_of_jax(case):
  values = drawn(case)
  plain = lambda kernel, x, stride, pad: convolution._plain(
      kernel, x, stride, pad, jax.lax.Precision.HIGHEST)
  close.close(gradients(lambda *args: convolution.convolve(
      *args, jax.lax.Precision.HIGHEST), *values),
              gradients(plain, *values), of_largest=1e-6)


@pytest.mark.parametrize('case', ['same', 'half', 'channels'])
def test_a_mesh_changes_nothing(case):
  kernel, x, stride, pad = drawn(case)
  mesh = mesh_lib.make(2, 2, jax.devices()[:4])
  with mesh_lib.activate(mesh):
    got = gradients(
        convolution.convolve, jax.device_put(kernel, jax.NamedSharding(
            mesh, jax.P())), jax.device_put(x, jax.NamedSharding(
                mesh, mesh_lib.ROWS)), stride, pad)
  close.close(jax.device_get(got), jax.device_get(gradients(
      convolution.convolve, kernel, x, stride, pad)), of_largest=1e-6)


@pytest.mark.parametrize('size, stride, platform, sums', [
    (3, 1, 'tpu', True), (7, 1, 'tpu', False), (3, 2, 'tpu', False),
    (3, 1, 'cuda', False), (7, 1, 'cpu', True)])
def test_channels_are_sums_where_these_are_quicker(
    size, stride, platform, sums):
  gradient = jax.grad(lambda kernel, x: jnp.sum(convolution.convolve(
      kernel, x, stride, size // 2) ** 2), argnums=(0, 1))
  text = jax.jit(gradient).trace(
      np.ones((size, size, 1, 8), np.float32),
      np.ones((2, 8, 8, 8), np.float32)).lower(
          lowering_platforms=(platform,)).as_text()
  assert ('stablehlo.convolution' not in text) == sums


def seconds(function, *args):
  jax.block_until_ready(function(*args))
  took = []
  for _ in range(3):
    start = time.perf_counter()
    jax.block_until_ready(function(*args))
    took.append(time.perf_counter() - start)
  return min(took)


@pytest.mark.parametrize('channels', [32, 1])
def test_a_loop_costs_what_its_turns_do(channels):
  """The compiler's own gradient takes 40 to 100 times as long in a loop."""
  rng = np.random.default_rng(0)
  kernels = np.float32(rng.normal(size=(2, 5, 5, channels, 32)))
  x = np.float32(rng.normal(size=(2, 24, 24, 32)))
  gradient = jax.grad(lambda kernel, x: jnp.sum(
      convolution.convolve(kernel, x, 1, 2) ** 2), argnums=(0, 1))
  once = seconds(jax.jit(gradient), kernels[0], x)
  twice = seconds(jax.jit(lambda kernels, x: jax.lax.map(
      lambda kernel: gradient(kernel, x), kernels)), kernels, x)
  assert twice < 12 * once, (once, twice)
