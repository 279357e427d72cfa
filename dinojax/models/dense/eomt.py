"""EoMT: queries among the tokens of a ViT, in its last blocks.

The backbone runs up to these; they and its final norm are the head's, whose
parameters have the names and the layout of the backbone's. Networks run on
each device's own rows, with whole parameters.

Source: Encoder-only Mask Transformer, arXiv 2503.19108.
"""

import dataclasses
import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from dinojax.core import tree
from dinojax.kernels import attention
from dinojax.kernels import rotary
from dinojax.models import layers
from dinojax.models import positions
from dinojax.models import vit
from dinojax.models.dense import queries
from dinojax.parallel import sharding

Array = jax.Array
LAYER_DECAY = 0.8
OF_BACKBONE = ('blocks', 'norm')  # entries of the parameters


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes of a head.

  Attributes:
    backbone: the whole backbone, whose last blocks are among these.
    num_classes: classes, without that of no object.
    num_queries: queries.
    num_blocks: blocks that they are in.
    num_upscales: steps by two from patches to masks; None: of the patch.
    masked: True: queries look at their own masks, and predict before each
      block; False: at all, and once, at the end.
  """

  backbone: vit.ViTConfig
  num_classes: int
  num_queries: int = 100
  num_blocks: int = 4
  num_upscales: int | None = None
  masked: bool = True

  @property
  def upscales(self) -> int:
    """Steps by two from patches to masks."""
    return self.num_upscales or queries.num_upscales(self.backbone.patch_px)

  @property
  def first_block(self) -> int:
    """The block that queries enter first."""
    return self.backbone.depth - self.num_blocks


class _Blocks(nnx.Module):
  """Blocks of a ViT and the norm behind them."""

  def __init__(self, config: vit.ViTConfig, *, rngs: nnx.Rngs):
    self.blocks = nnx.vmap(lambda r: vit.Block(config, rngs=r))(
        rngs.split(config.depth))
    self.norm = layers.norm(
        config.norm, config.embed_dim, epsilon=config.norm_epsilon,
        dtype=config.compute_dtype, rngs=rngs)


def init(key: Array, config: Config) -> tree.Tree:
  """Random parameters; `taken` replaces those that a backbone has."""
  first, second = jax.random.split(key)
  made = _Blocks(_tail(config), rngs=nnx.Rngs(first))
  return queries.init(
      second, config.backbone.embed_dim, config.num_queries,
      config.num_classes, config.upscales) | nnx.to_pure_dict(
          nnx.state(made, nnx.Param))


def taken(backbone: tree.Tree, config: Config) -> tree.Tree:
  """Parameters of a backbone that the head begins as: its end."""
  return {'blocks': jax.tree.map(
      lambda x: x[config.first_block:], backbone['blocks']),
          'norm': backbone['norm']}


def usual_blocks(depth: int) -> int:
  """Blocks with queries, of a backbone of a depth.

  Source: EoMT: 3 of ViT-S and B, 4 of L, 5 of g.
  """
  return min(depth, 3 if depth <= 12 else 4 if depth <= 24 else 5)


def layer_factors(depth: int, num_blocks: int, *, decay: float = LAYER_DECAY,
                  full: bool = False) -> np.ndarray:
  """[depth] factors of the learning rate of the blocks of a backbone.

  Args:
    depth: blocks.
    num_blocks: blocks with queries.
    decay: factor from a block to the one before; the last has 1. Patch
      embedding, tokens and positions have that of the first block, the final
      norm 1.
    full: True: all blocks with queries have 1.

  Source: EoMT's llrd, and llrd_l2_enabled=False.
  """
  out = decay ** np.arange(depth - 1, -1, -1, dtype=np.float64)
  out[depth - num_blocks:] = np.where(full, 1.0, out[depth - num_blocks:])
  return out.astype(np.float32)


def apply(params: tree.Tree, config: Config, tokens: Array,
          grid: tuple[int, int], opened: Array | None = None,
          turned: dict[str, Array] | None = None
          ) -> tuple[list[queries.Predicted], Array]:
  """Predictions of the queries, the last one the best.

  Args:
    params: see `init`.
    config: sizes.
    tokens: [b, p + n, d] that enter the first of the blocks.
    grid: rows and columns of patches.
    opened: [b, l, q] bool, queries that look at all patches in a block; None:
      as their masks say.
    turned: random changes of RoPE, [b, …], see positions.rope.

  Returns:
    Predictions before each block and the last, and all tokens after the norm,
    [b, q + p + n, d].
  """
  rows = {'tokens': tokens, 'opened': opened, 'turned': turned}
  rows = {name: sharding.as_rows_of(value, tokens)
          for name, value in rows.items() if value is not None}
  return sharding.by_rows(functools.partial(_apply, config=config, grid=grid),
                          rows, whole=params)


def _apply(params: tree.Tree, rows: dict, *, config: Config,
           grid: tuple[int, int]) -> tuple[list[queries.Predicted], Array]:
  """`apply` on the rows of a device."""
  backbone, count = config.backbone, config.num_queries
  net = nnx.merge(_graph(_tail(config)), {
      name: params[name] for name in OF_BACKBONE})
  rope = None
  if backbone.position == 'rope':
    rope = positions.rope(
        grid, backbone.periods, normalize=backbone.rope_normalize,
        dtype=jnp.dtype(backbone.rope_dtype), draw=rows.get('turned'))
  x = rows['tokens'].astype(backbone.compute_dtype)
  x = jnp.concatenate([jnp.broadcast_to(
      params['queries'][None].astype(x.dtype), (len(x), count, x.shape[2])), x],
                      axis=1)

  def step(x, part):
    block, opened = part
    if not config.masked:
      return _block(block, x, rope, None), None
    predicted, masks = queries.predict(params, net.norm(x), count, grid)
    return _block(block, x, rope, queries.allowed(masks, opened)), predicted

  opened = rows.get('opened')
  x, predicted = jax.lax.scan(
      layers.remat(step, backbone.remat), x, (
          net.blocks, None if opened is None else jnp.moveaxis(opened, 1, 0)))
  x = net.norm(x)
  before = [] if predicted is None else [
      jax.tree.map(lambda each, i=i: each[i], predicted)
      for i in range(config.num_blocks)]
  last, _ = queries.predict(params, x, count, grid)
  return [*before, last], x


def _block(block: vit.Block, x: Array, rope: rotary.Rope | None,
           looks: Array | None) -> Array:
  """[b, t, d] after a block; `looks` [b, q, n]: patches that queries see."""
  config = block.config
  scale1, scale2 = (block.ls1, block.ls2) if config.layerscale else (
      lambda x: x, lambda x: x)
  kwargs = dict(num_heads=config.num_heads, rope=rope,
                implementation=config.attention)
  qkv = block.attn.project(block.norm1(x))
  mixed = attention.attend(qkv, **kwargs) if looks is None else (
      attention.attend_some(qkv, looks, **kwargs))
  x = x + scale1(block.attn.proj(layers.attended(mixed)))
  return x + scale2(block.mlp(block.norm2(x)))


def _tail(config: Config) -> vit.ViTConfig:
  """The blocks as a backbone, that draws nothing at random."""
  return dataclasses.replace(
      config.backbone.inference(), depth=config.num_blocks)


@functools.lru_cache(maxsize=16)
def _graph(config: vit.ViTConfig) -> nnx.GraphDef:
  """`_Blocks` of a configuration without parameters."""
  return nnx.split(nnx.eval_shape(
      lambda: _Blocks(config, rngs=nnx.Rngs(0))), nnx.Param)[0]
