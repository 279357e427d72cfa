"""Any weight file that is known, as a configuration and parameters."""

import dataclasses
import json
import pathlib

import jax
import numpy as np

from dinojax.augment import photometric
from dinojax.core import errors
from dinojax.core import tree
from dinojax.interop import files
from dinojax.interop import hf
from dinojax.interop import hub
from dinojax.interop import meta
from dinojax.interop import timm
from dinojax.interop import translate
from dinojax.models import convnext
from dinojax.models import heads as heads_lib
from dinojax.models import network
from dinojax.models import positions
from dinojax.models import vit
from dinojax.parallel import mesh as mesh_lib

Config = vit.ViTConfig | convnext.ConvNeXtConfig


@dataclasses.dataclass(frozen=True)
class Head:
  """The head of a loss, as a training checkpoint holds it."""

  config: heads_lib.HeadConfig
  params: tree.Tree


@dataclasses.dataclass(frozen=True)
class Weights:
  """A backbone as read, with its heads if they were there.

  Attributes:
    config: of the backbone.
    params: its parameters, float32 numpy.
    entries: what else the file holds, see `meta.complete`.
    family: 'meta', 'hf', 'timm' or 'dinojax'.
    heads: 'dino_head' and 'ibot_head' of training checkpoints.
    mean: of the pixels it was trained on, per channel, in [0, 1].
    std: likewise.
  """

  config: Config
  params: tree.Tree
  entries: dict[str, np.ndarray]
  family: str
  heads: dict[str, Head] = dataclasses.field(default_factory=dict)
  mean: tuple[float, ...] = photometric.IMAGENET_MEAN
  std: tuple[float, ...] = photometric.IMAGENET_STD


def read(path: str, *, num_heads: int | None = None,
         image_px: int | None = None, exact_periods: bool = False) -> Weights:
  """Reads a backbone from a file or folder, whatever family it is of.

  Args:
    path: see `files.read`; beside it, Hugging Face folders hold config.json.
      Or 'owner/name' on the Hugging Face Hub, see `hub.fetch`.
    num_heads: for sizes that were never published.
    image_px: side that learned positions are resampled to; None keeps them.
    exact_periods: computes the periods of RoPE in float32, as transformers
      and timm do; DINOv3's own files hold them rounded to bfloat16, as it
      was trained.

  Raises:
    UserError: not a known file, or not the weights it should hold.
  """
  path = hub.fetch(path)
  state, heads, pixels = files.read(path), {}, {}
  if hf.recognises(state):
    config, entries, family = _hf_config(path), {}, 'hf'
    state, table = hf.complete(state), hf.table(config)
    pixels = _pixels(path)
  elif timm.recognises(state):
    state, entries, family = timm.complete(state), {}, 'timm'
    config = timm.config(state, num_heads)
    table = timm.table(config)
  elif meta.recognises(state):
    parts = meta.split_heads(state)
    (state, entries), family = meta.complete(state), 'meta'
    config = meta.config(state, entries, num_heads)
    config = exact(config) if exact_periods else config
    table = meta.table(config)
    heads = {name: _head(part, config.embed_dim, f'{name} of {path}')
             for name, part in parts.items()}
  else:
    raise errors.UserError(
        f'{path} holds no DINOv2 or DINOv3 backbone: its tensors begin with '
        f'{", ".join(list(state)[:3])}')
  params = translate.to_ours(state, table, shapes(config), source=path)
  if image_px is not None:
    config, params = resample(config, params, image_px)
  return Weights(config, params, entries, family, heads, **pixels)


def _head(state: files.State, width: int, source: str) -> Head:
  config = meta.head_config(state)
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
  module = (vit.ViT if isinstance(config, vit.ViTConfig)
            else convnext.ConvNeXt)
  return network.Functional(lambda rngs: module(config, rngs=rngs), mesh)


def shapes(config: Config) -> tree.Tree:
  """Abstract parameters of a backbone."""
  mesh = mesh_lib.make(devices=mesh_lib.one_device())
  with mesh_lib.activate(mesh):
    return functional(config, mesh).shapes


def head_shapes(config: heads_lib.HeadConfig, width: int) -> tree.Tree:
  """Abstract parameters of a head on features of a width."""
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
  if image_px % config.patch_px:
    raise errors.UserError(
        f'image_px={image_px} is not divisible by the patch of '
        f'{config.patch_px}: set it to '
        f'{image_px // config.patch_px * config.patch_px}')
  table = positions.resize_learned(
      params['pos_embed'], config.grid((image_px, image_px)),
      offset=config.interpolate_offset,
      antialias=config.interpolate_antialias)
  return (dataclasses.replace(config, image_px=image_px),
          params | {'pos_embed': np.asarray(table)})


def _hf_config(path: str) -> Config:
  place = pathlib.Path(path).expanduser()
  config = (place if place.is_dir() else place.parent) / 'config.json'
  if not config.exists():
    raise errors.UserError(
        f'{path} has names of transformers, and {config} is missing: give '
        'the whole folder of the model')
  return hf.config(json.loads(config.read_text()))


def _pixels(path: str) -> dict:
  """Mean and deviation that preprocessor_config.json states, if it does."""
  place = pathlib.Path(path).expanduser()
  told = (place if place.is_dir() else place.parent) / hf.PREPROCESSOR
  values = json.loads(told.read_text()) if told.exists() else {}
  return {ours: tuple(values[theirs]) for ours, theirs in (
      ('mean', 'image_mean'), ('std', 'image_std')) if theirs in values}
