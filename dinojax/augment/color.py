"""Pillow's colour operations on float arrays that hold whole 0..255 values.

Each operation rounds as Pillow's 8-bit one does. All but hue equal it; hue is
off by up to six levels in a few pixels in a thousand, whose quotient lies on
the edge of two levels.
"""

import jax
import jax.numpy as jnp


def grey(x: jax.Array) -> jax.Array:
  """ITU-R 601 luma of [..., c], rounded; [..., 1]."""
  luma = (19595 * x[..., :1] + 38470 * x[..., 1:2] + 7471 * x[..., 2:])
  return jnp.floor((luma + 32768) / 65536)


def blend(degenerate: jax.Array, x: jax.Array, factor: jax.Array) -> jax.Array:
  """degenerate + factor · (x − degenerate), cut to 0..255 and truncated."""
  return jnp.floor(jnp.clip(
      degenerate + factor * (x - degenerate), 0.0, 255.0))


def mean_grey(x: jax.Array) -> jax.Array:
  """Rounded mean luma of each image, [..., 1, 1, 1]."""
  return jnp.floor(grey(x).mean((-3, -2, -1), keepdims=True) + 0.5)


def shift_hue(x: jax.Array, shift: jax.Array) -> jax.Array:
  """Turns the hue by `shift` of a full turn, through 8-bit HSV.

  Args:
    x: [..., c] whole values 0..255.
    shift: broadcastable, in [-0.5, 0.5].
  """
  red, green, blue = x[..., 0], x[..., 1], x[..., 2]
  top = jnp.maximum(jnp.maximum(red, green), blue)
  low = jnp.minimum(jnp.minimum(red, green), blue)
  spread = jnp.where(top == low, 1.0, top - low)
  r, g, b = ((top - channel) / spread for channel in (red, green, blue))
  sector = jnp.where(
      red == top, b - g, jnp.where(green == top, 2 + r - b, 4 + g - r))
  hue = jnp.floor(jnp.mod(sector / 6 + 1, 1.0) * 255)
  hue = jnp.where(top == low, 0.0, hue)
  saturation = jnp.floor(
      jnp.where(top == low, 0.0, 255 * spread / jnp.maximum(top, 1.0)))
  # torchvision adds the shift as an unsigned byte, truncated towards zero.
  hue = jnp.mod(hue + jnp.trunc(shift * 255), 256.0)
  return _from_hsv(hue, saturation, top)


def _from_hsv(hue, saturation, value):
  """8-bit HSV to RGB as Pillow computes it."""
  turn = hue * 6 / 255
  sector = jnp.floor(turn)
  part = turn - sector
  fraction = saturation / 255
  p = jnp.round(value * (1 - fraction))
  q = jnp.round(value * (1 - fraction * part))
  t = jnp.round(value * (1 - fraction * (1 - part)))
  sector = jnp.mod(sector, 6)
  def pick(*by_sector):
    out = by_sector[5]
    for i in range(4, -1, -1):
      out = jnp.where(sector == i, by_sector[i], out)
    return out
  rgb = jnp.stack([pick(value, q, p, p, t, value),
                   pick(t, value, value, q, p, p),
                   pick(p, p, t, value, value, q)], axis=-1)
  flat = (saturation == 0)[..., None]
  return jnp.where(flat, value[..., None], rgb)


def blur(x: jax.Array, sigma: jax.Array, taps: int) -> jax.Array:
  """Separable Gaussian blur with reflected borders, rounded.

  Args:
    x: [b, v, y, x, c] values 0..255.
    sigma: [b, v] pixels.
    taps: odd width of the kernel.

  Source: torchvision's GaussianBlur.
  """
  half = taps // 2
  offsets = jnp.arange(-half, half + 1, dtype=jnp.float32)
  kernel = jnp.exp(
      -0.5 * (offsets[None, None] / sigma[..., None]) ** 2)
  kernel = kernel / kernel.sum(-1, keepdims=True)  # [b, v, taps]
  for axis in (2, 3):
    size = x.shape[axis]
    padding = [(0, 0)] * x.ndim
    padding[axis] = (half, half)
    wide = jnp.pad(x, padding, mode='reflect')
    x = sum(
        jax.lax.slice_in_dim(wide, i, i + size, axis=axis)
        * kernel[..., i, None, None, None] for i in range(taps))
  return jnp.round(x)
