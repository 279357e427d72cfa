"""Any weight file that is known, as a configuration and parameters."""

import dataclasses
import json
import pathlib

import jax
import numpy as np

from dinojax.core import errors
from dinojax.core import tree
from dinojax.interop import files
from dinojax.interop import hf
from dinojax.interop import meta
from dinojax.interop import timm
from dinojax.interop import translate
from dinojax.models import convnext
from dinojax.models import network
from dinojax.models import positions
from dinojax.models import vit
from dinojax.parallel import mesh as mesh_lib

Config = vit.ViTConfig | convnext.ConvNeXtConfig


@dataclasses.dataclass(frozen=True)
class Weights:
  """A backbone as read.

  Attributes:
    config: of the backbone.
    params: its parameters, float32 numpy.
    entries: what else the file holds, see `meta.complete`.
    family: 'meta', 'hf' or 'timm'.
  """

  config: Config
  params: tree.Tree
  entries: dict[str, np.ndarray]
  family: str


def read(path: str, *, num_heads: int | None = None,
         image_px: int | None = None) -> Weights:
  """Reads a backbone from a file or folder, whatever family it is of.

  Args:
    path: see `files.read`; beside it, Hugging Face folders hold config.json.
    num_heads: for sizes that were never published.
    image_px: side that learned positions are resampled to; None keeps them.

  Raises:
    UserError: not a known file, or not the weights it should hold.
  """
  state = files.read(path)
  if hf.recognises(state):
    config, entries, family = _hf_config(path), {}, 'hf'
    state, table = hf.complete(state), hf.table(config)
  elif timm.recognises(state):
    state, entries, family = timm.complete(state), {}, 'timm'
    config = timm.config(state, num_heads)
    table = timm.table(config)
  elif meta.recognises(state):
    (state, entries), family = meta.complete(state), 'meta'
    config = meta.config(state, entries, num_heads)
    table = meta.table(config)
  else:
    raise errors.UserError(
        f'{path} holds no DINOv2 or DINOv3 backbone: its tensors begin with '
        f'{", ".join(list(state)[:3])}')
  params = translate.to_ours(state, table, shapes(config), source=path)
  if image_px is not None:
    config, params = resample(config, params, image_px)
  return Weights(config, params, entries, family)


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
