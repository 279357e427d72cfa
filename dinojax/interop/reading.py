"""Any weight file that is known, as a configuration and parameters."""

from collections.abc import Iterator
import contextlib
import dataclasses
import functools

import jax
import numpy as np

from dinojax.augment import photometric
from dinojax.core import errors
from dinojax.core import tree
from dinojax.interop import files
from dinojax.interop import hf
from dinojax.interop import hub
from dinojax.interop import kinds
from dinojax.interop import meta
from dinojax.interop import names
from dinojax.interop import sizes
from dinojax.interop import timm
from dinojax.interop import told
from dinojax.interop import translate
from dinojax.interop import wrappers
from dinojax.interop.heads import eomt
from dinojax.kernels import resample as resample_lib
from dinojax.models import families
from dinojax.models import heads as heads_lib
from dinojax.models import network
from dinojax.models import positions
from dinojax.models import vit
from dinojax.parallel import mesh as mesh_lib

Config = families.Config


@dataclasses.dataclass(frozen=True)
class Head:
  """The head of a loss, as a training checkpoint holds it."""

  config: heads_lib.HeadConfig
  params: tree.Tree


@dataclasses.dataclass(frozen=True)
class Weights:
  """A backbone as read, with its heads if they were there.

  Attributes:
    config: configuration of the backbone.
    params: its parameters, float32 numpy.
    entries: tensors kept to write the file again, see `meta.complete`.
    family: 'meta', 'hf', 'timm' or 'dinojax'.
    heads: 'dino_head' and 'ibot_head' of training checkpoints.
    notes: sentences on what was taken of the source, and what left out.
    mean: mean of the pixels it was trained on, per channel, in [0, 1].
    std: standard deviation of these pixels.
    value_range: black and white of the deep greys it was trained on; (): see
      data.images.
  """

  config: Config
  params: tree.Tree
  entries: dict[str, np.ndarray]
  family: str
  heads: dict[str, Head] = dataclasses.field(default_factory=dict)
  mean: tuple[float, ...] = photometric.IMAGENET_MEAN
  std: tuple[float, ...] = photometric.IMAGENET_STD
  value_range: tuple[float, ...] = ()
  notes: tuple[str, ...] = ()


def read(path: str, *, part: str = 'ema', num_heads: int | None = None,
         image_px: int | None = None, exact_periods: bool = False) -> Weights:
  """Reads a backbone from a file or folder, whatever family it is of.

  Args:
    path: see `files.read`; beside it, Hugging Face folders hold config.json.
      Or 'hf:owner/name' on the Hugging Face Hub, see `hub.fetch`.
    part: name of one of several backbones in a file, see `wrappers.find`.
    num_heads: attention heads, for sizes that were never published.
    image_px: side that learned positions are resampled to; None keeps them.
    exact_periods: computes the periods of RoPE in float32, as transformers
      and timm do; DINOv3's own files hold them rounded to bfloat16, as it
      was trained.

  Raises:
    UserError: not a known file, or not the weights it should hold.
  """
  source, place, notes = path, *hub.fetch(path)
  state = files.read(place)
  eomt.check_alone(state, source)
  backbone = wrappers.find(state, part, source)
  with _named(source):
    config, state, entries, family, table, pixels = _understood(
        backbone.state, place, num_heads, image_px)
  if family == 'meta' and exact_periods:
    config = exact(config)
  params = translate.to_ours(state, table, shapes(config), source=source)
  heads = {name: _head(head, config.embed_dim, f'{name} of {source}')
           for name, head in backbone.heads.items()}
  if image_px is not None:
    config, params = resample(config, params, image_px)
  if eomt.family(state) is eomt.HF:
    notes += (f'{source}: the backbone is read, and not what EoMT predicts: '
              f'`dinojax predict --head={source}` does',)
  return Weights(config, params, entries, family, heads, **pixels,
                 notes=(*notes, *backbone.notes))


@contextlib.contextmanager
def _named(source: str) -> Iterator[None]:
  """Puts the file in front of what is wrong with a tensor of it."""
  try:
    yield
  except errors.UserError as error:
    text = str(error)
    raise errors.UserError(
        text if source in text else f'{source}: {text}') from error


def _understood(state: kinds.State, path: str, num_heads: int | None,
                image_px: int | None) -> tuple:
  """Configuration, tensors, entries, family, table and pixels of a file."""
  entries, pixels = {}, {}
  if hf.recognises(state):
    family = 'hf'
    told_by = told.Told.beside(path, 'config.json')
    if told_by is None:
      raise errors.UserError(
          f'{path} has names of transformers, and config.json is missing: '
          'give the whole folder of the model')
    config, state = hf.config(told_by), hf.complete(state)
    if eomt.family(state):
      state, table = eomt.backbone(state, config)
    else:
      config, state = _squared(
          config, state, hf.grid(told_by, config), image_px)
      table = hf.table(config)
    told_by = told.Told.beside(path, hf.PREPROCESSOR)
    pixels = _pixels(told_by, 'image_mean', 'image_std', config)
  elif timm.recognises(state):
    family, state = 'timm', timm.complete(state)
    config = timm.config(state, num_heads)
    told_by = told.Told.beside(path, 'config.json')
    timm.check_square(told_by, config)
    table, told_by = timm.table(config), told_by and (
        told_by.inner('pretrained_cfg')
        if 'pretrained_cfg' in told_by else None)
    pixels = _pixels(told_by, 'mean', 'std', config)
  elif meta.recognises(state):
    family, (state, entries) = 'meta', meta.complete(state)
    config = meta.config(state, entries, num_heads)
    table = meta.table(config)
  else:
    raise errors.UserError(
        'it holds no DINOv2 or DINOv3 backbone: its tensors begin with '
        f'{", ".join(list(state)[:3])}')
  sizes.check(config, path)
  return config, state, entries, family, table, pixels


def _squared(config: Config, state: kinds.State, grid: tuple[int, int] | None,
             image_px: int | None) -> tuple[Config, kinds.State]:
  """Positions of a grid that is not square, for square images of a side.

  transformers itself takes 9 × 16 positions for 12 × 12: these are of the
  grid that they were learned for.

  Raises:
    UserError: no side is given.
  """
  if grid is None or grid[0] == grid[1]:
    return config, state
  key, patch = hf.POSITIONS, config.patch_px
  if image_px is None:
    side = round((grid[0] * grid[1]) ** 0.5) * patch
    raise errors.UserError(
        f'its positions are of {grid[0]} × {grid[1]} patches, and only those '
        'of square images are kept: give the side of square images that they '
        f'are resampled to, such as image_px={side}')
  _check_side(config, image_px)
  table = names.shape(state, key, 3)
  if table[1] != 1 + grid[0] * grid[1]:
    raise errors.UserError(
        f'{key} has shape {table}, and config.json says {grid[0]} × {grid[1]} '
        'patches and CLS: they are not of one model')
  patches = resample_lib.resize(
      state[key][0, 1:].reshape(*grid, -1),
      config.grid((image_px, image_px)), None, config.interpolate_antialias)
  patches = np.asarray(patches, np.float32).reshape(1, -1, table[2])
  return (dataclasses.replace(config, image_px=image_px),
          state | {key: np.concatenate([state[key][:, :1], patches], axis=1)})


def _head(state: kinds.State, width: int, source: str) -> Head:
  with _named(source):
    config = meta.head_config(state)
    sizes.check(config, source)
  return Head(config, translate.to_ours(
      state, meta.head_table(config), head_shapes(config, width),
      source=source))


def exact(config: Config) -> Config:
  """The configuration with RoPE computed in float32 throughout."""
  if not isinstance(config, vit.ViTConfig):
    return config
  return dataclasses.replace(
      config, rope_periods=None, rope_dtype='float32')


def functional(config: Config, mesh: jax.sharding.Mesh) -> network.Functional:
  """A backbone as pure functions of its parameters."""
  return network.functional(families.make, config, mesh)


def shapes(config: Config) -> tree.Tree:
  """Abstract parameters of a backbone."""
  return jax.tree.map(lambda x: x, _shapes(config))


@functools.lru_cache(maxsize=16)
def _shapes(config: Config) -> tree.Tree:
  mesh = mesh_lib.make(devices=mesh_lib.one_device())
  with mesh_lib.activate(mesh):
    return functional(config, mesh).shapes


def head_shapes(config: heads_lib.HeadConfig, width: int) -> tree.Tree:
  """Abstract parameters of a head on features of a width."""
  return jax.tree.map(lambda x: x, _head_shapes(config, width))


@functools.lru_cache(maxsize=16)
def _head_shapes(config: heads_lib.HeadConfig, width: int) -> tree.Tree:
  mesh = mesh_lib.make(devices=mesh_lib.one_device())
  with mesh_lib.activate(mesh):
    return network.Functional(lambda rngs: heads_lib.Head(
        width, config, dtype=np.float32, rngs=rngs), mesh).shapes


def resample(config: Config, params: tree.Tree,
             image_px: int) -> tuple[Config, tree.Tree]:
  """Learned positions for square images of another size, kept as such.

  Raises:
    UserError: the model has no learned positions, or the size does not fit.
  """
  if not isinstance(config, vit.ViTConfig) or config.position != 'learned':
    raise errors.UserError(
        'image_px resamples learned positions, and this model has none: '
        'leave it out, it takes any size')
  _check_side(config, image_px)
  table = positions.resize_learned(
      params['pos_embed'], config.grid((image_px, image_px)),
      offset=config.interpolate_offset,
      antialias=config.interpolate_antialias)
  return (dataclasses.replace(config, image_px=image_px),
          params | {'pos_embed': np.asarray(table)})


def _check_side(config: vit.ViTConfig, image_px: int):
  patch = config.patch_px
  if image_px < patch or image_px % patch:
    raise errors.UserError(
        f'image_px={image_px} is not divisible by the patch of {patch}: set '
        f'it to {max(image_px // patch, 1) * patch}')


def _pixels(values: told.Told | None, mean: str, std: str,
            config: Config) -> dict:
  """Mean and deviation that a file states under these keys, if it does."""
  if values is None or mean not in values and std not in values:
    return {}
  statistics = {'mean': values.numbers(mean), 'std': values.numbers(
      std, positive=True)}
  for key, value in statistics.items():
    if len(value) != config.num_channels:
      raise errors.UserError(
          f'{values.source}: the {key} {value} has {len(value)} numbers, and '
          f'the model takes {config.num_channels} channels')
  return statistics
