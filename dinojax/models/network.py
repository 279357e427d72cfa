"""A backbone with its heads, and any module as pure functions."""

from collections.abc import Callable, Hashable
import dataclasses
import functools
from typing import Any

import einops
from flax import nnx
import jax
import jax.numpy as jnp

from dinojax.core import tree
from dinojax.models import families
from dinojax.models import heads
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import sharding


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
  """A backbone and its heads; a head that no loss uses is None."""

  backbone: families.Config
  dino_head: heads.HeadConfig | None
  ibot_head: heads.HeadConfig | None
  shared_head: bool = False  # patches go through the DINO head (DINOv2 short)
  # The crops have a token for so many pixels, by each side; None: as the
  # backbone has. Others are resized, so that grids of tokens agree.
  crops_token_px: int | None = None


def fit_crops(crops: jax.Array, old_token_px: int,
              new_token_px: int) -> jax.Array:
  """[r, y, x, c] crops with as many tokens at another size of tokens.

  Source: DINOv3's distillation into ConvNeXt: bilinear, antialiased.
  """
  if old_token_px == new_token_px:
    return crops
  r, y, x, c = crops.shape
  size = [n // old_token_px * new_token_px for n in (y, x)]
  out = jax.image.resize(
      crops.astype(jnp.float32), (r, *size, c), 'linear', antialias=True)
  return out.astype(crops.dtype)


class Network(nnx.Module):
  """Network of a student or teacher: a backbone with its heads."""

  def __init__(self, config: NetworkConfig, *, rngs: nnx.Rngs):
    self.config = config
    width = config.backbone.embed_dim
    dtype = config.backbone.compute_dtype
    self.backbone = families.make(config.backbone, rngs=rngs)
    if config.dino_head:
      self.dino_head = heads.Head(
          width, config.dino_head, dtype=dtype, rngs=rngs)
    if config.ibot_head and not config.shared_head:
      self.ibot_head = heads.Head(
          width, config.ibot_head, dtype=dtype, rngs=rngs)

  def __call__(self, rows: dict, *, train: bool,
               patches: bool = False) -> dict:
    """One process's rows through backbone and heads.

    Args:
      rows: crops {kind: [r, y, x, c]}; masks {kind: [r, p]} or absent; draws
        (see models.randomness) or absent; mask_index [g, m], positions in the
        patches (row by row) of each group's global crops, or absent.
      train: True for the student: untied local CLS norm.
      patches: True returns all patches of the global crops too.

    Returns:
      cls {kind: [r, d]} normed, float32; dino {kind: [r, k]} logits; ibot
      [g, m, k] logits of the masked patches; patches [r, p, d] normed. Split
      over devices as `output_specs` says.
    """
    token_px = self.config.backbone.token_px
    crops = {
        kind: fit_crops(x, self.config.crops_token_px or token_px, token_px)
        for kind, x in rows['crops'].items()}
    features = self.backbone(
        crops, masks=rows.get('masks'), draws=rows.get('draws'), train=train)
    out = {'cls': {kind: f['cls'] for kind, f in features.items()}}
    if patches:
      out['patches'] = features['global']['patches']
    if self.config.dino_head:
      logits = self.dino_head.on_parts(
          [f['cls'] for f in features.values()])
      out['dino'] = dict(zip(features, logits, strict=True))
    if self.config.ibot_head and 'mask_index' in rows:
      head = (self.dino_head if self.config.shared_head else self.ibot_head)
      index = rows['mask_index']
      patches = features['global']['patches']
      patches = einops.rearrange(
          patches, '(g r) p d -> g (r p) d', g=index.shape[0])
      out['ibot'] = head(jax.vmap(lambda p, i: p[i])(patches, index))
    return out


def output_specs(config: NetworkConfig, rows: dict, patches: bool) -> dict:
  """How the outputs of a `Network` for these arguments are split."""
  specs = {'cls': sharding.ROWS}
  if patches:
    specs['patches'] = sharding.ROWS
  if config.dino_head:
    specs['dino'] = sharding.columns(2)
  if config.ibot_head and 'mask_index' in rows:
    specs['ibot'] = sharding.columns(3)
  return specs


@functools.lru_cache(maxsize=64)
def functional(module: Callable[..., nnx.Module], config: Any,
               mesh: jax.sharding.Mesh) -> 'Functional':
  """`module(config, rngs=…)` as pure functions; made once, so do not change it.

  Building a module to learn its shapes takes a good part of a second, and a
  run asks for the same ones several times.
  """
  return Functional(lambda rngs: module(config, rngs=rngs), mesh)


class Functional:
  """An nnx module as pure functions of a plain nested dict of parameters.

  Attributes:
    config: config of the module.
    shapes: abstract parameters.
    specs: PartitionSpecs of the parameters on the mesh.
  """

  def __init__(self, make: Callable[[nnx.Rngs], nnx.Module],
               mesh: jax.sharding.Mesh):
    abstract = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    sharding.annotate(abstract, mesh)
    self._make = make
    self.config = getattr(abstract, 'config', None)
    self._graphdef, _ = nnx.split(abstract)
    self.shapes = nnx.to_pure_dict(nnx.state(abstract, nnx.Param))
    self.specs = sharding.specs(self.shapes, mesh)
    self._mesh, self._programs = mesh, {}

  def init(self, key: jax.Array) -> tree.Tree:
    """Fresh parameters, float32; call under jit."""
    return nnx.to_pure_dict(
        nnx.state(self._make(nnx.Rngs(key)), nnx.Param))

  def apply(self, params: tree.Tree, rows: tree.Tree,
            call: Callable[[nnx.Module, tree.Tree], tree.Tree],
            out_specs: tree.Tree = sharding.ROWS) -> tree.Tree:
    """`call(module, rows)` on every device's own rows.

    Args:
      params: global parameters, split as `specs`.
      rows: tree of arrays whose leading axis is split over all devices.
      call: function to run; gets the module with the device's parts of the
        parameters (see sharding.gather) and its rows.
      out_specs: prefix of the specs of what `call` returns: ROWS, or
        sharding.columns.

    Returns:
      A tree of arrays with rows leading.
    """
    def local(params, rows):
      return call(
          nnx.merge(self._graphdef, sharding.varying(params)), rows)

    return jax.shard_map(
        local, in_specs=(self.specs, sharding.ROWS),
        out_specs=out_specs)(params, rows)

  def program(self, name: Hashable, call: Callable[
      [nnx.Module, tree.Tree], tree.Tree]) -> Callable[..., tree.Tree]:
    """`apply` of a call as a jitted function of parameters and rows.

    There is one for a name, whatever parameters it is for: a second model of
    the same configuration compiles nothing.
    """
    if name not in self._programs:
      self._programs[name] = jax.jit(
          lambda params, rows: self.apply(params, rows, call),
          compiler_options=mesh_lib.compiler_options(self._mesh))
    return self._programs[name]

  def outputs(self, params: tree.Tree, rows: dict, *, train: bool,
              patches: bool = False) -> dict:
    """Outputs of a `Network` for global rows, see its `__call__`."""
    return self.apply(
        params, rows,
        functools.partial(Network.__call__, train=train, patches=patches),
        output_specs(self.config, rows, patches))
