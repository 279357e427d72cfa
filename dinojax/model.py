"""A ready model: images in, features out.

  import dinojax
  model = dinojax.load('weights/dinov2_vits14')
  features = model(model.preprocess(['a.jpg', 'b.jpg']))
"""

from collections.abc import Sequence
import dataclasses
import functools
import pathlib

import jax
import numpy as np
from PIL import Image

from dinojax import weights as weights_lib
from dinojax.augment import photometric
from dinojax.core import errors
from dinojax.data import crops
from dinojax.data import images as images_lib
from dinojax.interop import reading
from dinojax.kernels import attention
from dinojax.models import network
from dinojax.models import vit
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import processes


@dataclasses.dataclass(frozen=True)
class Features:
  """What a model says about images.

  Attributes:
    cls: [b, d] the image.
    registers: [b, n, d].
    patches: [b, p, d] row by row, or [b, y, x, d] when asked for.
  """

  cls: jax.Array
  registers: jax.Array
  patches: jax.Array


class Model:
  """A backbone with its parameters on the devices.

  Attributes:
    config: of the backbone.
    params: on the devices.
    mean: of the pixels it was trained on, per channel.
    std: likewise.
  """

  def __init__(self, weights: reading.Weights,
               mesh: jax.sharding.Mesh | None = None):
    """Puts the parameters on `mesh`; None: the first device."""
    self._mesh = mesh or mesh_lib.make(devices=mesh_lib.one_device())
    self.config = weights.config
    self.mean, self.std = weights.mean, weights.std
    if isinstance(self.config, vit.ViTConfig):
      self.config = dataclasses.replace(
          self.config,
          attention=attention.choose(
              mesh_lib.platform(self._mesh), self.config.embed_dim,
              self.config.num_heads))
    with mesh_lib.activate(self._mesh):
      self._net = reading.functional(self.config, self._mesh)
      self.params = jax.device_put(weights.params, jax.tree.map(
          lambda spec: jax.NamedSharding(self._mesh, spec), self._net.specs,
          is_leaf=lambda x: isinstance(x, jax.P)))

  @property
  def mesh(self) -> jax.sharding.Mesh:
    """The devices."""
    return self._mesh

  @property
  def net(self) -> network.Functional:
    """The backbone as pure functions of `params`."""
    return self._net

  def __call__(self, images: np.ndarray) -> Features:
    """Features of [b, y, x, c] normalised images, after the final norm."""
    out = self._run(images, lambda net, x: net({'global': x})['global'])
    return _features(out)

  def intermediate(self, images: np.ndarray, layers: int | Sequence[int] = 1,
                   *, reshape: bool = False,
                   norm: bool = True) -> list[Features]:
    """Features after inner blocks (stages of a ConvNeXt), in depth order.

    Args:
      images: [b, y, x, c] normalised.
      layers: how many of the last, or which, counted from 0.
      reshape: patches as a map [b, y, x, d].
      norm: whether the final norm is applied.

    Raises:
      UserError: no such layer.
    """
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
      grids = [self._grid(images.shape[1:3], i) for i in sorted(indices)]
    return [_features(f, grid) for f, grid in zip(out, grids, strict=True)]

  def attention_maps(self, images: np.ndarray,
                     layer: int = -1) -> jax.Array:
    """[b, h, n, n] attention of a block, rows summing to one.

    Raises:
      UserError: a ConvNeXt has none.
    """
    if not isinstance(self.config, vit.ViTConfig):
      raise errors.UserError('a ConvNeXt has no attention')
    index = range(self.config.depth)[layer]
    return self._run(images, lambda net, x: net.attention_map(x, index),
                     key=('attention', index))

  def preprocess(self, images: Sequence, *, resize_px: int = 256,
                 crop_px: int = 224) -> np.ndarray:
    """Images as the published evaluations read them.

    Args:
      images: paths, encoded bytes or Pillow images.
      resize_px: of the short side, bicubic.
      crop_px: of the centre.

    Returns:
      [b, y, x, c] float32, normalised.

    Raises:
      UserError: an image cannot be read.
    """
    pixels = np.stack([_center(image, resize_px, crop_px)
                       for image in images])
    return np.asarray(photometric.normalize(pixels, self.mean, self.std))

  def _grid(self, image_px: tuple[int, int], index: int) -> tuple[int, int]:
    if isinstance(self.config, vit.ViTConfig):
      return self.config.grid(image_px)
    step = self.config.patch_px or 4 * 2 ** index
    return image_px[0] // step, image_px[1] // step

  def _run(self, images, call, key=('final',)):
    images = np.asarray(images, np.float32)
    if images.ndim != 4 or images.shape[3] != self.config.num_channels:
      raise errors.UserError(
          f'images of shape {images.shape} are not [b, y, x, '
          f'{self.config.num_channels}]')
    if isinstance(self.config, vit.ViTConfig):
      patch = self.config.patch_px
      if any(n < patch or n % patch for n in images.shape[1:3]):
        raise errors.UserError(
            f'images of {images.shape[1]} × {images.shape[2]} pixels are not '
            f'whole patches of {patch}: resize or crop them')
    with mesh_lib.activate(self._mesh):
      rows = processes.to_devices({'images': images}, self._mesh)['images']
      return self._program(key, call)(self.params, rows)

  def _program(self, key, call):
    return self._programs.setdefault(key, jax.jit(
        lambda params, rows: self._net.apply(params, rows, call),
        compiler_options=mesh_lib.compiler_options(self._mesh)))

  @functools.cached_property
  def _programs(self) -> dict:
    return {}


def load(path: str, **options) -> Model:
  """A ready model, see `weights.read` for where from."""
  return Model(weights_lib.read(path, **options))



def _features(out: dict, grid: tuple[int, int] | None = None) -> Features:
  patches = out['patches']
  if grid is not None:
    patches = patches.reshape(patches.shape[0], *grid, -1)
  return Features(out['cls'], out['registers'], patches)


def _center(image, resize_px: int, crop_px: int) -> np.ndarray:
  try:
    if isinstance(image, Image.Image):
      source = images_lib.Image(image)
    else:
      data = image if isinstance(image, bytes) else pathlib.Path(
          image).expanduser().read_bytes()
      source = images_lib.open_image(data)
    return crops.center_crop(source, resize_px=resize_px, crop_px=crop_px)
  except (images_lib.BadImage, OSError) as error:
    name = image if isinstance(image, str | pathlib.Path) else type(image)
    raise errors.UserError(f'{name} cannot be read: {error}') from error
