"""Heads for every pixel: what segmentation and depth share.

A linear head is a batch norm, or none, and a linear layer on the patches of one
or several blocks. An image whose sides are no whole patches is padded around
its centre, and the padding is cut off what is predicted.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.augment import photometric
from dinojax.core import tree
from dinojax.features import spec
from dinojax.kernels import resample
from dinojax.models.dense import batch_norm
from dinojax.probes import task as task_lib

CHOICE = 'patches'
_WEIGHT_STD = 0.01


@dataclasses.dataclass(frozen=True)
class Pixels:
  """Pixels of a batch: how they are normalised, and what a patch covers.

  Attributes:
    mean: mean of the normalisation, in parts of 1.
    std: deviation of the normalisation.
    patch_px: sides of images are padded to multiples of it.
    keeps_padding: True: predictions of the padded image are resized to the
      size without padding, as the references do, which shifts them.
  """

  mean: tuple[float, ...] = photometric.IMAGENET_MEAN
  std: tuple[float, ...] = photometric.IMAGENET_STD
  patch_px: int = 1
  keeps_padding: bool = False

  def levels(self, images: jax.Array) -> jax.Array:
    """Whole levels 0..255 of normalised images."""
    lead = (None,) * (images.ndim - 1)
    std, mean = (jnp.asarray(x, jnp.float32)[lead]
                 for x in (self.std, self.mean))
    return jnp.clip(jnp.round((images * std + mean) * 255), 0, 255)

  def fit(self, images: jax.Array) -> jax.Array:
    """Normalised images, padded to whole patches."""
    return center_padded(images, self.patch_px)

  def matrix(self, num_tokens: int, num_px: int,
             out_px: int | None = None) -> np.ndarray:
    """[out_px, num_tokens] from a grid of patches to pixels, linearly.

    Args:
      num_tokens: patches along an axis.
      num_px: pixels of the image along it, without padding.
      out_px: pixels of the result; None: as the image.
    """
    out_px = out_px or num_px
    before, after = margins(num_px, self.patch_px)
    if self.keeps_padding or not before + after:
      return resample.linear_matrix(num_tokens, out_px)
    whole = before + num_px + after
    return resample.linear_matrix(
        num_tokens, out_px, out_px / num_px * whole / num_tokens,
        before * num_tokens / whole)

  def resize(self, grid: jax.Array, size: tuple[int, int]) -> jax.Array:
    """[b, y, x, k] values of patches at the pixels of the image."""
    return resample.by_matrices(grid, *(
        self.matrix(n, size[i]) for i, n in enumerate(grid.shape[1:3])))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dense:
  """Heads that see maps of blocks.

  Batches have weight [b], 0 for rows that are padding, and from images extent
  [b, 2], rows and columns that are image, beyond which lies nothing.

  Attributes:
    layers: how many of the last blocks, or which.
    place: 'normed', or 'raw': without the final norm.
    pixels: see Pixels.
  """

  layers: int | tuple[int, ...] = 1
  place: str = 'normed'
  pixels: Pixels = Pixels()

  @property
  def joins_cls(self) -> bool:
    """True: heads see CLS as well."""
    return False

  @functools.cached_property
  def choices(self) -> Mapping[str, spec.FeatureSpec]:
    """Maps of the blocks, with CLS where it is joined."""
    outputs = ('map', 'cls') if self.joins_cls else ('map',)
    return {CHOICE: spec.FeatureSpec(outputs, self.layers, self.place)}

  def draw(self, key: jax.Array, step: jax.Array,
           batch: tree.Tree) -> tree.Tree:
    """Nothing is random."""
    del key, step, batch
    return {}

  def taken(self, backbone: tree.Tree) -> tree.Tree:
    """Nothing is of the backbone."""
    del backbone
    return {}

  def beside(self, config: Any) -> 'Dense':
    """The task as it runs on a backbone: the same."""
    del config
    return self

  def settle(self, params: tree.Tree) -> tree.Tree:
    """Parameters without limits."""
    return params

  def placed(self, images: jax.Array, batch: tree.Tree) -> jax.Array:
    """Normalised images of a batch, 0 outside of them, in whole patches."""
    if 'extent' in batch:
      inside = [jnp.arange(n)[None] < batch['extent'][:, i, None]
                for i, n in enumerate(images.shape[1:3])]
      images = jnp.where((inside[0][:, :, None] & inside[1][:, None])[
          ..., None], images, 0.0)
    return self.pixels.fit(images)

  def normalized(self, levels: jax.Array) -> jax.Array:
    """Normalised images of levels 0..255."""
    return photometric.normalize(levels, self.pixels.mean, self.pixels.std)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear(Dense):
  """A linear head, see the module.

  Attributes:
    num_outputs: values of a pixel, k.
    width: width of all layers together.
    cls: True joins the CLS token to every patch.
    norm: True puts a batch norm before the linear layer.
    dropout: probability that a channel of an image is dropped in training.
    momentum: part of a batch in the running statistics.
    upsample: factor of the grid on which the linear layer acts.
    small: True: weights begin small and biases at 0; else as PyTorch's.
  """

  num_outputs: int
  width: int
  cls: bool = False
  norm: bool = True
  dropout: float = 0.0
  momentum: float = batch_norm.MOMENTUM
  upsample: int = 1
  small: bool = True

  @property
  def joins_cls(self) -> bool:
    """True: CLS is joined to every patch."""
    return self.cls

  def init(self, key: jax.Array, widths: Sequence[int],
           choice: str) -> task_lib.Head:
    """Random weights, and a norm that changes nothing."""
    del choice
    width = sum(widths) * (1 + self.cls)
    shape = (width, self.num_outputs)
    if self.small:
      kernel = _WEIGHT_STD * jax.random.normal(key, shape)
      bias = jnp.zeros(self.num_outputs)
    else:
      reach = 1 / math.sqrt(width)
      kernel, bias = (
          jax.random.uniform(k, s, minval=-reach, maxval=reach)
          for k, s in zip(jax.random.split(key), (shape, shape[1:]),
                          strict=True))
    params = {'kernel': kernel, 'bias': bias}
    if not self.norm:
      return {'params': params, 'stats': {}}
    norm, stats = batch_norm.init(width)
    return {'params': params | norm, 'stats': stats}

  def draw(self, key: jax.Array, step: jax.Array,
           batch: tree.Tree) -> tree.Tree:
    """Factors [b, d] of channels: 0, or what makes up for those."""
    del step
    if not self.dropout:
      return {}
    shape = (batch['weight'].shape[0], self.width)
    keep = jax.random.bernoulli(key, 1 - self.dropout, shape)
    return {'channels': keep / (1 - self.dropout)}

  def outputs(self, head: task_lib.Head, features: task_lib.Features,
              batch: tree.Tree, draws: tree.Tree | None
              ) -> tuple[jax.Array, tree.Tree]:
    """[b, y, x, k] on the grid of the first layer, `upsample` times as fine.

    In training the batch's own statistics normalise, and enter the running
    ones, with which everything else is normalised.
    """
    maps = [_with_cls(layer) if self.cls else layer['map']
            for layer in features]
    params, stats = head['params'], head['stats']
    row = lambda x: x[None, None, None]
    if not self.norm:
      return self._summed(params, maps) + row(params['bias']), stats
    joined = join(maps)
    if draws is not None and 'channels' in draws:
      joined = joined * draws['channels'][:, None, None]
    normed, stats = batch_norm.apply(
        params, stats, joined, None if draws is None else batch['weight'],
        momentum=self.momentum)
    return _product(normed, params['kernel']) + row(params['bias']), stats

  def _summed(self, params: tree.Tree,
              maps: Sequence[jax.Array]) -> jax.Array:
    """The linear layer without bias, layer by layer, before it is resized.

    Resizing and a linear layer may change places, and it has fewer outputs
    than inputs.
    """
    size = tuple(self.upsample * n for n in maps[0].shape[1:3])
    total, start = 0.0, 0
    for x in maps:
      out = _product(x.astype(jnp.float32),
                     params['kernel'][start:start + x.shape[-1]])
      start += x.shape[-1]
      total += out if out.shape[1:3] == size else resample.resize_linear(
          out, size)
    return total


def join(maps: Sequence[jax.Array]) -> jax.Array:
  """[b, y, x, Σ d] maps of several layers on the grid of the first, float32."""
  size = maps[0].shape[1:3]
  return jnp.concatenate([
      (x if x.shape[1:3] == size else resample.resize_linear(x, size)).astype(
          jnp.float32) for x in maps], axis=-1)


def margins(size: int, unit: int) -> tuple[int, int]:
  """Padding before and after that makes a side a multiple of `unit`."""
  missing = -size % unit
  return missing // 2, missing - missing // 2


def center_padded(images: jax.Array, unit: int,
                  value: float = 0.0) -> jax.Array:
  """[b, y, x, …] with a value around, sides multiples of `unit`.

  Source: CenterPadding of DINOv2 and DINOv3.
  """
  edges = [margins(n, unit) for n in images.shape[1:3]]
  rest = [(0, 0)] * (images.ndim - 3)
  return jnp.pad(images, ((0, 0), *edges, *rest), constant_values=value)


def stretched(images: jax.Array, unit: int) -> jax.Array:
  """[b, y, x, c] resized linearly to the next multiples of `unit`.

  Source: DINOv3's StretchToMultiple.
  """
  size = tuple(n + -n % unit for n in images.shape[1:3])
  return images if size == images.shape[1:3] else resample.resize_linear(
      images, size)


def _with_cls(layer: spec.Outputs) -> jax.Array:
  """[b, y, x, 2 d] a map with CLS beside every patch."""
  grid = layer['map']
  cls = jnp.broadcast_to(layer['cls'][:, None, None], (
      *grid.shape[:3], layer['cls'].shape[-1]))
  return jnp.concatenate([grid, cls.astype(grid.dtype)], axis=-1)


def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
  return jnp.einsum('byxd,dk->byxk', x, kernel, precision='highest')
