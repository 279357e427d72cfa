"""Queries with boxes that look at a map, and move their boxes layer by layer.

Source: DINOv3's detector, which is Plain-DETR's global decoder.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from dinojax.core import tree
from dinojax.losses import boxes as boxes_lib
from dinojax.losses import detection
from dinojax.models.dense import box_attention
from dinojax.models.dense import parts
from dinojax.models.dense import queries as queries_lib
from dinojax.parallel import sharding

Array = jax.Array
EPSILON = 1e-5
_STD, _RARE = 0.02, 0.01  # weights; share of a class at the start


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes and options of a decoder.

  Attributes:
    num_classes: classes.
    hidden: width of queries and map.
    num_heads: heads of the attention.
    ffn: width of the feed-forward layers.
    num_layers: layers.
    bias_hidden: width within the networks of distances to boxes.
    stride_px: side of a cell of the map, in pixels.
    in_pixels: True: boxes are pixels, and change in parts of themselves;
      False: they are parts of the image, and change by their logits.
    log_bias: True takes logarithms of distances to boxes.
    pre_norm: True normalises what enters a branch, False what leaves it.
    looks_twice: True: a layer's loss reaches the layer before, which gave it
      its boxes.
  """

  num_classes: int
  hidden: int = 768
  num_heads: int = 8
  ffn: int = 2048
  num_layers: int = 6
  bias_hidden: int = 512
  stride_px: int = 16
  in_pixels: bool = True
  log_bias: bool = False
  pre_norm: bool = True
  looks_twice: bool = True


@dataclasses.dataclass(frozen=True)
class Map:
  """A map that queries look at.

  Attributes:
    values: [b, y, x, d].
    places: [b, y, x, d] positions, which keys have added.
    cells: [b, 2] rows and columns that are image.
  """

  values: Array
  places: Array
  cells: Array

  @property
  def inside(self) -> Array:
    """[b, y, x] bool: cells that are image."""
    rows, columns = (
        jnp.arange(n)[None] < self.cells[:, i, None]
        for i, n in enumerate(self.values.shape[1:3]))
    return rows[:, :, None] & columns[:, None]


def init(key: Array, config: Config) -> tree.Tree:
  """Random parameters; those of the layers are a stack [l, …]."""
  c = config

  def layer(key):
    keys = jax.random.split(key, 5)
    norm = lambda: queries_lib.norm_init(c.hidden)
    return {
        'cross': box_attention.init(keys[0], c.hidden, c.num_heads,
                                    c.bias_hidden), 'cross_norm': norm(),
        'self': {'qkv': parts.xavier(keys[1], (c.hidden, 3 * c.hidden)),
                 'output': _normal(keys[2], (c.hidden, c.hidden))},
        'self_norm': norm(), 'fc1': _normal(keys[3], (c.hidden, c.ffn)),
        'fc2': _normal(keys[4], (c.ffn, c.hidden)), 'norm': norm()}

  out = {'layers': jax.vmap(layer)(jax.random.split(key, c.num_layers))}
  return out | ({'norm': queries_lib.norm_init(c.hidden)} if c.pre_norm
                else {})


def head_init(key: Array, config: Config) -> tree.Tree:
  """Parameters of what a state predicts: rare classes, unmoved boxes."""
  c, keys = config, jax.random.split(key, 3)
  bias = -jnp.log((1 - _RARE) / _RARE)
  last = {'kernel': jnp.zeros((c.hidden, 4)), 'bias': jnp.zeros(4)}
  return {
      'class': parts.uniform(keys[0], (c.hidden, c.num_classes), c.hidden) | {
          'bias': jnp.full(c.num_classes, bias)},
      'box': {str(i): parts.uniform(keys[1 + i], (c.hidden, c.hidden),
                                    c.hidden) for i in range(2)} | {'2': last}}


def predict(params: tree.Tree, config: Config, states: Array, before: Array,
            extent: Array) -> detection.Predicted:
  """Classes and boxes of states.

  Args:
    params: see `head_init`.
    config: sizes and options.
    states: [b, n, d].
    before: [b, n, 4] boxes that they change.
    extent: [b, 2] width and height of the images, in pixels.
  """
  classes, changes = asked(params, states)
  boxes = _changed(config, before, changes, extent)
  if not config.in_pixels:
    return detection.Predicted(classes, boxes)
  return detection.Predicted(classes, boxes, before, changes)


def asked(params: tree.Tree, states: Array) -> tuple[Array, Array]:
  """Logits of classes, and changes of boxes."""
  x = states
  for i in range(3):
    x = parts.linear(params['box'][str(i)], x)
    x = jax.nn.relu(x) if i < 2 else x
  return parts.linear(params['class'], states), x


def _changed(config: Config, boxes: Array, changes: Array,
             extent: Array) -> Array:
  if config.in_pixels:
    return boxes_lib.moved(boxes, changes, extent[:, None])
  return jax.nn.sigmoid(boxes_lib.logits(boxes) + changes)


def apply(params: tree.Tree, heads: tree.Tree, config: Config, states: Array,
          places: Array, boxes: Array, seen: Map, extent: Array,
          blocked: Array | None = None
          ) -> tuple[detection.Predicted, Array]:
  """Predictions after each layer [l, b, n, …], and states [l, b, n, d].

  Args:
    params: see `init`.
    heads: a stack [l, …] of `head_init`.
    config: sizes and options.
    states: [b, n, d].
    places: [b, n, d] positions of the queries.
    boxes: [b, n, 4] their boxes.
    seen: the map.
    extent: [b, 2] width and height of the images, in pixels.
    blocked: [n, n] bool: queries that do not see each other; None: all do.
  """
  rows = seen.values
  places, keys, inside = sharding.as_rows_of(
      (places, seen.values + seen.places, seen.inside), rows)
  # [b, 1, 4]: the image's sides, of boxes that are parts of it.
  sides = jnp.concatenate([extent, extent], axis=-1)[:, None]
  looks = None if blocked is None else ~blocked[None, None]

  def step(carry, layer):
    x, fixed, soft = carry
    part, head = layer
    edges = sharding.as_rows_of(boxes_lib.corners(
        fixed if config.in_pixels else fixed * sides), rows)
    x = sharding.by_rows(
        functools.partial(_layer, config), x, places, keys, rows, edges,
        inside, whole=(part, looks))
    state = x if 'norm' not in params else queries_lib.normed(
        params['norm'], x, EPSILON)
    out = predict(head, config, state, soft, extent)
    # The same values, whose gradient ends at the boxes of this layer.
    changes = asked(head, state)[1] if out.changes is None else out.changes
    after = _changed(config, fixed, changes, extent)
    fixed = jax.lax.stop_gradient(after)
    carry = tuple(sharding.as_rows_of(each, rows) for each in (
        x, fixed, after if config.looks_twice else fixed))
    return carry, (out, state)

  start = tuple(sharding.as_rows_of(each, rows) for each in (
      states, boxes, boxes))
  _, (out, states) = jax.lax.scan(step, start, (params['layers'], heads))
  return out, states


def _layer(config: Config, whole: tuple[tree.Tree, Array | None], x: Array,
           places: Array, keys: Array, values: Array, edges: Array,
           inside: Array) -> Array:
  """Queries [b, n, d] after they have seen each other, and a map."""
  part, looks = whole

  def branch(name, x, function):
    normed = lambda y: queries_lib.normed(part[name], y, EPSILON)
    return x + function(normed(x)) if config.pre_norm else normed(
        x + function(x))

  x = branch('self_norm', x, lambda y: attend(
      part['self'], config.num_heads, y + places, y, looks))
  x = branch('cross_norm', x, lambda y: box_attention.apply(
      part['cross'], y + places, keys, values, edges, inside,
      stride_px=config.stride_px, log=config.log_bias))
  return branch('norm', x, lambda y: parts.linear(
      part['fc2'], jax.nn.relu(parts.linear(part['fc1'], y))))


def attend(part: tree.Tree, num_heads: int, x: Array, values: Array,
           looks: Array | None) -> Array:
  """[b, n, d] of rows [b, n, d] that are queries and keys, at values."""
  kernels, biases = (jnp.split(part['qkv'][name], 3, axis=-1)
                     for name in ('kernel', 'bias'))
  heads = [parts.heads(parts.linear({'kernel': kernel, 'bias': bias}, y),
                       num_heads) for kernel, bias, y in zip(
                           kernels, biases, (x, x, values), strict=True)]
  return parts.linear(part['output'], parts.attended(*heads, looks))


def _normal(key: Array, shape: tuple[int, int]) -> tree.Tree:
  return {'kernel': _STD * jax.random.normal(key, shape),
          'bias': jnp.zeros(shape[-1])}
