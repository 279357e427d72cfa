"""Semantic segmentation: sliding windows, the linear head, mean IoU."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.kernels import resample


def windows(size: int, crop: int, stride: int) -> list[int]:
  """Starts of the windows along an axis; the last is moved inside."""
  count = max(size - crop + stride - 1, 0) // stride + 1
  return [max(min(i * stride, size - crop), 0) for i in range(count)]


def slide(predict: Callable[[jax.Array], jax.Array], image: jax.Array, *,
          crop_px: int, stride_px: int) -> jax.Array:
  """[b, y, x, k] mean of the predictions of overlapping windows.

  Args:
    predict: maps [b, crop, crop, c] to [b, crop, crop, k].
    image: [b, y, x, c].
    crop_px: side of a window; smaller images are one window.
    stride_px: from window to window.
  """
  height, width = image.shape[1:3]
  total, count = None, np.zeros((height, width, 1), np.float32)
  for top in windows(height, crop_px, stride_px):
    for left in windows(width, crop_px, stride_px):
      rows = slice(top, min(top + crop_px, height))
      columns = slice(left, min(left + crop_px, width))
      part = predict(image[:, rows, columns])
      if total is None:
        total = jnp.zeros((*image.shape[:3], part.shape[-1]), jnp.float32)
      total = total.at[:, rows, columns].add(part)
      count[rows, columns] += 1
  return total / jnp.asarray(count)[None]


def infer(predict: Callable[[jax.Array], jax.Array], image: jax.Array, *,
          size: tuple[int, int], crop_px: int | None = None,
          stride_px: int | None = None, mirrored: bool = False,
          probabilities: bool = False) -> jax.Array:
  """[b, rows, columns, k] predictions on the grid of the label map.

  Args:
    predict: maps images [b, y, x, c] to [b, y, x, k] logits.
    image: [b, y, x, c].
    size: rows and columns of the result, resized linearly.
    crop_px: side of sliding windows; None predicts the whole image at once.
    stride_px: from window to window.
    mirrored: `image` was mirrored; the result is mirrored back.
    probabilities: softmax of the resized logits.

  Source: DINOv3's make_inference; results of several sizes and of the
    mirrored image are averaged by the caller.
  """
  out = predict(image) if crop_px is None else slide(
      predict, image, crop_px=crop_px, stride_px=stride_px)
  if out.shape[1:3] != size:
    out = resample.resize_linear(out, size)
  if mirrored:
    out = out[:, :, ::-1]
  return jax.nn.softmax(out, axis=-1) if probabilities else out


def linear_head(maps: list[jax.Array], *, mean, variance, scale, bias, kernel,
                kernel_bias, epsilon: float = 1e-5) -> jax.Array:
  """[b, y, x, k] logits of joined feature maps, as evaluated.

  Args:
    maps: [b, y_i, x_i, d_i]; resized to the first one's grid.
    mean: [Σ d_i] running mean of the batch norm.
    variance: [Σ d_i] running variance of the batch norm.
    scale: [Σ d_i] scale of the batch norm.
    bias: [Σ d_i] shift of the batch norm.
    kernel: [Σ d_i, k] weights of the 1 × 1 convolution.
    kernel_bias: [k] bias of the 1 × 1 convolution.
    epsilon: constant added to the variance.

  Source: DINOv3's LinearHead.
  """
  size = maps[0].shape[1:3]
  joined = jnp.concatenate(
      [resample.resize_linear(x, size) for x in maps], axis=-1)
  row = lambda x: jnp.asarray(x)[None, None, None]
  normed = (joined - row(mean)) * jax.lax.rsqrt(
      row(variance) + epsilon) * row(scale) + row(bias)
  return jnp.einsum(
      'byxd,dk->byxk', normed, kernel, precision='highest') + row(kernel_bias)
