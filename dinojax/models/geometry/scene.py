"""Cameras, depths and points of the frames of a scene, all at once.

Tokens of every frame attend to each other, then those of all frames do, in
turn. A token of a frame becomes its camera, and patches become depths and
points. The first frame is the world. Parameters are nested dicts by the names
of the parts; arrays are global.

Source: VGGT (arXiv 2503.11651), without its tracks, on a frozen backbone.
"""

from collections.abc import Sequence
import dataclasses
import math

from einops import rearrange
import jax
import jax.numpy as jnp
import numpy as np

from dinojax.core import tree
from dinojax.kernels import resample
from dinojax.models import layers as layers_lib
from dinojax.models.dense import dpt
from dinojax.models.dense import parts
from dinojax.models.dense import queries as queries_lib
from dinojax.parallel import sharding

Array = jax.Array
POSE = 9  # translation, quaternion (x, y, z, w), two fields of view
EPSILON, ROPE_BASE = 1e-5, 100.0
_SCALE, _TOKEN_STD, _PLACE = 0.01, 1e-6, 0.1


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes of a network.

  Attributes:
    inputs: width of the backbone.
    width: width of the tokens.
    num_heads: heads of the attention.
    num_pairs: pairs of a block within frames and one over all.
    num_registers: tokens of a frame beside that of the camera.
    read: the pairs, four of them, that become maps.
    num_rounds: times that a camera is improved.
    num_camera_blocks: blocks between the cameras in each.
    channels: channels of the merged maps.
    projected: channels of each of the four maps before.
  """

  inputs: int
  width: int = 768
  num_heads: int = 12
  num_pairs: int = 6
  num_registers: int = 4
  read: tuple[int, ...] = (2, 3, 4, 5)
  num_rounds: int = 4
  num_camera_blocks: int = 4
  channels: int = 256
  projected: tuple[int, ...] = (256, 512, 1024, 1024)

  @property
  def num_special(self) -> int:
    """Tokens of a frame that are no patch."""
    return 1 + self.num_registers

  def maps(self, num_outputs: int) -> dpt.Config:
    """Sizes of a head of depths or points."""
    return dpt.Config(
        channels=self.channels, projected=self.projected,
        num_outputs=num_outputs, bias=True, projects=False)


@dataclasses.dataclass(frozen=True)
class Predicted:
  """Predictions for a scene of s frames, in the first one's coordinates.

  Attributes:
    cameras: [k, b, s, 9] world-to-camera of every round, see POSE.
    depth: [b, s, y, x].
    depth_confidence: [b, s, y, x] from 1.
    points: [b, s, y, x, 3].
    point_confidence: [b, s, y, x] from 1.
  """

  cameras: Array
  depth: Array
  depth_confidence: Array
  points: Array
  point_confidence: Array


jax.tree_util.register_dataclass(
    Predicted, data_fields=[field.name for field in dataclasses.fields(
        Predicted)], meta_fields=())


def init(key: Array, config: Config) -> tree.Tree:
  """Random parameters; those of blocks are stacks [l, …]."""
  c, keys = config, iter(jax.random.split(key, 16))
  blocks = lambda count, width, **kinds: jax.vmap(
      lambda key: _block_init(key, width, width // c.num_heads, **kinds))(
          jax.random.split(next(keys), count))
  token = lambda count: _TOKEN_STD * jax.random.normal(
      next(keys), (2, count, c.width))
  both, norm = 2 * c.width, queries_lib.norm_init
  head = lambda outputs: {'norm': norm(both)} | dpt.init(
      next(keys), c.maps(outputs), (both,) * dpt.LEVELS)[0]
  out = {'camera': token(1), 'registers': token(c.num_registers),
         'frames': blocks(c.num_pairs, c.width, normed=True),
         'global': blocks(c.num_pairs, c.width, normed=True),
         'cameras': {
             'norm': norm(both), 'blocks': blocks(c.num_camera_blocks, both),
             'empty': jnp.zeros(POSE),
             'pose': parts.uniform(next(keys), (POSE, both), POSE),
             'change': parts.uniform(next(keys), (both, 3 * both), both),
             'last_norm': norm(both),
             'fc1': parts.uniform(next(keys), (both, c.width), both),
             'fc2': parts.uniform(next(keys), (c.width, POSE), c.width)},
         'depth': head(2), 'points': head(4)}
  if c.inputs != c.width:
    out['input'] = parts.xavier(next(keys), (c.inputs, c.width))
  return out


def apply(params: tree.Tree, config: Config, maps: Array,
          size: tuple[int, int]) -> Predicted:
  """Predictions for scenes.

  Args:
    params: see `init`.
    config: sizes.
    maps: [b, s, y, x, d] patches of the frames.
    size: rows and columns of the frames, in pixels.
  """
  grid = maps.shape[2:4]
  x = rearrange(maps.astype(jnp.float32), 'b s y x d -> b s (y x) d')
  if 'input' in params:
    x = parts.linear(params['input'], x)
  states = aggregated(params, config, x, grid)
  read = [states[i] for i in config.read]
  depth = _values(params['depth'], config, read, grid, size, 2)
  points = _values(params['points'], config, read, grid, size, 4)
  signed = jnp.sign(points[..., :3]) * jnp.expm1(jnp.abs(points[..., :3]))
  return Predicted(
      cameras(params['cameras'], config, states[-1][:, :, 0]),
      jnp.exp(depth[..., 0]), 1 + jnp.exp(depth[..., 1]),
      signed, 1 + jnp.exp(points[..., 3]))


def aggregated(params: tree.Tree, config: Config, x: Array,
               grid: tuple[int, int]) -> Array:
  """[l, b, s, n, 2 d] tokens after every pair, within frames and over all.

  Args:
    params: see `init`.
    config: sizes.
    x: [b, s, p, d] patches of the frames.
    grid: rows and columns of patches.
  """
  count, frames = x.shape[:2]
  first = np.arange(frames) > 0  # 0: the world; 1: every other frame
  special = jnp.concatenate(
      [params['camera'], params['registers']], axis=1)[first.astype(int)]
  special = sharding.as_rows_of(jnp.broadcast_to(
      special[None], (count, *special.shape)), x)
  x = jnp.concatenate([special, x], axis=2)
  turns = rotations(grid, config.num_special,
                    config.width // config.num_heads)
  over_all = jax.tree.map(lambda t: jnp.tile(t, (frames, 1)), turns)
  start = x

  def pair(x, blocks):
    within, between = blocks
    within = _block(within, config.num_heads, x, turns)
    flat = _block(between, config.num_heads, rearrange(
        within, 'b s n d -> b (s n) d'), over_all)
    x = sharding.as_rows_of(
        rearrange(flat, 'b (s n) d -> b s n d', s=frames), start)
    return x, jnp.concatenate([within, x], axis=-1)

  _, states = jax.lax.scan(pair, start, (params['frames'], params['global']))
  return states


def cameras(params: tree.Tree, config: Config, tokens: Array) -> Array:
  """[k, b, s, 9] cameras of every round, of tokens [b, s, d]."""
  tokens = queries_lib.normed(params['norm'], tokens, EPSILON)
  width = tokens.shape[-1]
  pose, rounds = None, []
  for _ in range(config.num_rounds):
    given = params['empty'][None, None] if pose is None else (
        jax.lax.stop_gradient(pose))
    change = parts.linear(params['change'], jax.nn.silu(
        parts.linear(params['pose'], given)))
    shift, scale, gate = (change[..., i * width:(i + 1) * width]
                          for i in range(3))
    x = gate * (_standardised(tokens) * (1 + scale) + shift) + tokens
    for i in range(config.num_camera_blocks):
      x = _block(jax.tree.map(lambda leaf, i=i: leaf[i], params['blocks']),
                 config.num_heads, x, None)
    x = queries_lib.normed(params['last_norm'], x, EPSILON)
    step = parts.linear(params['fc2'], layers_lib.gelu(
        parts.linear(params['fc1'], x)))
    pose = step if pose is None else pose + step
    rounds.append(pose)
  out = jnp.stack(rounds)
  return jnp.concatenate([out[..., :7], jax.nn.relu(out[..., 7:])], axis=-1)


def rotations(grid: tuple[int, int], num_special: int,
              width: int) -> tuple[Array, Array]:
  """Sines and cosines [n, width] of the places of a frame's tokens.

  The first half of a head turns by the row, the second by the column, both
  counted from 1; tokens that are no patch are at 0.

  Args:
    grid: rows and columns of patches.
    num_special: tokens before them.
    width: width of a head, a multiple of 4.
  """
  rows, columns = np.mgrid[1:grid[0] + 1, 1:grid[1] + 1]
  places = np.concatenate([np.zeros((num_special, 2)), np.stack(
      [rows.ravel(), columns.ravel()], axis=-1)])
  speeds = ROPE_BASE ** (-np.arange(width // 4) / (width // 4))
  angles = places[:, :, None] * speeds  # [n, 2, width / 4]
  angles = np.concatenate([angles, angles], axis=-1).reshape(len(places), -1)
  return (jnp.asarray(np.sin(angles), jnp.float32),
          jnp.asarray(np.cos(angles), jnp.float32))


def _block_init(key: Array, width: int, head: int, *,
                normed: bool = False) -> tree.Tree:
  keys, norm = jax.random.split(key, 4), queries_lib.norm_init
  out = {'norm1': norm(width), 'norm2': norm(width),
         'qkv': parts.xavier(keys[0], (width, 3 * width)),
         'output': parts.xavier(keys[1], (width, width)),
         'fc1': parts.xavier(keys[2], (width, 4 * width)),
         'fc2': parts.xavier(keys[3], (4 * width, width)),
         'scale1': jnp.full(width, _SCALE), 'scale2': jnp.full(width, _SCALE)}
  return out | ({'q_norm': norm(head), 'k_norm': norm(head)} if normed else {})


def _block(part: tree.Tree, num_heads: int, x: Array,
           turns: tuple[Array, Array] | None) -> Array:
  """[…, n, d] tokens after a block."""
  lead = (None,) * (x.ndim - 1)
  qkv = rearrange(parts.linear(part['qkv'], queries_lib.normed(
      part['norm1'], x, EPSILON)), '... (k h d) -> ... k h d', k=3,
                  h=num_heads)
  q, k, v = (qkv[..., i, :, :] for i in range(3))
  if 'q_norm' in part:
    q = queries_lib.normed(part['q_norm'], q, EPSILON)
    k = queries_lib.normed(part['k_norm'], k, EPSILON)
  if turns is not None:
    q, k = _turned(q, turns), _turned(k, turns)
  scores = jnp.einsum('...nhd,...mhd->...hnm', q, k,
                      precision='highest') * q.shape[-1] ** -0.5
  mixed = jnp.einsum('...hnm,...mhd->...nhd', jax.nn.softmax(scores, axis=-1),
                     v, precision='highest')
  x = x + part['scale1'][lead] * parts.linear(
      part['output'], rearrange(mixed, '... h d -> ... (h d)'))
  inner = layers_lib.gelu(parts.linear(part['fc1'], queries_lib.normed(
      part['norm2'], x, EPSILON)))
  return x + part['scale2'][lead] * parts.linear(part['fc2'], inner)


def _turned(x: Array, turns: tuple[Array, Array]) -> Array:
  """[…, n, h, d] heads whose halves are turned, each by its own angle."""
  lead = (None,) * (x.ndim - 3)
  sin, cos = (t[lead][..., None, :] for t in turns)
  first, second = jnp.split(x, 2, axis=-1)
  half = lambda part: jnp.concatenate(
      [-part[..., part.shape[-1] // 2:], part[..., :part.shape[-1] // 2]],
      axis=-1)
  return x * cos + jnp.concatenate([half(first), half(second)], -1) * sin


def _values(part: tree.Tree, config: Config, read: Sequence[Array],
            grid: tuple[int, int], size: tuple[int, int],
            num_outputs: int) -> Array:
  """[b, s, y, x, k] values of pixels, of four states [b, s, n, d]."""
  sizes = config.maps(num_outputs)

  def of_frame(part, states):
    maps = [rearrange(queries_lib.normed(part['norm'], x, EPSILON)[
        :, config.num_special:], 'b (y x) d -> b y x d', y=grid[0])
            for x in states]
    places = [_PLACE * waves(grid, size, channels)
              for channels in config.projected]
    merged, _ = dpt.merge(part, {}, sizes, maps, places=places)
    x = resample.resize_corners(parts.conv(
        part['head']['conv0'], merged), size)
    x = x + _PLACE * waves(size, size, x.shape[-1])[None]
    return parts.conv(part['head']['conv2'], jax.nn.relu(
        parts.conv(part['head']['conv1'], x)))

  def of_rows(part, *read):
    # A frame after the other: maps of all pixels are many.
    frames = tuple(jnp.moveaxis(x, 1, 0) for x in read)
    return jnp.moveaxis(jax.lax.map(jax.checkpoint(
        lambda states: of_frame(part, states)), frames), 0, 1)

  return sharding.by_rows(of_rows, *read, whole=part)


def waves(grid: tuple[int, int], size: tuple[int, int],
          width: int) -> Array:
  """[y, x, width] sines and cosines of the column, then of the row.

  Cells lie on an image whose diagonal reaches from −1 to 1.

  Args:
    grid: rows and columns.
    size: rows and columns of the image.
    width: values, a multiple of 4.
  """
  reach = np.array(size[::-1]) / math.hypot(*size)  # of columns, of rows
  speeds = ROPE_BASE ** (-np.arange(width // 4) / (width // 4))
  axes = []
  for length, span in zip(grid[::-1], reach, strict=True):
    place = ((2 * np.arange(length) + 1) / length - 1) * span
    angle = place[:, None] * speeds
    axes.append(np.concatenate([np.sin(angle), np.cos(angle)], axis=-1))
  shape = (*grid, width // 2)
  return jnp.asarray(np.concatenate([
      np.broadcast_to(axes[0][None], shape),
      np.broadcast_to(axes[1][:, None], shape)], axis=-1), jnp.float32)


def _standardised(x: Array) -> Array:
  """[…, d] of mean 0 and deviation 1."""
  apart = x - x.mean(-1, keepdims=True)
  return apart * jax.lax.rsqrt(
      jnp.square(apart).mean(-1, keepdims=True) + 1e-6)
