"""Specs of features of a backbone, and the pass that computes them."""

from collections.abc import Mapping, Sequence
import dataclasses
import numbers
from typing import Any

import einops
from flax import nnx
import jax
import jax.numpy as jnp

from dinojax.core import errors
from dinojax.features import windowed

Array = jax.Array
Outputs = dict[str, Array]
TOKENS = ('cls', 'mean', 'registers', 'patches', 'map')
ATTENTION = ('keys', 'attention', 'cls_attention')
PLACES = ('final', 'normed', 'raw', 'before')


@dataclasses.dataclass(frozen=True)
class FeatureSpec:
  """Features of some layers of a backbone, blocks of a ViT or stages.

  Attributes:
    outputs: any of 'cls' [b, d], 'mean' of the patches [b, d], 'registers'
      [b, n, d], 'patches' [b, p, d], 'map' [b, y, x, d], the patches on their
      grid; of a ViT also 'keys' [b, n, d] of the layer's attention, heads one
      after the other, before RoPE turns them, 'attention' [b, h, n, n], and
      'cls_attention' [b, h, n], that of CLS alone.
    layers: how many of the last, or which, counted from 0.
    place: 'final': what the last layer gives, as training sees it; 'normed':
      after the layer and the final norm, patches of a ConvNeXt on the grid of
      its patch_px, if it has one; 'raw': after it without the norm; 'before':
      what enters it, without the norm. Keys and attention are within.
    windows: windows along a side that images are cut into, see
      features.windowed; maps are then [b, y, x, 2 d]. 0: they are whole.
  """

  outputs: tuple[str, ...] = ('cls',)
  layers: int | tuple[int, ...] = 1
  place: str = 'normed'
  windows: int = 0

  def __post_init__(self):
    for name in ('outputs', 'layers'):
      value = getattr(self, name)
      if isinstance(value, str):
        raise errors.UserError(f'{name}={value!r} is a text: give ({value!r},)')
      if not isinstance(value, numbers.Integral):  # equal specs: one program
        object.__setattr__(self, name, tuple(value))

  def indices(self, depth: int) -> tuple[int, ...]:
    """The layers that are read, in the order of their depth."""
    if isinstance(self.layers, numbers.Integral):
      return tuple(range(depth - self.layers, depth))
    return tuple(sorted(self.layers))

  def check(self, config: Any):
    """Refuses what a backbone does not have.

    Raises:
      UserError: no such output, place or layer.
    """
    known = TOKENS + ATTENTION
    for name in self.outputs:
      if name not in known:
        raise errors.UserError(
            f'{name!r} is no output of a backbone: give some of '
            f'{", ".join(known)}')
      if name in ATTENTION and not config.has_attention:
        raise errors.UserError('a ConvNeXt has no attention')
    if self.place not in PLACES:
      raise errors.UserError(
          f'place={self.place!r} is not known: give one of '
          f'{", ".join(PLACES)}')
    if self.place == 'final' and self.layers != 1:
      raise errors.UserError(
          f"place='final' is of the last layer, and layers={self.layers}: "
          "give layers=1, or place='normed'")
    depth, indices = config.depth, self.indices(config.depth)
    if not indices or min(indices) < 0 or max(indices) >= depth:
      raise errors.UserError(
          f'layers={self.layers} are not in this model of {depth}: give a '
          f'number up to {depth}, or indices from 0 to {depth - 1}')
    if self.windows and (self.outputs != ('map',) or not config.has_attention):
      raise errors.UserError(
          f'windows={self.windows} are of maps of a ViT alone: give '
          "outputs=('map',), or windows=0")
    if self.place == 'before' and not (config.has_attention or min(indices)):
      raise errors.UserError(
          'images enter the first stage of a ConvNeXt, and no features: give '
          f'layers from 1 to {depth - 1}')

  def widths(self, config: Any) -> tuple[int, ...]:
    """Width of each layer that is read, in order: d, or 2 d of windows."""
    before = self.place == 'before' and not config.has_attention
    return tuple(config.layer_dims[i - before] * (2 if self.windows else 1)
                 for i in self.indices(config.depth))


def compute(net: nnx.Module, images: Array,
            specs: Mapping[str, FeatureSpec],
            draws: Mapping[str, Array] | None = None, *,
            frozen: bool = True) -> dict[str, list[Outputs]]:
  """Features of images for several specs, in one pass of the backbone.

  Args:
    net: the backbone, as a call of network.Functional.apply gets it.
    images: [b, y, x, c] normalised; of several frames [b, v, y, x, c], and v
      then follows b in all arrays.
    specs: outputs and layers to read, by name; see FeatureSpec.check.
    draws: see models.randomness, of one kind of crops; None: nothing is
      random.
    frozen: False: the backbone gets gradients, which take a copy of blocks.

  Returns:
    By name, for every layer in the order of its depth, arrays by output.
  """
  if images.ndim == 5:
    count = images.shape[1]
    flat = einops.rearrange(images, 'b v y x c -> (b v) y x c')
    return jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]),
                        compute(net, flat, specs, draws, frozen=frozen))
  depth, wanted = net.config.depth, []
  out, whole = {}, {}
  for name, spec in specs.items():
    if spec.windows:
      out[name] = _in_windows(net, images, spec, draws, frozen)
      continue
    whole[name] = spec
    kinds = [name for name in spec.outputs if name in ATTENTION]
    if any(name in TOKENS for name in spec.outputs):
      kinds.append(spec.place)
    wanted += [(kind, i) for i in spec.indices(depth) for kind in kinds]
  wanted = list(dict.fromkeys(wanted))
  read = net.read(images, wanted, draws, frozen=frozen) if wanted else []
  activations = dict(zip(wanted, read, strict=True))
  return out | {
      name: [_outputs(net.config, activations, images.shape[1:3], spec, i)
             for i in spec.indices(depth)]
      for name, spec in whole.items()}


def _in_windows(net: nnx.Module, images: Array, spec: FeatureSpec,
                draws: Mapping[str, Array] | None,
                frozen: bool) -> list[Outputs]:
  """Maps of layers, see features.windowed."""
  alone = dataclasses.replace(spec, windows=0)

  def read(images):
    layers = compute(net, images, {'': alone}, draws, frozen=frozen)['']
    return [layer['map'] for layer in layers]

  return [{'map': x} for x in windowed.maps(
      read, images, spec.windows, net.config.side_px)]


def _outputs(config: Any, activations: dict, image_px: tuple[int, int],
             spec: FeatureSpec, layer: int) -> Outputs:
  """The outputs of one layer, of all that was computed."""
  out = {}
  for name in spec.outputs:
    if name in ATTENTION:
      out[name] = activations[name, layer]
      continue
    features = activations[spec.place, layer]
    if name == 'mean':
      out[name] = features['patches'].mean(axis=1)
    elif name == 'map':
      before = spec.place == 'before' and not config.has_attention
      grid = (config.grid(image_px) if spec.place == 'final'
              else config.layer_grid(image_px, layer - before))
      out[name] = einops.rearrange(
          features['patches'], 'b (y x) d -> b y x d', y=grid[0], x=grid[1])
    else:
      out[name] = features[name]
  return out


def probe_input(layers: Sequence[Outputs], num_layers: int,
                average_patches: bool) -> Array:
  """[b, n·d (+ d)] features of a linear probe, float32.

  Args:
    layers: outputs of the last blocks, oldest first: cls [b, d], and mean
      [b, d] or patches [b, p, d].
    num_layers: how many of the last are joined, n.
    average_patches: appends the mean patch of the last block.
  """
  columns = [layer['cls'] for layer in layers[-num_layers:]]
  if average_patches:
    last = layers[-1]
    columns.append(last['mean'] if 'mean' in last
                   else last['patches'].mean(axis=1))
  return jnp.concatenate(columns, axis=-1).astype(jnp.float32)
