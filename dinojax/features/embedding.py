"""What is stored of an image, and the program that computes it."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import hashlib
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.augment import photometric
from dinojax.core import errors
from dinojax.core import tree
from dinojax.data import crops
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import processes

FEATURES = ('cls', 'patches', 'cls+mean')
_MAX_IMAGES_PER_SHARD = 4096
_MAX_SHARD_BYTES = 2**28
_LARGER = 1.5  # times the size of learned positions, and it is said
# Fields of a backbone that change its speed, not its features.
_FREE_FIELDS = ('attention', 'packing', 'remat')


class Backbone(Protocol):
  """What is embedded with, such as `dinojax.load` returns."""

  config: object
  params: tree.Tree
  net: object
  mesh: jax.sharding.Mesh
  mean: tuple[float, ...]
  std: tuple[float, ...]
  value_range: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Choice:
  """What is stored of an image, and how it is read.

  Attributes:
    features: 'cls', 'patches', or 'cls+mean': CLS and the mean patch.
    layers: how many of the last are joined; the mean patch is of the last.
    dtype: 'float32' or 'float16'.
    resize_px: of the short side.
    crop_px: of the centre; None: the whole image, in whole patches.
  """

  features: str = 'cls'
  layers: int = 1
  dtype: str = 'float32'
  resize_px: int = 256
  crop_px: int | None = 224


def check(choice: Choice, config):
  """Refuses what the model cannot do.

  Raises:
    UserError: sizes or layers that do not fit.
  """
  unit = config.side_px
  crop = choice.crop_px
  if crop is not None and (crop < unit or crop % unit):
    near = sorted({max(crop // unit, 1) * unit, (crop // unit + 1) * unit})
    raise errors.UserError(
        f'--crop_px={crop} is not whole patches of {unit} pixels: set it to '
        f'{" or ".join(map(str, near))}')
  if crop is not None and crop > choice.resize_px:
    raise errors.UserError(
        f'--crop_px={crop} is larger than --resize_px={choice.resize_px}: '
        f'set --resize_px={crop} or more')
  if not 1 <= choice.layers <= config.depth:
    raise errors.UserError(
        f'--layers={choice.layers} are not in this model of {config.depth}: '
        f'set it to 1 … {config.depth}')
  whole = (8 * config.side_px,) * 2
  grids = {config.layer_grid(whole, config.depth - 1 - i)
           for i in range(choice.layers)}
  if choice.features == 'patches' and len(grids) > 1:
    raise errors.UserError(
        f'--layers={choice.layers} of a ConvNeXt have maps of different '
        'sizes: set it to 1, or --features=cls')


def enlarged(choice: Choice, config) -> str:
  """What to say of crops much larger than learned positions are for, or ''.

  Other models do not tell the size that they were trained at.
  """
  crop = choice.crop_px
  learned = config.learned_px
  if not crop or learned is None or crop < _LARGER * learned:
    return ''
  near = max(learned // config.side_px, 1) * config.side_px
  resized = round(near * Choice.resize_px / Choice.crop_px)
  return (f'crops of {crop} pixels, and the positions were learned at '
          f'{learned}: --crop_px={near} --resize_px={resized} is the '
          'size of training')


def program(model: Backbone, choice: Choice
            ) -> Callable[[np.ndarray], jax.Array]:
  """[b, y, x, c] uint8 images to [b, d] or [b, p, d] features, compiled.

  A device that results are fetched from rounds them to the choice's dtype. A
  CPU need not, and XLA's compiler has no float16 for those without F16C.
  """
  depth = model.config.depth
  on_cpu = mesh_lib.platform(model.mesh) == 'cpu'
  dtype = 'float32' if on_cpu else choice.dtype
  indices = tuple(range(depth - choice.layers, depth))

  def call(net, images):
    images = photometric.normalize(images, model.mean, model.std)
    if len(indices) == 1:
      layers = [net({'global': images})['global']]
    else:
      layers = net.intermediate(images, indices)
    if choice.features == 'patches':
      out = jnp.concatenate([layer['patches'] for layer in layers], axis=-1)
    else:
      out = probe_input(
          layers, len(layers), choice.features == 'cls+mean')
    return out.astype(dtype)

  run = jax.jit(
      lambda params, images: model.net.apply(params, images, call),
      compiler_options=mesh_lib.compiler_options(model.mesh))

  def embed(images):
    with mesh_lib.activate(model.mesh):
      return run(model.params, processes.to_devices(images, model.mesh))

  return embed


def default_images(choice: Choice, config) -> int:
  """Images of a shard, so that it fits well in memory."""
  width = sum(config.layer_dims[-choice.layers:])
  if choice.features == 'cls+mean':
    width += config.embed_dim
  if choice.features == 'patches':
    unit = config.side_px
    width *= (crops.max_patches(choice.resize_px, unit)
              if choice.crop_px is None else (choice.crop_px // unit) ** 2)
  row_bytes = width * np.dtype(choice.dtype).itemsize
  return max(min(_MAX_IMAGES_PER_SHARD, _MAX_SHARD_BYTES // row_bytes), 1)


def digest(config, params: tree.Tree) -> str:
  """Of the configuration and about a thousand values of every tensor.

  Training moves every value, so a few of them tell two models apart.
  """
  fields = {key: value for key, value in dataclasses.asdict(config).items()
            if key not in _FREE_FIELDS}
  out = hashlib.sha256(repr(sorted(fields.items())).encode())
  for name, value in tree.items(params):
    flat = np.asarray(jax.device_get(value)).reshape(-1)
    out.update(f'{name} {value.shape}'.encode())
    out.update(flat[::max(flat.size // 1000, 1)].tobytes())
  return out.hexdigest()[:16]


def preparation(choice: Choice, config) -> Callable:
  """An opened image to [y, x, c] uint8, for worker processes too."""
  if choice.crop_px is None:
    return functools.partial(
        crops.whole, short_px=choice.resize_px, patch_px=config.side_px)
  return functools.partial(
      crops.center_crop, resize_px=choice.resize_px, crop_px=choice.crop_px)


def probe_input(layers: Sequence[dict[str, jax.Array]], num_layers: int,
                average_patches: bool) -> jax.Array:
  """[b, n·d (+ d)] features of a probe, float32.

  Args:
    layers: of the last blocks, oldest first: cls [b, d], patches [b, p, d].
    num_layers: n, how many of the last are joined.
    average_patches: whether the mean patch of the last block is appended.
  """
  parts = [layer['cls'] for layer in layers[-num_layers:]]
  if average_patches:
    parts.append(layers[-1]['patches'].mean(axis=1))
  return jnp.concatenate(parts, axis=-1).astype(jnp.float32)
