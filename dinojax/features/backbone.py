"""A backbone with its parameters: images in, features out.

  import dinojax
  model = dinojax.load('weights/dinov2_vits14')
  features = model(model.preprocess(['a.jpg', 'b.jpg']))
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
import dataclasses
from typing import Any, Protocol

import jax
import numpy as np

from dinojax.augment import photometric
from dinojax.core import errors
from dinojax.core import tree
from dinojax.features import preprocessing
from dinojax.features import spec as spec_lib
from dinojax.models import families
from dinojax.models import network
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import processes

ImageLike = preprocessing.ImageLike
_PIXELS = ('normalise pixels as the model was trained: pass them through '
           'model.preprocess, or compute (pixels / 255 - model.mean) / '
           'model.std')
_ALL = ('cls', 'registers', 'patches')


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
    shapes = (f'{field.name} {list(getattr(self, field.name).shape)}'
              for field in dataclasses.fields(self))
    return f'dinojax.Features({", ".join(shapes)}, {self.cls.dtype})'


class Weights(Protocol):
  """A backbone as it was read, see interop.reading.Weights."""

  config: Any
  params: tree.Tree
  family: str
  mean: tuple[float, ...]
  std: tuple[float, ...]
  value_range: tuple[float, ...]


class Backbone:
  """A backbone with its parameters on the devices; calling it gives features.

  Attributes:
    config: sizes and options of the backbone.
    net: the backbone as pure functions of `params`.
    mesh: the devices.
    params: nested dict of float32 arrays, on the devices.
    mean: mean of the pixels it was trained on, per channel, in [0, 1].
    std: deviation of these pixels.
    value_range: black and white of the deep greys it was trained on, in the
      units of their files; (): of all that their type holds.
    source: where it was read from.
    family: 'meta', 'hf', 'timm' or 'dinojax': whose names the file had.
  """

  def __init__(self, config: Any, params: tree.Tree,
               mesh: jax.sharding.Mesh, *, mean: Sequence[float],
               std: Sequence[float], value_range: Sequence[float] = (),
               source: str = '', family: str = 'dinojax'):
    """Puts the parameters on `mesh`, where they are not there yet.

    Of their shapes alone the backbone is for planning: it computes nothing.
    """
    self.config, self.mesh = config, mesh
    self.mean, self.std = tuple(mean), tuple(std)
    self.value_range = tuple(value_range)
    self.source, self.family = source, family
    with mesh_lib.activate(mesh):
      self.net = network.functional(families.make, config, mesh)
      shardings = jax.tree.map(
          lambda spec: jax.NamedSharding(mesh, spec), self.net.specs,
          is_leaf=lambda x: isinstance(x, jax.P))
      self.params = jax.tree.map(
          lambda x, sharding: jax.ShapeDtypeStruct(
              x.shape, x.dtype, sharding=sharding), params, shardings
      ) if tree.is_abstract(params) else jax.device_put(params, shardings)

  @classmethod
  def of(cls, weights: Weights, mesh: jax.sharding.Mesh | None = None, *,
         source: str = '') -> 'Backbone':
    """Weights as they were read, on `mesh` (None: the first device)."""
    mesh = mesh or mesh_lib.make(devices=mesh_lib.one_device())
    # Whatever kernel it was trained with.
    config = weights.config.with_kernel(mesh_lib.platform(mesh))
    return cls(config, weights.params, mesh, mean=weights.mean,
               std=weights.std, value_range=weights.value_range,
               source=source, family=weights.family)

  def __repr__(self) -> str:
    say = lambda values: '/'.join(f'{x:.3f}' for x in values)
    return (f'dinojax.Backbone({self.config.describe()}; '
            f'{tree.num_elements(self.params) / 1e6:.3g} M parameters; '
            f'from {self.source or "memory"} ({self.family}); '
            f'mean {say(self.mean)}, std {say(self.std)}'
            + (f', greys from {self.value_range[0]:g} to '
               f'{self.value_range[1]:g}' if self.value_range else '') + ')')

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
    last, = self.read(images, spec_lib.FeatureSpec(_ALL, 1, 'final'))
    return Features(**last)

  def intermediate(self, images: np.ndarray, layers: int | Sequence[int] = 1,
                   *, reshape: bool = False,
                   norm: bool = True) -> list[Features]:
    """Features after inner blocks (stages of a ConvNeXt), in depth order.

    Args:
      images: [b, y, x, c] normalised, as of a call.
      layers: how many of the last, or which, counted from 0.
      reshape: gives patches as a map [b, y, x, d].
      norm: applies the final norm.

    Raises:
      UserError: no such layer, or images that do not fit.
    """
    patches = 'map' if reshape else 'patches'
    outputs = self.read(images, spec_lib.FeatureSpec(
        ('cls', 'registers', patches),
        layers if isinstance(layers, int) else tuple(layers),
        'normed' if norm else 'raw'))
    return [Features(layer['cls'], layer['registers'], layer[patches])
            for layer in outputs]

  def attention_maps(self, images: np.ndarray,
                     layer: int = -1) -> jax.Array:
    """[b, h, n, n] attention of a block, rows summing to one.

    Args:
      images: [b, y, x, c] normalised, as of a call.
      layer: the block, counted from 0, or from the end if negative; tokens
        are CLS, registers, then patches.

    Raises:
      UserError: a ConvNeXt has none; no such block.
    """
    depth = self.config.depth
    if self.config.has_attention and not -depth <= layer < depth:
      raise errors.UserError(
          f'layer={layer} is not in this model of {depth} blocks: give one '
          f'from 0 to {depth - 1}, or from {-depth} to -1')
    outputs, = self.read(images, spec_lib.FeatureSpec(
        ('attention',), (layer % depth,)))
    return outputs['attention']

  def read(self, images: np.ndarray,
           spec: spec_lib.FeatureSpec) -> list[spec_lib.Outputs]:
    """Any features, see `spec.FeatureSpec`.

    Args:
      images: [b, y, x, c] normalised, as of a call.
      spec: outputs and layers to read.

    Returns:
      For each layer, in the order of depth, arrays by output.

    Raises:
      UserError: the backbone has no such features; images that do not fit.
    """
    spec.check(self.config)
    return self.run(self._checked(images), {'read': spec})['read']

  def run(self, images: np.ndarray,
          specs: Mapping[str, spec_lib.FeatureSpec], *, pixels: bool = False,
          reduce: Callable[[dict], tree.Tree] | None = None) -> tree.Tree:
    """Features for several specs, in one pass, on the devices.

    Args:
      images: [b, y, x, c], this process's; b is divisible by its devices.
      specs: outputs and layers to read, by name.
      pixels: images are uint8, and normalised on the device.
      reduce: turns `spec.compute`'s result into the one returned; a function
        of a module or a frozen dataclass: it is part of the program's name,
        and equal arguments compile nothing again.
    """
    with mesh_lib.activate(self.mesh):
      rows = processes.to_devices(images, self.mesh)
      return self._program(specs, pixels, reduce)(self.params, rows)

  def shapes(self, size: tuple[int, int, int],
             specs: Mapping[str, spec_lib.FeatureSpec], *,
             reduce: Callable[[dict], tree.Tree] | None = None) -> tree.Tree:
    """Shapes of what `run` gives for an image a device, of size [y, x, c]."""
    rows = jax.ShapeDtypeStruct(
        (self.mesh.size, *size), np.uint8,
        sharding=jax.NamedSharding(self.mesh, mesh_lib.ROWS))
    with mesh_lib.activate(self.mesh):
      return jax.eval_shape(
          self._program(specs, True, reduce), self.params, rows)

  def _program(self, specs: Mapping[str, spec_lib.FeatureSpec], pixels: bool,
               reduce: Callable[[dict], tree.Tree] | None
               ) -> Callable[[tree.Tree, jax.Array], tree.Tree]:
    named: Hashable = (
        tuple(specs.items()), reduce, (self.mean, self.std) if pixels else ())
    mean, std = self.mean, self.std

    def call(net, images):
      if pixels:
        images = photometric.normalize(images, mean, std)
      out = spec_lib.compute(net, images, specs)
      return reduce(out) if reduce else out

    return self.net.program(named, call)

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
    return self.normalize(
        self.pixels(images, resize_px=resize_px, crop_px=crop_px))

  def pixels(self, images: ImageLike | Iterable[ImageLike], *,
             resize_px: int = 256, crop_px: int = 224) -> np.ndarray:
    """The squares that `preprocess` normalises, to be shown beside features.

    Returns:
      [b, crop_px, crop_px, c] uint8.

    Raises:
      UserError: an image that cannot be read, or is no image.
    """
    return preprocessing.centers(
        images, resize_px=resize_px, crop_px=crop_px,
        value_range=self.value_range)

  def normalize(self, pixels: np.ndarray) -> np.ndarray:
    """[..., c] values from 0 to 255 as the backbone was trained to see them."""
    return np.asarray(photometric.normalize(pixels, self.mean, self.std))

  def _checked(self, images: np.ndarray) -> np.ndarray:
    """The images as float32.

    Raises:
      UserError: another shape, or pixels that are not normalised.
    """
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
    unit = self.config.unit_px
    if any(n < unit or n % unit for n in images.shape[1:3]):
      raise errors.UserError(
          f'images of {images.shape[1]} × {images.shape[2]} pixels are not '
          f'whole patches of {unit}: resize or crop them')
    return images
