"""Convolutions of maps that are quick on CPUs, in loops too, and on TPUs.

XLA's CPU compiler has a fast convolution for maps whose channels come last,
and none for the gradient of a kernel in a loop (`scan`, `map`), where it cannot
turn the axes: forty to a hundred times slower. On CPUs the gradient is for that
reason a product for each place of the kernel, and convolutions of each channel
by itself, for which there is nothing fast, are sums over these places. TPUs
convolve such channels in their matrix unit, which multiplies nearly nothing but
zeros: there kernels of few places are sums as well. All else is the compiler's.
"""

from collections.abc import Callable, Sequence
import functools

import jax
import jax.numpy as jnp

Array = jax.Array
_AXES = ('NHWC', 'HWIO', 'NHWC')
_FEW = 3  # rows of a kernel whose sums are quicker on TPUs; five are not


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def convolve(kernel: Array, x: Array, stride: int = 1, pad: int = 0,
             precision: jax.lax.PrecisionLike = None) -> Array:
  """[b, y, x, o] of maps [b, y, x, c] and a kernel.

  Args:
    kernel: [k, k, c, o], or [k, k, 1, c] of each channel by itself.
    x: the maps.
    stride: steps between outputs, along both axes.
    pad: zeros around the maps.
    precision: precision of the products, see jax.lax.Precision.
  """
  return _output(kernel, x, stride, pad, precision)


def _plain(kernel: Array, x: Array, stride: int, pad: int,
           precision: jax.lax.PrecisionLike) -> Array:
  return jax.lax.conv_general_dilated(
      x, kernel, (stride, stride), ((pad, pad),) * 2, dimension_numbers=_AXES,
      feature_group_count=x.shape[-1] // kernel.shape[2], precision=precision)


def _output(kernel: Array, x: Array, stride: int, pad: int,
            precision: jax.lax.PrecisionLike) -> Array:
  plain = lambda kernel, x: _plain(kernel, x, stride, pad, precision)
  if kernel.shape[2] == x.shape[-1]:
    return plain(kernel, x)
  summed = lambda kernel, x: _summed(kernel, x, stride, pad)
  return jax.lax.platform_dependent(
      kernel, x, default=plain, cpu=summed, **_on_tpu(kernel, stride, summed))


def _on_tpu(kernel: Array, stride: int,
            summed: Callable) -> dict[str, Callable]:
  """The branch of TPUs where sums are the quicker ones of each channel."""
  return {'tpu': summed} if len(kernel) <= _FEW and stride == 1 else {}


def _summed(kernel: Array, x: Array, stride: int, pad: int) -> Array:
  """A convolution of each channel by itself, as sums over the kernel."""
  size, out = kernel.shape[0], 0.0
  sides = tuple((n + 2 * pad - size) // stride + 1 for n in x.shape[1:3])
  for i, j, seen in _shifted(x, size, sides, stride, pad):
    out += seen.astype(jnp.float32) * kernel[i, j][None, None].astype(
        jnp.float32)
  return out.astype(x.dtype)


def _forward(kernel: Array, x: Array, stride: int, pad: int,
             precision: jax.lax.PrecisionLike) -> tuple:
  return _output(kernel, x, stride, pad, precision), (kernel, x)


def _backward(stride: int, pad: int, precision: jax.lax.PrecisionLike,
              kept: tuple[Array, Array], change: Array) -> tuple[Array, Array]:
  grouped = kept[0].shape[2] < kept[1].shape[-1]

  def by_products(kernel, x, change):
    of_kernel = _of_channels if grouped else _of_kernel
    return (of_kernel(kernel, x, change, stride, pad, precision),
            _of_map(kernel, x, change, stride, pad, precision))

  def plain(kernel, x, change):
    return jax.vjp(lambda kernel, x: _plain(
        kernel, x, stride, pad, precision), kernel, x)[1](change)

  if grouped and any(jax.typeof(change).sharding.spec):
    # JAX's gradient of a kernel of each channel does not know rows of a mesh.
    return by_products(*kept, change)
  return jax.lax.platform_dependent(
      *kept, change, default=plain, cpu=by_products,
      **(_on_tpu(kept[0], stride, by_products) if grouped else {}))


def _shifted(x: Array, size: int, sides: Sequence[int], stride: int,
             pad: int):
  """Yields row, column, and what that place of a kernel sees of a map."""
  padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  rows, columns = sides
  for i in range(size):
    for j in range(size):
      yield i, j, padded[:, i:i + stride * (rows - 1) + 1:stride,
                         j:j + stride * (columns - 1) + 1:stride]


def _of_kernel(kernel: Array, x: Array, change: Array, stride: int, pad: int,
               precision: jax.lax.PrecisionLike) -> Array:
  def products(kernel):
    # Their gradients know how rows lie on a mesh.
    return sum(jnp.einsum('byxc,co->byxo', seen, kernel[i, j],
                          precision=precision)
               for i, j, seen in _shifted(
                   x, kernel.shape[0], change.shape[1:3], stride, pad))
  return jax.vjp(products, kernel)[1](change)[0]


def _of_channels(kernel: Array, x: Array, change: Array, stride: int,
                 pad: int, precision: jax.lax.PrecisionLike) -> Array:
  del precision
  size = kernel.shape[0]
  change = change.astype(jnp.float32)
  sums = [jnp.sum(seen.astype(jnp.float32) * change, axis=(0, 1, 2))
          for _, _, seen in _shifted(
              x, size, change.shape[1:3], stride, pad)]
  return jnp.stack(sums).reshape(kernel.shape).astype(kernel.dtype)


def _of_map(kernel: Array, x: Array, change: Array, stride: int, pad: int,
            precision: jax.lax.PrecisionLike) -> Array:
  size, around = kernel.shape[0], kernel.shape[0] - 1 - pad
  ends = [(around, around + (length + 2 * pad - size) % stride)
          for length in x.shape[1:3]]
  turned = kernel[::-1, ::-1]
  grouped = kernel.shape[2] < x.shape[-1]
  if grouped and stride == 1:
    return _output(turned, change, 1, around, precision)
  return jax.lax.conv_general_dilated(
      change, turned if grouped else turned.swapaxes(2, 3), (1, 1), ends,
      lhs_dilation=(stride, stride), dimension_numbers=_AXES,
      feature_group_count=x.shape[-1] if grouped else 1, precision=precision)


convolve.defvjp(_forward, _backward)
