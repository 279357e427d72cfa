"""Each colour operation against Pillow's on photographs."""

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from dinojax.augment import color
from dinojax.data import photos
from tests.augment import pillow_chain

_NAMES = ('astronaut', 'coffee', 'ihc', 'retina', 'camera', 'flower')


@pytest.fixture(scope='module')
def crops():
  """uint8 [b, v, y, x, c]: six photographs, two crops of 96 pixels each."""
  return np.stack([
      np.stack([photo[top:top + 96, 130:226] for top in (60, 200)])
      for photo in map(photos.photograph, _NAMES)])


def with_pillow(operation, crops, values):
  flat = crops.reshape(-1, *crops.shape[2:])
  done = [np.asarray(operation(Image.fromarray(crop), float(value)))
          for crop, value in zip(flat, values.ravel(), strict=True)]
  return np.stack(done).reshape(crops.shape).astype(int)


def spread(low, high):
  return np.linspace(low, high, 12, dtype=np.float32).reshape(6, 2)


def over_images(values):
  return jnp.asarray(values)[..., None, None, None]


def blend_with(degenerate):
  return jax.jit(lambda x, factor: color.blend(
      degenerate(x), x, over_images(factor)))


BLENDS = {
    'brightness': (pillow_chain.brightness, jnp.zeros_like),
    'contrast': (pillow_chain.contrast, color.mean_grey),
    'saturation': (pillow_chain.saturation, color.grey)}


@pytest.mark.parametrize('name', BLENDS)
def test_blend_equals_pillow(name, crops):
  operation, degenerate = BLENDS[name]
  factors = spread(0.55, 1.45)
  want = with_pillow(operation, crops, factors)
  got = blend_with(degenerate)(crops.astype(np.float32), factors)
  off = np.abs(np.asarray(got) - want)
  # Truncation turns a last-bit difference of the product into one level.
  assert off.max() <= 1
  assert (off > 0).mean() < 1e-3


def test_blend_with_factor_one_is_the_image(crops):
  x = crops.astype(np.float32)
  for _, degenerate in BLENDS.values():
    got = blend_with(degenerate)(x, np.ones((6, 2), np.float32))
    np.testing.assert_array_equal(got, x)


def test_grey_equals_pillow_exactly(crops):
  want = with_pillow(lambda image, _: pillow_chain.grey(image), crops,
                     spread(0, 1))
  got = jax.jit(color.grey)(np.float32(crops))
  np.testing.assert_array_equal(np.broadcast_to(got, want.shape), want)


def test_grey_of_white_stays_white():
  assert color.grey(jnp.full((1, 3), 255.0)).item() == 255


def test_hue_equals_pillow(crops):
  shifts = spread(-0.1, 0.1)
  want = with_pillow(pillow_chain.hue, crops, shifts)
  got = jax.jit(color.shift_hue)(
      crops.astype(np.float32), jnp.asarray(shifts)[..., None, None])
  off = np.abs(np.asarray(got) - want).max(-1)
  # A hue that falls on a whole 255th may be cut to either side; one step of
  # it moves a channel by at most 6 levels. No other pixel may differ.
  assert off.max() <= 6
  assert (off > 0).mean() < 5e-3


def test_hue_of_primary_colours():
  x = np.float32([[255, 0, 0], [0, 255, 0], [0, 0, 255], [77, 77, 77]])
  turned = jax.jit(color.shift_hue)(x, np.float32(1 / 3))
  np.testing.assert_array_equal(
      turned, [[0, 255, 0], [0, 0, 255], [255, 0, 0], [77, 77, 77]])


@pytest.mark.parametrize('low,high', [(0.1, 0.4), (0.4, 2.0)])
def test_blur_equals_a_two_dimensional_convolution(low, high, crops):
  sigma = spread(low, high)
  want = with_pillow(
      lambda image, s: pillow_chain.blur(image, s, 9), crops, sigma)
  got = jax.jit(color.blur, static_argnums=2)(
      crops.astype(np.float32), sigma, 9)
  off = np.abs(np.asarray(got) - want)
  assert off.max() <= 1  # values within float rounding of a half
  assert (off > 0).mean() < 1e-3


def test_blur_keeps_a_flat_image_and_the_width_counts():
  blur = jax.jit(color.blur, static_argnums=2)
  flat = np.full((1, 1, 16, 16, 3), 100, np.float32)
  np.testing.assert_array_equal(
      blur(flat, np.full((1, 1), 2, np.float32), 9), flat)
  point = np.zeros((1, 2, 17, 17, 3), np.float32)
  point[:, :, 8, 8] = 255
  soft = blur(point, np.float32([[0.5, 1.5]]), 9)
  assert soft[0, 0, 8, 8, 0] > 3 * soft[0, 1, 8, 8, 0]
