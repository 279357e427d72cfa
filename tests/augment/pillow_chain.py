"""The references' host augmentation: Pillow, one operation at a time."""

import numpy as np
from PIL import Image
from PIL import ImageEnhance
from PIL import ImageOps


def brightness(image, factor):
  return ImageEnhance.Brightness(image).enhance(factor)


def contrast(image, factor):
  return ImageEnhance.Contrast(image).enhance(factor)


def saturation(image, factor):
  return ImageEnhance.Color(image).enhance(factor)


def hue(image, shift):
  """Through Pillow's 8-bit HSV; the byte wraps, as torchvision's does."""
  h, s, v = image.convert('HSV').split()
  turned = (np.asarray(h).astype(int) + int(shift * 255)) % 256
  h = Image.fromarray(turned.astype(np.uint8))
  return Image.merge('HSV', (h, s, v)).convert('RGB')


def grey(image):
  return image.convert('L').convert('RGB')


def blur(image, sigma, taps):
  """One two-dimensional kernel in float64, reflected border, rounded."""
  half = taps // 2
  line = np.exp(-0.5 * (np.arange(-half, half + 1) / sigma) ** 2)
  kernel = np.outer(line, line) / line.sum() ** 2
  x = np.pad(np.asarray(image, float), ((half, half), (half, half), (0, 0)),
             mode='reflect')
  windows = np.lib.stride_tricks.sliding_window_view(x, (taps, taps), (0, 1))
  return Image.fromarray(np.rint(
      np.einsum('yxcij,ij->yxc', windows, kernel)).astype(np.uint8))


def solarize(image, threshold):
  return ImageOps.solarize(image, threshold)


JITTER = (brightness, contrast, saturation, hue)


def apply(image, draws, spec):
  """One crop; draws as photometric.draw gives them, for this crop."""
  values = [*map(float, draws['factors']), float(draws['hue'])]
  # Without jitter every factor is 1 and the hue 0: then nothing is done.
  for operation in draws['order'] if draws['hue'] != 0 else ():
    image = JITTER[operation](image, values[operation])
  if draws['grey']:
    image = grey(image)
  if draws['blur']:
    image = blur(image, float(draws['sigma']), spec.blur_taps)
  if draws['solarize']:
    image = solarize(image, spec.solarize_threshold)
  return image
