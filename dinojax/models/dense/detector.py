"""Plain-DETR on features of a frozen backbone: boxes of objects.

Parameters are nested dicts by the names of the parts; arrays are global. Boxes
are (centre x, centre y, width, height) in pixels of the image that enters, or
in parts of it.

Source: DINOv3's detector, in the form of Plain-DETR (arXiv 2308.01904).
"""

from collections.abc import Sequence
import dataclasses

from einops import rearrange
import jax
import jax.numpy as jnp

from dinojax.core import tree
from dinojax.losses import detection
from dinojax.models import positions
from dinojax.models.dense import box_decoder
from dinojax.models.dense import parts
from dinojax.models.dense import proposals as proposals_lib
from dinojax.models.dense import queries as queries_lib
from dinojax.parallel import sharding

Array = jax.Array
EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes of all parts.

  Attributes:
    widths: width of each layer of the backbone that is read.
    decoder: sizes of the decoder.
    num_queries: queries that answer.
    num_extra: queries beside them in training, of which several learn an
      object.
    num_encoder_layers: layers in which cells of the map attend to each other.
    encoder_ffn: width of their feed-forward layers.
    dropout: share of values that is dropped in them in training.
    box_px: see proposals.Config.
    windows: windows along a side that the backbone sees; 0: whole images.
    norms: True normalises each layer of the backbone.
    normalize_places: see positions.sine_within.
  """

  widths: tuple[int, ...]
  decoder: box_decoder.Config
  num_queries: int = 1500
  num_extra: int = 1500
  num_encoder_layers: int = 6
  encoder_ffn: int = 2048
  dropout: float = 0.1
  box_px: float = 50.0
  windows: int = 0
  norms: bool = False
  normalize_places: bool = True

  @property
  def num_classes(self) -> int:
    """Classes."""
    return self.decoder.num_classes

  @property
  def proposals(self) -> proposals_lib.Config:
    """Sizes of the proposals."""
    return proposals_lib.Config(
        self.decoder.hidden, self.decoder.stride_px, self.box_px,
        in_pixels=self.decoder.in_pixels)


@dataclasses.dataclass(frozen=True)
class Detected:
  """Predictions for a batch.

  Attributes:
    queries: after every layer, the last one the best.
    extra: the same of the queries of training alone; () in inference.
    proposals: one of every cell; their class 0 is any object.
  """

  queries: tuple[detection.Predicted, ...]
  extra: tuple[detection.Predicted, ...]
  proposals: detection.Predicted


jax.tree_util.register_dataclass(
    Detected, data_fields=('queries', 'extra', 'proposals'), meta_fields=())


def init(key: Array, config: Config) -> tree.Tree:
  """Random parameters; those of layers are stacks [l, …].

  Source: Plain-DETR and its table in DINOv3.
  """
  c, keys = config, iter(jax.random.split(key, 9))
  hidden = c.decoder.hidden
  norm = lambda width=hidden: queries_lib.norm_init(width)

  def layer(key):
    keys = jax.random.split(key, 4)
    return {'self': {'qkv': parts.xavier(keys[0], (hidden, 3 * hidden)),
                     'output': parts.xavier(keys[1], (hidden, hidden))},
            'self_norm': norm(),
            'fc1': parts.xavier(keys[2], (hidden, c.encoder_ffn)),
            'fc2': parts.xavier(keys[3], (c.encoder_ffn, hidden)),
            'norm': norm()}

  heads = jax.vmap(lambda key: box_decoder.head_init(key, c.decoder))(
      jax.random.split(next(keys), c.decoder.num_layers + 1))
  out = {
      'input': parts.xavier(next(keys), (sum(c.widths), hidden)) | {
          'norm': norm()},
      'level': jax.random.normal(next(keys), (hidden,)),
      'encoder': jax.vmap(layer)(
          jax.random.split(next(keys), c.num_encoder_layers)),
      'proposals': proposals_lib.init(next(keys), c.proposals),
      'places': parts.xavier(next(keys), (2 * hidden, 2 * hidden)) | {
          'norm': norm(2 * hidden)},
      'queries': jax.random.normal(
          next(keys), (c.num_queries + c.num_extra, hidden)),
      'decoder': box_decoder.init(next(keys), c.decoder), 'heads': heads}
  if c.norms:
    out['norms'] = {str(i): norm(width) for i, width in enumerate(c.widths)}
  return out


def apply(params: tree.Tree, config: Config, maps: Sequence[Array],
          extent: Array, *, with_extra: bool = False,
          dropout: Array | None = None) -> Detected:
  """Boxes of images.

  Args:
    params: see `init`.
    config: sizes.
    maps: [b, y, x, d] of the layers that are read.
    extent: [b, 2] rows and columns of pixels that are image, from the top
      left.
    with_extra: True: queries of training are there as well.
    dropout: key of what is dropped; None: nothing is.

  Raises:
    ValueError: fewer proposals than queries.
  """
  grid = maps[0].shape[1:3]
  number = config.num_queries + (config.num_extra if with_extra else 0)
  if proposals_lib.count(grid) < number:
    raise ValueError(
        f'{grid[0]} × {grid[1]} patches propose {proposals_lib.count(grid)} '
        f'boxes, and there are {number} queries: give larger images, or fewer '
        'queries')
  x, places, cells = entered(params, config, maps, extent)
  memory = encoded(params['encoder'], config, box_decoder.Map(
      x, places, cells), dropout)
  seen = box_decoder.Map(memory, places, cells)
  sides = cells[:, ::-1].astype(jnp.float32) * config.decoder.stride_px
  return _decoded(params, config, seen, sides, number)


def entered(params: tree.Tree, config: Config, maps: Sequence[Array],
            extent: Array) -> tuple[Array, Array, Array]:
  """Map [b, y, x, d], positions [b, y, x, d] and cells [b, 2] of images.

  See `apply` for the arguments.
  """
  cells = -(-extent // config.decoder.stride_px)
  x = parts.group_norm(params['input']['norm'], parts.linear(
      params['input'], joined(params, config, maps)))
  places = positions.sine_within(
      cells, maps[0].shape[1:3], config.decoder.hidden,
      normalize=config.normalize_places)
  places = sharding.as_rows_of(places, x) + params['level'][None, None, None]
  return x, places, cells


def joined(params: tree.Tree, config: Config,
           maps: Sequence[Array]) -> Array:
  """[b, y, x, Σ d] layers side by side, all of the whole image first."""
  maps = [x.astype(jnp.float32) for x in maps]
  if config.norms:
    maps = [_per_view(params['norms'][str(i)], config, x)
            for i, x in enumerate(maps)]
  if config.windows:
    halves = [jnp.split(x, 2, axis=-1) for x in maps]
    maps = [half[i] for i in range(2) for half in halves]
  return jnp.concatenate(maps, axis=-1)


def _per_view(norm: tree.Tree, config: Config, x: Array) -> Array:
  """Normalised layers, each view of them by itself."""
  views = jnp.split(x, 2, axis=-1) if config.windows else [x]
  return jnp.concatenate([
      queries_lib.normed(norm, view, EPSILON) for view in views], axis=-1)


def encoded(params: tree.Tree, config: Config, seen: box_decoder.Map,
            dropout: Array | None = None) -> Array:
  """[b, y, x, d] a map whose cells have seen each other.

  Args:
    params: stack of layers.
    config: sizes.
    seen: the map, with positions.
    dropout: key of what is dropped; None: nothing is.
  """
  grid = seen.values.shape[1:3]
  flat = lambda x: rearrange(x, 'b y x d -> b (y x) d')
  places, looks = flat(seen.places), rearrange(
      seen.inside, 'b y x -> b (y x)')[:, None, None]
  start = flat(seen.values)

  def dropped(x, key):
    if dropout is None or not config.dropout:
      return x
    keep = jax.random.bernoulli(key, 1 - config.dropout, x.shape)
    return sharding.as_rows_of(keep, x) * x / (1 - config.dropout)

  def step(x, layer):
    part, number = layer
    keys = jax.random.split(jax.random.fold_in(
        jax.random.key(0) if dropout is None else dropout, number), 3)
    normed = lambda name, x: queries_lib.normed(part[name], x, EPSILON)
    x = normed('self_norm', x + dropped(box_decoder.attend(
        part['self'], config.decoder.num_heads, x + places, x, looks),
                                        keys[0]))
    inner = dropped(jax.nn.relu(parts.linear(part['fc1'], x)), keys[1])
    x = normed('norm', x + dropped(
        parts.linear(part['fc2'], inner), keys[2]))
    return sharding.as_rows_of(x, start), None

  numbers = jnp.arange(config.num_encoder_layers)
  x, _ = jax.lax.scan(step, start, (params, numbers))
  return rearrange(x, 'b (y x) d -> b y x d', y=grid[0])


def proposed(params: tree.Tree, config: Config, memory: Array, cells: Array,
             extent: Array) -> detection.Predicted:
  """Boxes of all proposals, see models.dense.proposals.

  Args:
    params: see `init`.
    config: sizes.
    memory: [b, y, x, d] what the encoder gives.
    cells: [b, 2] rows and columns of it that are image.
    extent: [b, 2] width and height of the images, in pixels.
  """
  rows = proposals_lib.apply(
      params['proposals'], config.proposals, memory, cells)
  last = jax.tree.map(lambda leaf: leaf[-1], params['heads'])
  boxes = sharding.as_rows_of(rows.boxes, memory)
  if config.decoder.in_pixels:
    return box_decoder.predict(
        last, config.decoder, rows.states, boxes, extent)
  classes, changes = box_decoder.asked(last, rows.states)
  return detection.Predicted(classes, jax.nn.sigmoid(boxes + changes))


def _decoded(params: tree.Tree, config: Config, seen: box_decoder.Map,
             extent: Array, number: int) -> Detected:
  """Predictions of queries that begin at the best proposals."""
  proposals = proposed(params, config, seen.values, seen.cells, extent)
  boxes, _ = best(proposals, number)
  hidden = config.decoder.hidden
  places = parts.linear(params['places'], proposals_lib.waves(
      boxes, hidden // 2))
  places = queries_lib.normed(params['places']['norm'], places, EPSILON)[
      ..., :hidden]
  states = jnp.broadcast_to(params['queries'][None, :number], (
      len(boxes), number, hidden))
  group = jnp.arange(number) < config.num_queries
  blocked = None if number == config.num_queries else (
      group[:, None] != group[None])
  layers = jax.tree.map(lambda leaf: leaf[:-1], params['heads'])
  out, _ = box_decoder.apply(
      params['decoder'], layers, config.decoder, states, places, boxes, seen,
      extent, blocked)
  each = [jax.tree.map(lambda leaf, i=i: leaf[i], out)
          for i in range(config.decoder.num_layers)]
  some = lambda start, end: tuple(jax.tree.map(
      lambda leaf: leaf[:, start:end], layer) for layer in each)
  return Detected(
      some(0, config.num_queries), some(config.num_queries, number)
      if number > config.num_queries else (), proposals)


def best(proposals: detection.Predicted, number: int) -> tuple[Array, Array]:
  """[b, n, 4] boxes of the proposals that are likeliest objects, and [b, n].

  No gradient passes. Of equal ones the first comes first.

  Args:
    proposals: see `proposed`.
    number: how many, n.
  """
  def of_rows(scores, boxes):
    _, index = jax.lax.top_k(scores, number)
    return jnp.take_along_axis(boxes, index[..., None], axis=1), index

  return sharding.by_rows(
      of_rows, jax.lax.stop_gradient(proposals.classes[..., 0]),
      jax.lax.stop_gradient(proposals.boxes), differentiable=False)
