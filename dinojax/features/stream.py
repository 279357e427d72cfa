"""Frozen features of a source, on all devices of all processes."""

from collections.abc import Callable, Sequence
import dataclasses

import jax
from jax.experimental import multihost_utils
import numpy as np

from dinojax.augment import photometric
from dinojax.data import pipeline
from dinojax.data import record as record_lib
from dinojax.kernels import resample
from dinojax.models import network
from dinojax.parallel import processes


@dataclasses.dataclass(frozen=True)
class Features:
  """Of the readable images, in order.

  Attributes:
    cls: [r, d] float32.
    pixels: [r, e] float32, small images flattened, for the raw baseline.
    labels: [r].
  """

  cls: np.ndarray
  pixels: np.ndarray
  labels: np.ndarray


def embedder(model: network.Functional, mean, std,
             dtype) -> Callable[[dict, jax.Array], jax.Array]:
  """A jitted (parameters, [r, y, x, c] uint8) to CLS features [r, d]."""
  def call(net, rows):
    images = photometric.normalize(rows['image'], mean, std, dtype)
    backbone = getattr(net, 'backbone', net)
    return backbone({'global': images})['global']['cls'].astype('float32')

  return jax.jit(lambda params, images: model.apply(
      params, {'image': images}, call))


def extract(embed, params: dict, source: record_lib.Source, *, mesh,
            indices: Sequence[int], batch_size: int, resize_px: int,
            crop_px: int, num_threads: int = 2,
            mean, std, pixel_side: int = 32,
            **reading) -> Features:
  """Features of the given records.

  Args:
    embed: see `embedder`.
    params: of the model.
    source: records.
    mesh: the devices; batch_size is rounded up to a multiple of them.
    indices: which records.
    batch_size: images at a time, over all devices.
    resize_px: short side before the centre crop.
    crop_px: side of the crop.
    num_threads: decoding ahead.
    mean: of the normalisation, for the raw-pixel baseline.
    std: of the normalisation.
    pixel_side: largest side of that baseline's images.
    **reading: max_pixels and value_range, see data.images.
  """
  batch_size = -(-batch_size // mesh.size) * mesh.size
  columns = []
  for batch in pipeline.eval_batches(
      source, batch_size=batch_size, resize_px=resize_px, crop_px=crop_px,
      indices=indices, process_index=jax.process_index(),
      process_count=jax.process_count(), num_threads=num_threads,
      **reading):
    cls = embed(params, processes.to_devices(batch['image'], mesh))
    small = pixel_features(batch['image'], mean, std, pixel_side)
    local = (batch['index'], batch['label'], batch['valid'], small)
    columns.append((_everywhere(cls), *_gathered(local)))
  cls, index, label, valid, small = (
      np.concatenate(c) for c in zip(*columns, strict=True))
  order = np.argsort(index[valid], kind='stable')
  return Features(*(x[valid][order] for x in (cls, small, label)))


def pixel_features(images: np.ndarray, mean, std, side: int) -> np.ndarray:
  """Raw pixels as features: what the network sees, flattened.

  Args:
    images: [b, y, x, c] uint8.
    mean: of the normalisation; centred pixels make the stronger baseline.
    std: of the normalisation.
    side: larger images are averaged down to about this side.

  Returns:
    [b, e] float32.
  """
  b, y, x, c = images.shape
  rows, columns = max(y // side, 1), max(x // side, 1)
  cut = images[:, :y // rows * rows, :x // columns * columns]
  small = cut.reshape(b, y // rows, rows, x // columns, columns, c).mean(
      (2, 4), dtype=np.float32) / 255
  return ((small - np.float32(mean)) / np.float32(std)).reshape(b, -1)


def multi_scale(model: Callable[[jax.Array], jax.Array], images: jax.Array,
                scales: Sequence[float] = (1.0, 0.5 ** 0.5, 0.5)) -> jax.Array:
  """[b, d] mean of the features of images at several sizes.

  Args:
    model: maps [b, y, x, c] to [b, d], whatever the size.
    images: [b, y, x, c].
    scales: of the sides, rounded down to whole pixels.

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


def _everywhere(x: jax.Array) -> np.ndarray:
  if jax.process_count() == 1:
    return np.asarray(jax.device_get(x))
  return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def _gathered(local: tuple) -> tuple:
  if jax.process_count() == 1:
    return local
  return tuple(
      np.asarray(multihost_utils.process_allgather(x, tiled=True))
      for x in local)
