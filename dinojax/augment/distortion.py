"""Colours of dense training: segmentation's distortion, depth's recolouring.

Images are [b, y, x, c] levels 0..255, float32. Draws are made for each row from
(key, row), so an image looks the same on any mesh.
"""

import jax
import jax.numpy as jnp

from dinojax.augment import color

HUE = 0.5  # DINOv3's; mmseg's is 0.1
BRIGHTNESS = (0.75, 1.25)
_SHIFT = 32.0  # levels
_FACTOR = (0.5, 1.5)
_GAMMA = _CHANNEL = (0.9, 1.1)


def distort(images: jax.Array, key: jax.Array, hue: float = HUE) -> jax.Array:
  """Brightness, contrast, saturation and hue, each at even odds.

  Args:
    images: see the module.
    key: random key of the step.
    hue: greatest shift, in turns of the colour circle.

  Source: PhotoMetricDistortion as DINOv3 and mmseg have it: contrast comes
    before or after saturation and hue, by a coin; brightness and contrast
    clip to 0..255 and cut to whole levels.
  """
  u = uniforms(key, images.shape[0], 9)
  each = lambda x: x[:, None, None, None]
  on = [u[:, i] < 0.5 for i in range(5)]
  between = lambda i, low, high: low + (high - low) * u[:, i]
  whole = lambda x: jnp.floor(jnp.clip(x, 0.0, 255.0))
  shift = jnp.where(on[0], between(5, -_SHIFT, _SHIFT), 0.0)
  x = whole(images + each(shift))
  factor = jnp.where(on[1], between(6, *_FACTOR), 1.0)
  x = whole(x * each(jnp.where(on[4], factor, 1.0)))
  saturation = jnp.where(on[2], between(7, *_FACTOR), 1.0)
  x = color.blend(color.grey(x), x, each(saturation))
  turn = between(8, -hue, hue)
  x = jnp.where(each(on[3]), color.shift_hue(x, turn[:, None, None]), x)
  return whole(x * each(jnp.where(on[4], 1.0, factor)))


def recolor(images: jax.Array, key: jax.Array,
            brightness: tuple[float, float] = BRIGHTNESS) -> jax.Array:
  """Gamma, brightness and a factor of each channel, all at even odds.

  Args:
    images: see the module.
    key: random key of the step.
    brightness: range of the factor.

  Source: colour augmentation of depth in DINOv2 and DINOv3. The power acts on
    0..255, so that 1.1 brightens by three quarters.
  """
  u = uniforms(key, images.shape[0], 6)
  each = lambda x: x[:, None, None, None]
  between = lambda x, low, high: low + (high - low) * x
  gamma = between(u[:, 1], *_GAMMA)
  factor = between(u[:, 2], *brightness)
  channels = between(u[:, 3:6], *_CHANNEL)
  x = images ** each(gamma) * each(factor) * channels[:, None, None]
  return jnp.where(each(u[:, 0] < 0.5), jnp.clip(x, 0.0, 255.0), images)


def uniforms(key: jax.Array, rows: int, count: int) -> jax.Array:
  """[rows, count] numbers from 0 to 1; a row's depend on its place alone."""
  return jax.vmap(lambda row: jax.random.uniform(
      jax.random.fold_in(key, row), (count,)))(jnp.arange(rows))
