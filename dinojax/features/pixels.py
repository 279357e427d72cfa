"""Raw pixels as features, and features of images at several sizes."""

from collections.abc import Callable, Sequence

import einops
import jax
import numpy as np

from dinojax.kernels import resample


def flatten(images: np.ndarray, mean: Sequence[float], std: Sequence[float],
            side: int = 32) -> np.ndarray:
  """Raw pixels as features: what the network sees, flattened.

  Args:
    images: [b, y, x, c] uint8; b may be 0, where a process has none.
    mean: mean of the normalisation; centred pixels are the stronger baseline.
    std: deviation of the normalisation.
    side: larger images are averaged down to about this side, in pixels.

  Returns:
    [b, e] float32.
  """
  y, x = images.shape[1:3]
  rows, columns = max(y // side, 1), max(x // side, 1)
  cut = images[:, :y // rows * rows, :x // columns * columns]
  squares = einops.rearrange(
      cut, 'b (y i) (x j) c -> b y i x j c', i=rows, j=columns)
  small = squares.mean((2, 4), dtype=np.float32) / 255
  normal = (small - np.float32(mean)) / np.float32(std)
  return einops.rearrange(normal, 'b y x c -> b (y x c)')


def multi_scale(model: Callable[[jax.Array], jax.Array], images: jax.Array,
                scales: Sequence[float] = (1.0, 0.5 ** 0.5, 0.5)) -> jax.Array:
  """[b, d] mean of the features of images at several sizes.

  Args:
    model: maps [b, y, x, c] to [b, d], whatever the size.
    images: [b, y, x, c].
    scales: factors of the sides, rounded down to whole pixels.

  Source: multi-scale evaluation of DINO and DINOv2; linear resize by the
    scale itself, not by the ratio of the rounded sides.
  """
  total = 0.0
  for scale in scales:
    size = tuple(int(n * scale) for n in images.shape[1:3])
    same = size == images.shape[1:3]
    total += model(images if same else resample.resize_linear(
        images, size, (scale, scale)))
  return total / len(scales)
