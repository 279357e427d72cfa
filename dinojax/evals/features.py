"""Frozen features of a source, on all devices of all processes."""

from collections.abc import Callable, Sequence
import dataclasses

import jax
from jax.experimental import multihost_utils
import numpy as np

from dinojax.augment import photometric
from dinojax.data import pipeline
from dinojax.data import sources
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


def extract(embed, params: dict, source: sources.Source, *, mesh,
            indices: Sequence[int], batch_size: int, resize_px: int,
            crop_px: int, num_threads: int = 2,
            pixel_side: int = 16) -> Features:
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
    pixel_side: side of the images of the raw-pixel baseline.
  """
  batch_size = -(-batch_size // mesh.size) * mesh.size
  columns = []
  for batch in pipeline.eval_batches(
      source, batch_size=batch_size, resize_px=resize_px, crop_px=crop_px,
      indices=indices, process_index=jax.process_index(),
      process_count=jax.process_count(), num_threads=num_threads):
    cls = embed(params, processes.to_devices(batch['image'], mesh))
    small = shrink(batch['image'], pixel_side)
    local = (batch['index'], batch['label'], batch['valid'], small)
    columns.append((_everywhere(cls), *_gathered(local)))
  cls, index, label, valid, small = (
      np.concatenate(c) for c in zip(*columns, strict=True))
  order = np.argsort(index[valid], kind='stable')
  return Features(*(x[valid][order] for x in (cls, small, label)))


def shrink(images: np.ndarray, side: int) -> np.ndarray:
  """Raw pixels as features: area-averaged to `side`², flattened, centred."""
  b, y, x, c = images.shape
  side = min(side, y, x)
  rows, columns = y // side, x // side
  cut = images[:, :rows * side, :columns * side].astype(np.float32) / 255
  small = cut.reshape(b, side, rows, side, columns, c).mean((2, 4))
  return small.reshape(b, -1) - 0.5


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
