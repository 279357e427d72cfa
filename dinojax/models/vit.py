"""The vision transformer of DINOv2 and DINOv3, options and all.

One scanned block call serves every crop size of a step, so that a sharded
block is gathered once for all of them. What is random is drawn first (`draw`)
and passed in, so a forward is a function of its arguments.
"""

from collections.abc import Mapping, Sequence

from flax import nnx
import jax
import jax.numpy as jnp

from dinojax.kernels import attention
from dinojax.kernels import rotary
from dinojax.models import layers
from dinojax.models import positions
from dinojax.models import vectors
from dinojax.models import vit_config
from dinojax.parallel import sharding

Array = jax.Array
Outputs = dict[str, Array]
ViTConfig = vit_config.ViTConfig


class Attention(nnx.Module):
  """Multi-head self-attention on one fused projection (q, k, v)."""

  def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
    self.config = config
    d = config.embed_dim
    kwargs = dict(dtype=config.compute_dtype, rngs=rngs)
    self.qkv = layers.linear(d, 3 * d, use_bias=config.qkv_bias, **kwargs)
    self.proj = layers.linear(d, d, use_bias=config.proj_bias, **kwargs)

  def project(self, x: Array) -> Array:
    """[..., d] to [..., 3·d]."""
    if not (self.config.mask_k_bias and self.config.qkv_bias):
      return self.qkv(x)
    bias = self.qkv.bias[...].reshape(3, -1)
    bias = bias * jnp.array([[1], [0], [1]], bias.dtype)
    return vectors.add(
        x @ self.qkv.kernel[...].astype(x.dtype), bias.reshape(-1))

  def mix(self, qkv: Array, rope: rotary.Rope | None) -> Array:
    """[r, n, 3·d] to the attended values [r, n, d]."""
    return layers.attended(attention.attend(
        qkv, num_heads=self.config.num_heads, rope=rope,
        implementation=self.config.attention))


class Block(nnx.Module):
  """x += ls1(attention(norm1 x)), then x += ls2(ffn(norm2 x))."""

  def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
    self.config = config
    d, dtype = config.embed_dim, config.compute_dtype
    norm = lambda: layers.norm(
        config.norm, d, epsilon=config.norm_epsilon, dtype=dtype, rngs=rngs)
    self.norm1, self.norm2 = norm(), norm()
    self.attn = Attention(config, rngs=rngs)
    ffn = {'mlp': layers.Mlp, 'swiglu': layers.SwiGlu,
           'geglu': layers.GeGlu}[config.ffn]
    self.mlp = ffn(d, config.ffn_hidden or 4 * d, use_bias=config.ffn_bias,
                   dtype=dtype, rngs=rngs)
    if config.layerscale:
      self.ls1 = layers.LayerScale(d, config.layerscale, dtype=dtype)
      self.ls2 = layers.LayerScale(d, config.layerscale, dtype=dtype)

  def __call__(self, crops: list[Array], ropes: list[rotary.Rope | None],
               draws: list[dict[str, Array]]) -> list[Array]:
    """One block over the crops of every size, [r_i, n_i, d] each."""
    packing = self.config.packing
    scale1, scale2 = (
        (self.ls1, self.ls2) if self.config.layerscale
        else (lambda x: x, lambda x: x))

    def attend(subset, draws):
      qkv = layers.tokenwise(
          lambda x: self.attn.project(self.norm1(x)), subset, packing)
      mixed = [self.attn.mix(x, rope)
               for x, rope in zip(qkv, ropes, strict=True)]
      return layers.tokenwise(
          lambda x: scale1(self.attn.proj(x)), mixed, packing)

    def transform(subset, draws):
      return layers.tokenwise(
          lambda x: scale2(self.mlp(self.norm2(x))), subset, packing)

    crops = _residual(attend, crops, [d.get('attn') for d in draws])
    return _residual(transform, crops, [d.get('ffn') for d in draws])


def _residual(branch, crops: list[Array], kept: list[Array | None]):
  """Adds a residual branch, computed on the kept rows only.

  Args:
    branch: maps a list of [r, n, d] to residuals of the same shapes.
    crops: per crop size [r, n, d], r being groups × rows of a group.
    kept: per crop size [g, k] kept rows of every group, float [g, r/g]
      factors of every row, or None.

  Source: DINOv2's drop_add_residual_stochastic_depth: exactly k rows of a
    group are updated, scaled by rows/k.
  """
  forks = [_fork(x, rows) for x, rows in zip(crops, kept, strict=True)]
  out = branch([subset for _, subset in forks], kept)
  return [_add(x, y, rows)
          for (x, _), y, rows in zip(forks, out, kept, strict=True)]


def _fork(x: Array, kept: Array | None) -> tuple[Array, Array]:
  """The residual stream and the rows of it that a branch reads."""
  if kept is None or jnp.issubdtype(kept.dtype, jnp.floating):
    return x, x
  groups, subset = _fork_groups(
      x.reshape(kept.shape[0], -1, *x.shape[1:]), kept)
  return groups.reshape(x.shape), subset.reshape(-1, *x.shape[1:])


@jax.custom_vjp
def _fork_groups(groups: Array, kept: Array) -> tuple[Array, Array]:
  """[g, r, …] and [g, k]: itself and its kept rows [g, k, …].

  Both at once, so that the gradient of the rows is added to that of the
  stream where they lie: left to itself, differentiation fills an array of
  zeros with it and adds the two.
  """
  return groups, jax.vmap(lambda rows, i: rows[i])(groups, kept)


def _fork_backward(kept: Array, cotangents: tuple[Array, Array]):
  return _add_rows(*cotangents, kept), None


_fork_groups.defvjp(
    lambda groups, kept: (_fork_groups(groups, kept), kept), _fork_backward)


def _add_rows(groups: Array, rows: Array, kept: Array) -> Array:
  """[g, r, …] with [g, k, …] added to the kept rows."""
  add = lambda group, new, i: group.at[i].add(new, unique_indices=True)
  return jax.vmap(add)(groups, rows, kept)


def _add(x: Array, y: Array, kept: Array | None) -> Array:
  if kept is None:
    return x + y
  if jnp.issubdtype(kept.dtype, jnp.floating):
    return x + y * kept.reshape(-1, 1, 1).astype(y.dtype)
  groups = x.reshape(kept.shape[0], -1, *x.shape[1:])
  y = y.reshape(*kept.shape, *y.shape[1:])
  y = y * jnp.asarray(groups.shape[1] / kept.shape[1], y.dtype)
  return _add_rows(groups, y, kept).reshape(x.shape)


class ViT(nnx.Module):
  """Tokens [CLS, registers, patches] through `depth` blocks and a norm."""

  def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
    self.config = config
    d, dtype = config.embed_dim, config.compute_dtype
    self.patch_embed = layers.PatchEmbed(
        config.patch_px, config.num_channels, d, dtype=dtype, rngs=rngs)
    draw = lambda std, *shape: nnx.Param(
        std * jax.random.normal(rngs.params(), shape, jnp.float32))
    self.cls_token = draw(config.token_std, d)
    self.mask_token = nnx.Param(jnp.zeros((d,), jnp.float32))
    if config.num_registers:
      self.registers = draw(config.token_std, config.num_registers, d)
    if config.position == 'learned':
      rows, columns = config.grid((config.image_px, config.image_px))
      self.pos_embed = draw(0.02, 1 + rows * columns, d)
    self.blocks = nnx.vmap(lambda r: Block(config, rngs=r))(
        rngs.split(config.depth))
    norm = lambda: layers.norm(
        config.norm, d, epsilon=config.norm_epsilon, dtype=dtype, rngs=rngs)
    self.norm = norm()
    if config.untie_cls_and_patch_norms:
      self.cls_norm = norm()
    if config.untie_global_and_local_cls_norm:
      self.local_cls_norm = norm()

  def __call__(self, crops: Mapping[str, Array], *,
               masks: Mapping[str, Array] | None = None,
               draws: Mapping[str, dict[str, Array]] | None = None,
               train: bool = False) -> dict[str, Outputs]:
    """Features of the crops of every size.

    Args:
      crops: by kind ('global', 'local'), [r, y, x, c] normalised images.
      masks: by kind, [r, p] bool: patches replaced by the mask token.
      draws: by kind, what `draw` returns; None: nothing is random.
      train: as the student runs: untied local CLS norm.

    Returns:
      By kind: cls [r, d], float32, registers [r, n, d], patches [r, p, d],
      after the final norm; prenorm [r, n, d], all tokens before it.
    """
    masks, draws = masks or {}, draws or {}
    kinds = list(crops)
    tokens = list(map(
        self.embed, crops.values(), (masks.get(kind) for kind in kinds)))
    grids = [self.config.grid(crops[kind].shape[1:3]) for kind in kinds]
    fixed = [self._rope(grid, None) for grid in grids]
    # [g, l, …] to [l, g, …]: the scan walks over layers.
    layer_draws = [
        jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), draws.get(kind, {}))
        for kind in kinds]

    tokens = self._run(tokens, fixed, grids, layer_draws)
    return {kind: self._features(x, kind, train)
            for kind, x in zip(kinds, tokens, strict=True)}

  def intermediate(self, images: Array, indices: Sequence[int], *,
                   norm: bool = True) -> list[Outputs]:
    """Features after some of the blocks, in the order of their depth.

    Args:
      images: [r, y, x, c] normalised.
      indices: blocks, counted from 0.
      norm: True applies the final norm to each.

    Returns:
      cls, registers, patches and prenorm of each, see `__call__`.
    """
    kind = 'normed' if norm else 'raw'
    return self.read(images, [(kind, index) for index in sorted(indices)])

  def read(self, images: Array, wanted: Sequence[tuple[str, int]],
           draws: dict[str, Array] | None = None, *,
           frozen: bool = False) -> list[Outputs | Array]:
    """Features and attention of any blocks, in one pass through them.

    Args:
      images: [r, y, x, c] normalised.
      wanted: (kind, block) each, blocks counted from 0. 'normed' are features
        after the block and the final norm ('final': of the last block), 'raw'
        without the norm, 'before' what enters the block; 'keys' of its
        attention [r, n, d], before RoPE turns them; 'attention' [r, h, n, n],
        rows of which sum to one; 'cls_attention' [r, h, n], its first row.
      draws: random choices for one kind of crops, see models.randomness; None:
        nothing is random.
      frozen: True: the weights get no gradient, for which those of some of the
        blocks are copied.

    Returns:
      One result for each: features as `__call__` has them, or an array.
    """
    grid = self.config.grid(images.shape[1:3])
    tokens, rope, start = self.embed(images), self._rope(grid, None), 0
    drawn = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), draws or {})
    # Blocks that have to be run before each can be read.
    stops = {pair: pair[1] + (pair[0] in ('final', 'normed', 'raw'))
             for pair in wanted}
    out = {}
    for pair in sorted(stops, key=stops.get):
      if stops[pair] > start:
        tokens, = self._run([tokens], [rope], [grid], [drawn], start,
                            stops[pair], frozen=frozen)
        start = stops[pair]
      kind, layer = pair
      if kind in ('keys', 'attention', 'cls_attention'):
        out[pair] = self._attention(tokens, layer, rope, kind)
      else:
        normed = kind in ('final', 'normed')
        out[pair] = self._features(tokens, 'global', False, normed)
    return [out[pair] for pair in wanted]

  def embed(self, images: Array, mask: Array | None = None) -> Array:
    """Tokens before the first block, [r, n, d]: CLS, registers, patches.

    Args:
      images: [r, y, x, c] normalised.
      mask: [r, p] bool: patches replaced by the mask token.
    """
    config, dtype = self.config, self.config.compute_dtype
    # In float32, whatever the compute dtype: see models.vectors.
    whole = lambda variable: sharding.gather(variable, jnp.float32)[...]
    x = sharding.gather(self.patch_embed, dtype)(images)
    cls_token, mask_token = whole(self.cls_token), whole(self.mask_token)
    if mask is not None:
      x = vectors.replace(x, mask, mask_token)
    cls_token = vectors.repeat(cls_token[None], x.shape[0], dtype)
    x = jnp.concatenate([cls_token, x], axis=1)
    if config.position == 'learned':
      table = positions.resize_learned(
          whole(self.pos_embed), config.grid(images.shape[1:3]),
          offset=config.interpolate_offset,
          antialias=config.interpolate_antialias)
      x = vectors.add(x, table)
    if not config.num_registers:
      return x
    registers = vectors.repeat(whole(self.registers), x.shape[0], dtype)
    return jnp.concatenate([x[:, :1], registers, x[:, 1:]], axis=1)

  def _attention(self, tokens: Array, layer: int, rope: rotary.Rope | None,
                 kind: str) -> Array:
    """Keys or attention of a block that `tokens` [r, n, d] enter."""
    block = sharding.gather(
        jax.tree.map(lambda x: x[layer], self.blocks),
        self.config.compute_dtype)
    qkv = block.attn.project(block.norm1(tokens))
    if kind == 'keys':
      return jnp.split(qkv, 3, axis=-1)[1]
    q, k, _ = attention.heads(qkv, self.config.num_heads, rope)
    if kind == 'cls_attention':
      return self._weights(q[:, :1], k)[:, :, 0]
    return self._weights(q, k)

  @staticmethod
  def _weights(q: Array, k: Array) -> Array:
    """Attention [r, h, n, m] of queries [r, n, h, d] to keys [r, m, h, d]."""
    scores = jnp.einsum('rnhd,rmhd->rhnm', q, k,
                        preferred_element_type=jnp.float32)
    return jax.nn.softmax(scores * q.shape[-1] ** -0.5, axis=-1)

  def _run(self, tokens: list[Array], ropes: list, grids: list, draws: list,
           start: int = 0, stop: int | None = None, *,
           frozen: bool = False) -> list[Array]:
    """Tokens after the blocks from `start` to before `stop`."""
    dtype = self.config.compute_dtype

    def body(tokens, layer):
      block, drawn = layer
      now = [self._rope(grid, d['rope']) if 'rope' in d else rope
             for grid, d, rope in zip(grids, drawn, ropes, strict=True)]
      return sharding.gather(block, dtype)(tokens, now, drawn), None

    body = layers.remat(body, self.config.remat)
    part = (self.blocks, draws)
    if not start and stop in (None, self.config.depth):
      return jax.lax.scan(body, tokens, part)[0]
    if frozen:
      at = lambda i: jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(
          x, i, keepdims=False), part)
      return jax.lax.scan(lambda tokens, i: body(tokens, at(i)), tokens,
                          jnp.arange(start, stop))[0]
    part = jax.tree.map(lambda x: x[start:stop], part)
    return jax.lax.scan(body, tokens, part)[0]

  def _rope(self, grid, draw) -> rotary.Rope | None:
    config = self.config
    if config.position != 'rope':
      return None
    return positions.rope(
        grid, config.periods, normalize=config.rope_normalize,
        dtype=jnp.dtype(config.rope_dtype), draw=draw)

  def _features(self, x: Array, kind: str, train: bool,
                normed: bool = True) -> Outputs:
    config, dtype = self.config, self.config.compute_dtype
    first = 1 + config.num_registers
    lead, patches = x[:, :first], x[:, first:]
    if normed:
      lead_norm = self.norm
      if config.untie_global_and_local_cls_norm and train and kind == 'local':
        lead_norm = self.local_cls_norm
      elif config.untie_cls_and_patch_norms:
        lead_norm = self.cls_norm
      lead = layers.in_float32(sharding.gather(lead_norm, dtype))(lead)
      patches = sharding.gather(self.norm, dtype)(patches)
    return {'cls': lead[:, 0].astype(jnp.float32),
            'registers': lead[:, 1:].astype(dtype), 'patches': patches,
            'prenorm': x}
