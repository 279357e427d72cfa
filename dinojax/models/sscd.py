"""SSCD: a residual network whose rows tell copies of an image from others.

It is only run, never trained: batch norms are folded into convolutions.
"""

from collections.abc import Mapping
import dataclasses
import re

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from dinojax.core import errors

Array = jax.Array
_EPSILON = 1e-5  # of the batch norms
GEM_POWER, GEM_FLOOR = 3.0, 1e-6
_NORM_FLOOR = 1e-12


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes of a network, as the shapes of its weights tell them."""

  stem: int  # channels after the first convolution
  blocks: tuple[int, ...]  # of every stage
  inner: tuple[int, ...]  # channels inside the blocks of every stage
  outer: tuple[int, ...]  # channels after them
  groups: int  # of the 3 × 3 convolutions
  bottleneck: bool  # three convolutions a block, or two
  dims: int  # length of a row


def gem(x: Array, power: float = GEM_POWER, floor: float = GEM_FLOOR) -> Array:
  """Generalised mean over positions: [b, y, x, c] to [b, c].

  Source: Radenović et al., Fine-tuning CNN image retrieval, 2018.
  """
  return (jnp.maximum(x, floor) ** power).mean((1, 2)) ** (1 / power)


def _conv(inputs: int, outputs: int, size: int, stride: int = 1,
          groups: int = 1, *, rngs: nnx.Rngs) -> nnx.Conv:
  return nnx.Conv(inputs, outputs, (size, size), stride,
                  padding=size // 2, feature_group_count=groups, rngs=rngs,
                  precision=jax.lax.Precision.HIGHEST)


class Block(nnx.Module):
  """Adds two or three convolutions to the map, or to a projection of it."""

  def __init__(self, inputs: int, inner: int, outputs: int, stride: int,
               config: Config, *, project: bool, rngs: nnx.Rngs):
    """Makes convolutions of random weights."""
    if config.bottleneck:
      self.conv1 = _conv(inputs, inner, 1, rngs=rngs)
      self.conv2 = _conv(inner, inner, 3, stride, config.groups, rngs=rngs)
      self.conv3 = _conv(inner, outputs, 1, rngs=rngs)
    else:
      self.conv1 = _conv(inputs, inner, 3, stride, rngs=rngs)
      self.conv2 = _conv(inner, outputs, 3, rngs=rngs)
      self.conv3 = None
    self.downsample = _conv(inputs, outputs, 1, stride,
                            rngs=rngs) if project else None

  def __call__(self, x: Array) -> Array:
    """Map [b, y, x, c] to the map of the block."""
    y = self.conv2(nnx.relu(self.conv1(x)))
    if self.conv3 is not None:
      y = self.conv3(nnx.relu(y))
    return nnx.relu(y + (x if self.downsample is None else self.downsample(x)))


class Network(nnx.Module):
  """Unit rows of images.

  Source: Pizzi et al., A Self-Supervised Descriptor for Image Copy Detection,
  2022; the residual networks of torchvision.
  """

  def __init__(self, config: Config, *, rngs: nnx.Rngs):
    """Makes a network of random weights."""
    self.conv1 = _conv(3, config.stem, 7, 2, rngs=rngs)
    inputs, stages = config.stem, []
    for stage, (count, inner, outputs) in enumerate(zip(
        config.blocks, config.inner, config.outer, strict=True)):
      blocks = []
      for i in range(count):
        stride = 2 if stage and not i else 1
        blocks.append(Block(
            inputs, inner, outputs, stride, config, rngs=rngs,
            project=stride > 1 or inputs != outputs))
        inputs = outputs
      stages.append(nnx.List(blocks))
    self.stages = nnx.List(stages)
    self.fc = nnx.Linear(inputs, config.dims, rngs=rngs,
                         precision=jax.lax.Precision.HIGHEST)

  def map(self, x: Array) -> Array:
    """Map [b, y, x, c] of images [b, y, x, 3], normalised."""
    x = nnx.relu(self.conv1(x))
    x = nnx.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
    for stage in self.stages:
      for block in stage:
        x = block(x)
    return x

  def __call__(self, x: Array) -> Array:
    """Unit rows [b, d] float32 of images [b, y, x, 3], normalised."""
    return unit(self.fc(gem(self.map(x))))


def unit(x: Array) -> Array:
  """Rows [b, d] of length one."""
  return x / jnp.maximum(
      jnp.linalg.norm(x, axis=-1, keepdims=True), _NORM_FLOOR)


def load(state: Mapping[str, np.ndarray], source: str) -> Network:
  """A network of published weights, sizes by their shapes.

  Args:
    state: arrays by name, as the files `*.torchvision.pt` have them, with or
      without `backbone.` in front.
    source: where they are from, for messages.

  Raises:
    UserError: weights that are missing, or are of something else.
  """
  try:
    state, config = _plain(state), config_of(state)
    network = nnx.eval_shape(lambda: Network(config, rngs=nnx.Rngs(0)))
    definition, shapes = nnx.split(network)
    values, read = {}, set()
    for path, leaf in nnx.to_flat_state(shapes):
      *names, kind = map(str, path)
      values[path], used = _weight(state, names, kind)
      read |= used
      if values[path].shape != leaf.shape:
        raise errors.UserError(
            f'{source} is no SSCD network: {"/".join(names)} has shape '
            f'{values[path].shape}, not {leaf.shape}')
  except (KeyError, ValueError, IndexError) as error:
    raise errors.UserError(
        f'{source} is no SSCD network: {error} is missing. Its weights are '
        'the files *.torchvision.pt that its authors publish') from error
  unread = sorted(set(state) - read)
  if unread:
    raise errors.UserError(
        f'{source} holds {len(unread)} arrays that an SSCD network has not, '
        f'such as {unread[0]}')
  return nnx.merge(definition, nnx.from_flat_state([
      (path, leaf.replace(jnp.asarray(values[path])))
      for path, leaf in nnx.to_flat_state(shapes)]))


def _plain(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  return {name.removeprefix('backbone.'): value
          for name, value in state.items()
          if not name.endswith('num_batches_tracked')}


def config_of(state: Mapping[str, np.ndarray]) -> Config:
  """Sizes of the network that weights are of.

  Raises:
    KeyError: a weight that every network has.
  """
  state = _plain(state)
  stages = sorted({int(match[1]) for name in state
                   if (match := re.match(r'layer(\d+)\.', name))})
  first = lambda stage, conv: state[f'layer{stage}.0.{conv}.weight']
  bottleneck = 'layer1.0.conv3.weight' in state
  last = 'conv3' if bottleneck else 'conv2'
  return Config(
      stem=state['conv1.weight'].shape[0],
      blocks=tuple(len({name.split('.')[1] for name in state
                        if name.startswith(f'layer{stage}.')})
                   for stage in stages),
      inner=tuple(first(stage, 'conv1').shape[0] for stage in stages),
      outer=tuple(first(stage, last).shape[0] for stage in stages),
      groups=(first(1, 'conv2').shape[0] // first(1, 'conv2').shape[1]
              if bottleneck else 1),
      bottleneck=bottleneck, dims=state['fc.weight'].shape[0])


def _weight(state: Mapping[str, np.ndarray], names: list[str],
            kind: str) -> tuple[np.ndarray, set[str]]:
  """One of our parameters, and the names of what it is made of."""
  if names[0] == 'fc':
    name = 'fc.weight' if kind == 'kernel' else 'fc.bias'
    return state[name].T if kind == 'kernel' else state[name], {name}
  if names[0] == 'stages':
    names = [f'layer{int(names[1]) + 1}', *names[2:]]
  conv, norm = '.'.join(names), '.'.join(names).replace('conv', 'bn')
  if names[-1] == 'downsample':
    conv, norm = f'{conv}.0', f'{norm}.1'
  weight = f'{conv}.weight'
  used = {key: f'{norm}.{key}' for key in (
      'weight', 'bias', 'running_mean', 'running_var')}
  mean, variance = state[used['running_mean']], state[used['running_var']]
  factor = state[used['weight']] / np.sqrt(variance + _EPSILON)
  value = (np.transpose(state[weight] * factor[:, None, None, None],
                        (2, 3, 1, 0)) if kind == 'kernel'
           else state[used['bias']] - mean * factor)
  return value.astype(np.float32), {weight, *used.values()}
