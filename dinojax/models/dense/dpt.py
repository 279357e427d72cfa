"""DPT: maps of four blocks become one map, sixteen times as fine as patches.

Every map is read out (CLS joins it, or not), projected, brought to a size of
its own, and merged with the coarser ones. Parameters and statistics are nested
dicts by the names of the parts; maps are global arrays [b, y, x, c].
"""

from collections.abc import Sequence
import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp

from dinojax.core import tree
from dinojax.kernels import resample
from dinojax.models.dense import batch_norm
from dinojax.models.dense import parts

Array = jax.Array
LEVELS = 4
READOUTS = ('ignore', 'add', 'project')
_HIGHEST = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes of a head.

  Attributes:
    channels: channels of the merged maps.
    projected: channels of each of the four maps before.
    num_outputs: values of a pixel.
    readout: how CLS joins a map: 'ignore', 'add', or 'project', by a layer on
      both.
    hidden: channels before the last layer.
    norm: True puts a batch norm before each projection.
    bias: True gives the residual units biases.
    projects: True puts a convolution between the merged map and the output.
  """

  channels: int = 256
  projected: tuple[int, int, int, int] = (1024,) * LEVELS
  num_outputs: int = 256
  readout: Literal['ignore', 'add', 'project'] = 'ignore'
  hidden: int = 32
  norm: bool = False
  bias: bool = False
  projects: bool = True

  def __post_init__(self):
    """Checks the read-out.

    Raises:
      ValueError: another one.
    """
    if self.readout not in READOUTS:
      raise ValueError(f'readout={self.readout!r} is not known: use one of '
                       f'{", ".join(READOUTS)}')


def of_dinov2(width: int, channels: int | None = None) -> Config:
  """DINOv2's head of regressed depth, for a backbone of a width."""
  return Config(channels=channels or 256, num_outputs=1, readout='project',
                projected=tuple(width // 2 ** i for i in (3, 2, 1, 0)))


def of_dinov3(width: int, channels: int | None = None) -> Config:
  """DINOv3's head of 256 classes of depth, for a backbone of a width."""
  return Config(channels=channels or 512, norm=True,
                projected=(min(width, 2048),) * LEVELS)


def of_depth_anything(width: int, channels: int | None = None) -> Config:
  """Depth Anything's head of inverse depth, for a backbone of a width."""
  return Config(channels=channels or 256, num_outputs=1,
                projected=tuple(width // 2 ** i for i in (2, 1, 0, 0)))


def of_canopies(width: int, channels: int | None = None,
                num_outputs: int = 256) -> Config:
  """CHMv2's head of canopy height, for a backbone of a width."""
  return Config(channels=channels or 256, num_outputs=num_outputs,
                projected=tuple(width // 2 ** i for i in (3, 2, 1, 0)),
                readout='project', hidden=128, bias=True, projects=False)


def init(key: Array, config: Config, widths: Sequence[int]
         ) -> tuple[tree.Tree, tree.Tree]:
  """Random parameters, and statistics that change nothing.

  Args:
    key: random key.
    config: sizes.
    widths: widths of the four maps.

  Source: DINOv3: convolutions that end in ReLU have Kaiming's normal weights,
    the others PyTorch's uniform ones.
  """
  c, keys = config, iter(jax.random.split(key, 64))
  params = {'reassemble': {}, 'convs': {}, 'fusion': {}}
  stats = {}
  for i, (width, channels) in enumerate(zip(widths, c.projected, strict=True)):
    part = {'project': _kaiming(next(keys), 1, width, channels)}
    if c.readout == 'project':
      part['readout'] = parts.uniform(next(keys), (2 * width, width), 2 * width)
    if c.norm:
      part['norm'], stats[str(i)] = batch_norm.init(width)
    if i < 2:  # each pixel becomes a square of pixels
      side = 4 // 2 ** i
      # PyTorch counts the outputs of a transposed convolution as its inputs.
      part['resize'] = parts.uniform(
          next(keys), (channels, side, side, channels), channels * side ** 2)
    elif i == 3:
      part['resize'] = parts.uniform(
          next(keys), (3, 3, channels, channels), 9 * channels)
    params['reassemble'][str(i)] = part
    params['convs'][str(i)] = _kaiming(
        next(keys), 3, channels, c.channels, bias=False)
    params['fusion'][str(i)] = {
        'project': _kaiming(next(keys), 1, c.channels, c.channels)} | {
            unit: {conv: _kaiming(next(keys), 3, c.channels, c.channels,
                                  bias=c.bias) for conv in ('conv1', 'conv2')}
            for unit in (('unit1', 'unit2') if i else ('unit2',))}
  if c.projects:
    params['project'] = _kaiming(next(keys), 3, c.channels, c.channels)
  sizes = ((3, c.channels, c.channels // 2), (3, c.channels // 2, c.hidden),
           (1, c.hidden, c.num_outputs))
  params['head'] = {f'conv{i}': parts.uniform(
      next(keys), (side, side, inputs, outputs), side ** 2 * inputs)
                    for i, (side, inputs, outputs) in enumerate(sizes)}
  return params, stats


def apply(params: tree.Tree, stats: tree.Tree, config: Config,
          maps: Sequence[Array], cls: Sequence[Array] | None = None,
          weight: Array | None = None) -> tuple[Array, tree.Tree]:
  """Values of pixels, and the running statistics after them.

  Args:
    params: see `init`.
    stats: see `init`.
    config: sizes.
    maps: four of [b, y, x, d], of the first block first.
    cls: four of [b, d]; None where the read-out ignores them.
    weight: [b] in training, see batch_norm.apply.

  Returns:
    [b, 32·⌈y/2⌉, 32·⌈x/2⌉, k] float32.

  Source: the depth heads of DINOv2 and DINOv3, whose grids of an odd number
    of patches become more than sixteen times as fine.
  """
  merged, stats = merge(params, stats, config, maps, cls, weight)
  return head(params, merged), stats


def merge(params: tree.Tree, stats: tree.Tree, config: Config,
          maps: Sequence[Array], cls: Sequence[Array] | None = None,
          weight: Array | None = None, *,
          places: Sequence[Array] | None = None) -> tuple[Array, tree.Tree]:
  """[b, 16·⌈y/2⌉, 16·⌈x/2⌉, c] the merged map, see `apply`.

  With `places`, four of [y, x, c], these are added to the projected maps.
  """
  levels, new = [], {}
  for i, grid in enumerate(maps):
    part, key = params['reassemble'][str(i)], str(i)
    x = _read_out(config.readout, part, grid.astype(jnp.float32),
                  None if cls is None else cls[i])
    if config.norm:
      x, new[key] = batch_norm.apply(part['norm'], stats[key], x, weight)
    x = parts.conv(part['project'], x)
    if places is not None:
      x = x + places[i][None]
    x = _resized(i, part, x)
    levels.append(parts.conv(params['convs'][key], x))
  out = None
  for i, x in enumerate(reversed(levels)):
    out = _fused(params['fusion'][str(i)], x, out)
  if config.projects:
    out = jax.nn.relu(parts.conv(params['project'], out))
  return out, new


def head(params: tree.Tree, merged: Array) -> Array:
  """[b, 2 y, 2 x, k] values of pixels of a merged map [b, y, x, c]."""
  x = parts.conv(params['head']['conv0'], merged)
  x = resample.resize_corners(x, (2 * x.shape[1], 2 * x.shape[2]))
  x = jax.nn.relu(parts.conv(params['head']['conv1'], x))
  return parts.conv(params['head']['conv2'], x)


def _read_out(way: str, part: tree.Tree, grid: Array,
              cls: Array | None) -> Array:
  """The map, with CLS or without it."""
  if way == 'ignore':
    return grid
  cls = cls.astype(jnp.float32)[:, None, None]
  if way == 'add':
    return grid + cls
  kernel, width = part['readout']['kernel'], grid.shape[-1]
  product = lambda x, kernel: jnp.einsum(
      'byxd,de->byxe', x, kernel, precision=_HIGHEST)
  return jax.nn.gelu(
      product(grid, kernel[:width]) + product(cls, kernel[width:])
      + part['readout']['bias'][None, None, None], approximate=False)


def _resized(level: int, part: tree.Tree, x: Array) -> Array:
  """The map of a level at its size: 4 ×, 2 ×, 1 × or half the patches."""
  if level == 2:
    return x
  if level == 3:
    return parts.conv(part['resize'], x, stride=2)
  return parts.grown(part['resize'], x)


def _fused(part: tree.Tree, x: Array, coarser: Array | None) -> Array:
  """Twice as fine a map, of a level and of what is coarser."""
  if coarser is None:
    out = x
  else:
    if coarser.shape != x.shape:  # twice a half that was rounded up
      x = resample.resize_linear(x, coarser.shape[1:3])
    out = coarser + _unit(part['unit1'], x)
  out = _unit(part['unit2'], out)
  out = resample.resize_corners(out, (2 * out.shape[1], 2 * out.shape[2]))
  return parts.conv(part['project'], out)


def _unit(part: tree.Tree, x: Array) -> Array:
  """Adds two convolutions to a map."""
  return x + parts.conv(part['conv2'], jax.nn.relu(
      parts.conv(part['conv1'], jax.nn.relu(x))))


def _kaiming(key: Array, side: int, inputs: int, outputs: int, *,
             bias: bool = True) -> tree.Tree:
  """A convolution whose outputs keep the deviation of a gradient."""
  std = math.sqrt(2 / (side ** 2 * outputs))
  kernel = std * jax.random.normal(key, (side, side, inputs, outputs))
  return {'kernel': kernel} | ({'bias': jnp.zeros(outputs)} if bias else {})
