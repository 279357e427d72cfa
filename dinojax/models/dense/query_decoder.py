"""Queries that look at parts of maps, each at its own mask, and predict.

Source: Mask2Former's masked transformer decoder, in the form of DINOv3.
"""

from collections.abc import Sequence
import dataclasses
import math

from einops import rearrange
import jax
import jax.numpy as jnp

from dinojax.core import tree
from dinojax.kernels import resample
from dinojax.models import positions
from dinojax.models.dense import deformable
from dinojax.models.dense import parts
from dinojax.models.dense import queries as queries_lib
from dinojax.parallel import sharding

Array = jax.Array
NUM_LEVELS = 3
EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes of a decoder.

  Attributes:
    width: channels of the maps that are looked at.
    hidden: width of the queries.
    channels: channels of the map of features, and of a query's mask.
    num_classes: classes, without that of no object.
    num_queries: queries.
    num_heads: heads of the attention.
    ffn: width of the feed-forward layers.
    num_layers: layers.
    pre_norm: True normalises what enters a branch, False what leaves it.
    projects: True puts a layer before the maps, as their channels need it.
  """

  width: int
  hidden: int
  channels: int
  num_classes: int
  num_queries: int = 100
  num_heads: int = 16
  ffn: int = 4096
  num_layers: int = 9
  pre_norm: bool = False
  projects: bool = False

  @property
  def has_inputs(self) -> bool:
    """True: a layer stands before the maps."""
    return self.projects or self.width != self.hidden


def init(key: Array, config: Config) -> tree.Tree:
  """Random parameters; those of the layers are a stack [l, …]."""
  c, keys = config, iter(jax.random.split(key, 16))
  norm = lambda: queries_lib.norm_init(c.hidden)
  table = lambda count: jax.random.normal(next(keys), (count, c.hidden))

  def ffn(key, inputs, outputs):
    kernel = parts.xavier(key, (inputs, outputs))['kernel']
    return parts.uniform(key, (inputs, outputs), inputs) | {'kernel': kernel}

  def attention(key):
    keys = jax.random.split(key)
    return {'qkv': parts.xavier(keys[0], (c.hidden, 3 * c.hidden)),
            'output': parts.xavier(keys[1], (c.hidden, c.hidden))}

  def layer(key):
    keys = jax.random.split(key, 4)
    return {'cross': attention(keys[0]), 'cross_norm': norm(),
            'self': attention(keys[1]), 'self_norm': norm(),
            'fc1': ffn(keys[2], c.hidden, c.ffn),
            'fc2': ffn(keys[3], c.ffn, c.hidden), 'norm': norm()}

  out = {
      'queries': table(c.num_queries), 'places': table(c.num_queries),
      'levels': table(NUM_LEVELS),
      'layers': jax.vmap(layer)(jax.random.split(next(keys), c.num_layers)),
      'norm': norm(),
      'class': parts.uniform(next(keys), (c.hidden, c.num_classes + 1),
                             c.hidden),
      'mask': {str(i): parts.uniform(next(keys), (c.hidden, outputs), c.hidden)
               for i, outputs in enumerate((c.hidden, c.hidden, c.channels))}}
  if c.has_inputs:
    out['inputs'] = {str(i): parts.within(
        next(keys), (c.width, c.hidden), math.sqrt(3 / c.width))
                     for i in range(NUM_LEVELS)}
  return out


def apply(params: tree.Tree, config: Config, features: Array,
          maps: Sequence[Array]) -> list[queries_lib.Predicted]:
  """Predictions before each layer, and the last one, which is the best.

  Args:
    params: see `init`.
    config: sizes.
    features: [b, y, x, c] that masks are products with.
    maps: three of [b, y, x, d], of which layers look at one after the other.
  """
  sources = [_source(params, config, i, x) for i, x in enumerate(maps)]
  # Masks at the size of a map are products with the features at that size.
  coarse = [deformable.joined([resample.resize_linear(
      jax.lax.stop_gradient(features), x.shape[1:3])]) for x in maps]

  def turn(x, layers):
    """Queries after a layer for each of some maps, and states before them."""
    states, start = [], x
    for i in range(len(jax.tree.leaves(layers)[0])):
      states.append(_state(params, x))
      x = _layer(jax.tree.map(lambda leaf, i=i: leaf[i], layers), config, x,
                 params['places'][None], *sources[i],
                 looks(states[-1][1], coarse[i]))
    return sharding.as_rows_of(x, start), jax.tree.map(
        lambda *each: jnp.stack(each), *states)

  shape = features.shape[0], *params['queries'].shape
  x = sharding.as_rows_of(
      jnp.broadcast_to(params['queries'][None], shape), features)
  turns, rest = divmod(config.num_layers, NUM_LEVELS)
  whole = turns * NUM_LEVELS
  states = []
  if turns:
    x, each = jax.lax.scan(turn, x, jax.tree.map(lambda leaf: leaf[
        :whole].reshape(turns, NUM_LEVELS, *leaf.shape[1:]), params['layers']))
    states += [jax.tree.map(lambda leaf, i=i: leaf[divmod(i, NUM_LEVELS)],
                            each) for i in range(whole)]
  if rest:
    x, each = turn(x, jax.tree.map(lambda leaf: leaf[whole:],
                                   params['layers']))
    states += [jax.tree.map(lambda leaf, i=i: leaf[i], each)
               for i in range(rest)]
  pixels = deformable.joined([features])  # else each product turns them
  return [queries_lib.Predicted(
      parts.linear(params['class'], state), rearrange(
          _products(masks, pixels), 'b n (y x) -> b n y x',
          y=features.shape[1]))
          for state, masks in (*states, _state(params, x))]


def looks(masks: Array, coarse: Array) -> Array:
  """[b, 1, n, m] bool: where queries look: at their masks, or everywhere.

  Args:
    masks: [b, n, c] of the queries; no gradient passes.
    coarse: [b, m, c] features.
  """
  inside = _products(jax.lax.stop_gradient(masks), coarse) >= 0
  return (inside | ~inside.any(-1, keepdims=True))[:, None]


def _products(masks: Array, pixels: Array) -> Array:
  """[b, n, m] of [b, n, c] with pixels [b, m, c]."""
  return jnp.einsum('bnc,bmc->bnm', masks, pixels, precision='highest')


def _source(params: tree.Tree, config: Config, level: int, x: Array
            ) -> tuple[Array, Array]:
  """[b, m, d] keys and values of a map."""
  size = x.shape[1:3]
  if config.has_inputs:
    x = parts.linear(params['inputs'][str(level)], x)
  values = deformable.joined([x]) + params['levels'][level][None, None]
  return values + positions.sine(size, config.hidden)[None], values


def _state(params: tree.Tree, x: Array) -> tuple[Array, Array]:
  """[b, n, d] normed queries, and [b, n, c] what their masks are made of."""
  state = masks = queries_lib.normed(params['norm'], x, EPSILON)
  for i in range(3):
    masks = parts.linear(params['mask'][str(i)], masks)
    masks = jax.nn.relu(masks) if i < 2 else masks
  return state, masks


def _layer(part: tree.Tree, config: Config, x: Array, places: Array,
           keys: Array, values: Array, looks: Array) -> Array:
  """Queries [b, n, d] after they have seen a map, and each other."""
  def branch(name, x, function):
    normed = lambda y: queries_lib.normed(part[name], y, EPSILON)
    return x + function(normed(x)) if config.pre_norm else normed(
        x + function(x))

  x = branch('cross_norm', x, lambda y: _attend(
      part['cross'], config, y + places, keys, values, looks))
  x = branch('self_norm', x, lambda y: _attend(
      part['self'], config, y + places, y + places, y))
  return branch('norm', x, lambda y: parts.linear(
      part['fc2'], jax.nn.relu(parts.linear(part['fc1'], y))))


def _attend(part: tree.Tree, config: Config, queries: Array, keys: Array,
            values: Array, looks: Array | None = None) -> Array:
  """[b, n, d] of queries at keys and values [b, m, d]."""
  kernels, biases = (jnp.split(part['qkv'][name], 3, axis=-1)
                     for name in ('kernel', 'bias'))
  heads = [parts.heads(parts.linear({'kernel': kernel, 'bias': bias}, x),
                       config.num_heads) for kernel, bias, x in zip(
                           kernels, biases, (queries, keys, values),
                           strict=True)]
  return parts.linear(part['output'], parts.attended(*heads, looks))
