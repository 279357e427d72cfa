"""A ready model: images in, features out.

  import dinojax
  model = dinojax.load('weights/dinov2_vits14')
  features = model(model.preprocess(['a.jpg', 'b.jpg']))
"""

from collections.abc import Iterable, Sequence
import dataclasses
import os
import pathlib
from typing import Protocol

import jax
import numpy as np
from PIL import Image

from dinojax.augment import photometric
from dinojax.core import errors
from dinojax.core import paths
from dinojax.core import tree
from dinojax.data import crops
from dinojax.data import images as images_lib
from dinojax.models import convnext
from dinojax.models import network
from dinojax.models import vit
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import processes

# One image: a path, an encoded file, pixels in Pillow or as [y, x, c] uint8.
ImageLike = str | os.PathLike | bytes | Image.Image | np.ndarray
_PIXELS = ('normalise pixels as the model was trained: pass them through '
           'model.preprocess, or compute (pixels / 255 - model.mean) / '
           'model.std')


@dataclasses.dataclass(frozen=True)
class Features:
  """Features of b images, of width d, in the dtype of the model's activations.

  Attributes:
    cls: [b, d] the image as a whole; of a ConvNeXt the mean of its last map.
    registers: [b, n, d]; n is 0 where the model has none.
    patches: [b, p, d] row by row from the top left, one for every square of
      `model.config.token_px` pixels; or [b, y, x, d] when asked for.
  """

  cls: jax.Array
  registers: jax.Array
  patches: jax.Array

  def __repr__(self) -> str:
    parts = (f'{field.name} {list(getattr(self, field.name).shape)}'
             for field in dataclasses.fields(self))
    return f'dinojax.Features({", ".join(parts)}, {self.cls.dtype})'


class Weights(Protocol):
  """A backbone as it was read, see interop.reading.Weights."""

  config: vit.ViTConfig | convnext.ConvNeXtConfig
  params: tree.Tree
  family: str
  mean: tuple[float, ...]
  std: tuple[float, ...]
  value_range: tuple[float, ...]


class Model:
  """A backbone with its parameters on the devices; calling it gives features.

  Attributes:
    config: sizes and options of the backbone.
    params: nested dict of float32 arrays, on the devices.
    mean: of the pixels it was trained on, per channel, in [0, 1].
    std: likewise.
    value_range: black and white of the deep greys it was trained on, in the
      units of their files; (): of all that their type holds.
    source: where it was read from.
    family: 'meta', 'hf', 'timm' or 'dinojax': whose names the file had.
  """

  def __init__(self, weights: Weights,
               mesh: jax.sharding.Mesh | None = None, *, source: str = ''):
    """Puts the parameters on `mesh`; None: the first device."""
    self.source, self.family = source, weights.family
    self._mesh = mesh or mesh_lib.make(devices=mesh_lib.one_device())
    self.mean, self.std = weights.mean, weights.std
    self.value_range = weights.value_range
    # Whatever kernel it was trained with.
    self.config = weights.config.with_kernel(mesh_lib.platform(self._mesh))
    with mesh_lib.activate(self._mesh):
      self._net = network.functional(
          network.make_backbone, self.config, self._mesh)
      self.params = jax.device_put(weights.params, jax.tree.map(
          lambda spec: jax.NamedSharding(self._mesh, spec), self._net.specs,
          is_leaf=lambda x: isinstance(x, jax.P)))

  def __repr__(self) -> str:
    say = lambda values: '/'.join(f'{x:.3f}' for x in values)
    return (f'dinojax.Model({self.config.describe()}; '
            f'{tree.num_elements(self.params) / 1e6:.3g} M parameters; '
            f'from {self.source or "memory"} ({self.family}); '
            f'mean {say(self.mean)}, std {say(self.std)}'
            + (f', greys from {self.value_range[0]:g} to '
               f'{self.value_range[1]:g}' if self.value_range else '') + ')')

  @property
  def mesh(self) -> jax.sharding.Mesh:
    """The devices."""
    return self._mesh

  @property
  def net(self) -> network.Functional:
    """The backbone as pure functions of `params`."""
    return self._net

  def __call__(self, images: np.ndarray) -> Features:
    """Features after the final norm.

    Args:
      images: [b, y, x, c] floats, normalised as `preprocess` does; sides are
        whole patches of a ViT, and need not be those of training.

    Returns:
      Features on the devices; `np.asarray` brings them to the host.

    Raises:
      UserError: images of another shape, or pixels that are not normalised.
    """
    out = self._run(images, lambda net, x: net({'global': x})['global'])
    return _features(out)

  def intermediate(self, images: np.ndarray, layers: int | Sequence[int] = 1,
                   *, reshape: bool = False,
                   norm: bool = True) -> list[Features]:
    """Features after inner blocks (stages of a ConvNeXt), in depth order.

    Args:
      images: as of a call.
      layers: how many of the last, or which, counted from 0.
      reshape: patches as a map [b, y, x, d].
      norm: whether the final norm is applied.

    Raises:
      UserError: no such layer, or images that do not fit.
    """
    images = np.asarray(images)
    depth = self.config.depth
    indices = (tuple(range(depth - layers, depth))
               if isinstance(layers, int) else tuple(layers))
    if not indices or min(indices) < 0 or max(indices) >= depth:
      raise errors.UserError(
          f'layers={layers} are not in this model of {depth}: give a number '
          f'up to {depth}, or indices from 0 to {depth - 1}')
    out = self._run(images, lambda net, x: net.intermediate(
        x, indices, norm=norm), key=('intermediate', indices, norm))
    grids = [None] * len(out)
    if reshape:
      grids = [self.config.layer_grid(images.shape[1:3], i)
               for i in sorted(indices)]
    return [_features(f, grid) for f, grid in zip(out, grids, strict=True)]

  def attention_maps(self, images: np.ndarray,
                     layer: int = -1) -> jax.Array:
    """[b, h, n, n] attention of a block, rows summing to one.

    Args:
      images: as of a call.
      layer: which block, counted from 0, or from the end if negative; tokens
        are CLS, registers, then patches.

    Raises:
      UserError: a ConvNeXt has none; no such block.
    """
    if not self.config.has_attention:
      raise errors.UserError('a ConvNeXt has no attention')
    depth = self.config.depth
    if not -depth <= layer < depth:
      raise errors.UserError(
          f'layer={layer} is not in this model of {depth} blocks: give one '
          f'from 0 to {depth - 1}, or from {-depth} to -1')
    index = range(depth)[layer]
    return self._run(images, lambda net, x: net.attention_map(x, index),
                     key=('attention', index))

  def preprocess(self, images: ImageLike | Iterable[ImageLike], *,
                 resize_px: int = 256, crop_px: int = 224) -> np.ndarray:
    """Images as the published evaluations read them.

    Args:
      images: one image or several, in any mixture of paths, encoded bytes,
        Pillow images, and arrays [y, x, c] of uint8 (or [y, x], grey); an
        array [b, y, x, c] is b images.
      resize_px: side that the short side is resized to, bicubic.
      crop_px: side of the square that is cut from the centre.

    Returns:
      [b, crop_px, crop_px, c] float32, normalised; b is 1 for one image.

    Raises:
      UserError: an image that cannot be read, or is no image.
    """
    if not 1 <= crop_px <= resize_px:
      raise errors.UserError(
          f'crop_px={crop_px} is not within resize_px={resize_px}: images are '
          'first resized, then cut; set resize_px to crop_px or more')
    pixels = [_center(image, f'image {i}', resize_px, crop_px,
                      self.value_range)
              for i, image in enumerate(_several(images))]
    if not pixels:
      raise errors.UserError('no images are given: preprocess takes one or '
                             'more')
    return np.asarray(
        photometric.normalize(np.stack(pixels), self.mean, self.std))

  def _run(self, images, call, key=('final',)):
    images = np.asarray(images)
    channels = self.config.num_channels
    if images.ndim != 4 or images.shape[3] != channels or not images.size:
      hint = ('; move the channels last: images.transpose(0, 2, 3, 1)'
              if images.ndim == 4 and images.shape[1] == channels else
              '; put one image into a batch: images[None]'
              if images.shape[2:] == (channels,) else '')
      raise errors.UserError(
          f'images of shape {images.shape} are not [b, y, x, '
          f'{channels}]{hint}')
    if images.dtype.kind != 'f' and images.dtype.name != 'bfloat16':
      raise errors.UserError(
          f'images are {images.dtype} and not normalised floats: {_PIXELS}')
    images = images.astype(np.float32)
    if images.min() >= 0 and images.max() > 32:
      # Normalised pixels of any mean and std in use are within about ±10.
      raise errors.UserError(
          f'images are from {images.min():g} to {images.max():g}, pixels that '
          f'are not normalised: {_PIXELS}')
    patch = self.config.unit_px
    if any(n < patch or n % patch for n in images.shape[1:3]):
      raise errors.UserError(
          f'images of {images.shape[1]} × {images.shape[2]} pixels are not '
          f'whole patches of {patch}: resize or crop them')
    with mesh_lib.activate(self._mesh):
      rows = processes.to_devices({'images': images}, self._mesh)['images']
      return self._net.program(key, call)(self.params, rows)


def _features(out: dict, grid: tuple[int, int] | None = None) -> Features:
  patches = out['patches']
  if grid is not None:
    patches = patches.reshape(patches.shape[0], *grid, -1)
  return Features(out['cls'], out['registers'], patches)


def _several(images) -> Iterable:
  """The images, where there may be one alone."""
  if isinstance(images, str | os.PathLike | bytes | Image.Image):
    return [images]
  if hasattr(images, 'ndim'):
    images = np.asarray(images)
    return images if images.ndim == 4 else [images]
  if not isinstance(images, Iterable):
    raise errors.UserError(f'{type(images).__name__} is no image and no list '
                           'of images: give paths, Pillow images or arrays')
  return images


def _center(image, name: str, resize_px: int, crop_px: int,
            value_range: tuple[float, ...]) -> np.ndarray:
  """The centre of one image, [y, x, 3] uint8."""
  if isinstance(image, str | os.PathLike):
    name = os.fspath(image)
  try:
    return crops.center_crop(
        _opened(image, value_range), resize_px=resize_px, crop_px=crop_px)
  except (images_lib.BadImage, OSError, ValueError) as error:
    if isinstance(error, errors.UserError):
      raise errors.UserError(f'{name}: {error}') from error
    raise errors.UserError(f'{name} cannot be read: {error}') from error


def _opened(image, value_range: tuple[float, ...]) -> images_lib.Image:
  if isinstance(image, Image.Image):
    return images_lib.Image(image, value_range)
  if isinstance(image, bytes):
    return images_lib.open_image(image, value_range=value_range)
  if isinstance(image, str | os.PathLike):
    return images_lib.open_image(
        pathlib.Path(paths.expand(image)).read_bytes(),
        value_range=value_range)
  pixels = np.asarray(image)
  if pixels.dtype != np.uint8 or not pixels.size or not (
      pixels.ndim == 2 or pixels.ndim == 3 and pixels.shape[2] in (1, 3, 4)):
    raise errors.UserError(
        f'an array of {pixels.dtype} and shape {pixels.shape} is no image: '
        'give pixels as uint8 from 0 to 255, [y, x, 3]')
  return images_lib.Image(Image.fromarray(
      pixels[..., 0] if pixels.shape[2:] == (1,) else pixels))
