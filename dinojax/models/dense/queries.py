"""Queries that become masks: what the plain decoder and EoMT share.

Queries stand in front of the other tokens, [b, q + p + n, d]: p of a prefix
(CLS and registers), then n patches of a grid. A query predicts a class and a
mask, and may look at the patches of its own last mask alone. Parameters are
nested dicts by the names of the parts; arrays are global.
"""

from collections.abc import Mapping
import dataclasses
import math

from einops import rearrange
import jax
import jax.numpy as jnp

from dinojax.core import tree
from dinojax.kernels import resample
from dinojax.models import layers
from dinojax.models.dense import parts
from dinojax.parallel import sharding

Array = jax.Array
UPSCALE_EPSILON = 1e-6
_HIGHEST = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class Predicted:
  """Classes and masks of queries.

  Attributes:
    classes: [b, q, k + 1] logits, the last one of no object.
    masks: [b, q, y, x] logits.
  """

  classes: Array
  masks: Array


jax.tree_util.register_dataclass(
    Predicted, data_fields=('classes', 'masks'), meta_fields=())


def num_upscales(patch_px: int) -> int:
  """Steps by two from patches to masks, of a quarter of the image's side."""
  return max(1, int(math.log2(patch_px)) - 2)


def init(key: Array, width: int, num_queries: int, num_classes: int,
         upscales: int) -> tree.Tree:
  """Random parameters of queries and of what they predict.

  Source: EoMT: queries are normal, everything else is PyTorch's default.
  """
  keys = iter(jax.random.split(key, 16))
  upscale = {str(i): {
      'grow': parts.uniform(next(keys), (width, 2, 2, width), 4 * width),
      'smooth': {'kernel': parts.uniform(
          next(keys), (3, 3, 1, width), 9)['kernel']},
      'norm': norm_init(width)} for i in range(upscales)}
  return {
      'queries': jax.random.normal(next(keys), (num_queries, width)),
      'upscale': upscale,
      'mask': {str(i): parts.uniform(next(keys), (width, width), width)
               for i in range(3)},
      'class': parts.uniform(next(keys), (width, num_classes + 1), width)}


def predict(params: tree.Tree, tokens: Array, num_queries: int,
            grid: tuple[int, int]) -> tuple[Predicted, Array]:
  """Classes and masks of the queries, and these masks at patches.

  Args:
    params: see `init`.
    tokens: [b, q + p + n, d], after a norm.
    num_queries: q.
    grid: rows and columns of patches.

  Returns:
    Classes and masks, and the masks resized to patches, [b, q, n], for
    `allowed`. The maps are resized before they are multiplied, which is the
    same but for rounding, so that large masks cost nothing where nothing else
    takes them. No gradient passes these.
  """
  asked = tokens[:, :num_queries]
  patches = tokens[:, tokens.shape[1] - grid[0] * grid[1]:]
  maps = rearrange(patches, 'b (y x) d -> b y x d', y=grid[0])
  for i in range(len(params['upscale'])):
    maps = _upscaled(params['upscale'][str(i)], maps)
  x = asked
  for i in range(3):
    x = parts.linear(params['mask'][str(i)], x)
    x = layers.gelu(x) if i < 2 else x
  small = _drawn(*jax.lax.stop_gradient(
      (x, resample.resize_linear(maps, grid))))
  return (Predicted(parts.linear(params['class'], asked), _drawn(x, maps)),
          rearrange(small, 'b q y x -> b q (y x)'))


def _drawn(asked: Array, maps: Array) -> Array:
  """[b, q, y, x] products of [b, q, d] and [b, y, x, d]."""
  # The second operand is copied on CPUs: it is the small one.
  return jnp.moveaxis(jnp.einsum(
      'byxd,bqd->byxq', maps, asked, precision=_HIGHEST), -1, 1)


def semantic(predicted: Predicted) -> Array:
  """[b, y, x, k] scores of classes: shares of the queries' classes and masks.

  Source: Mask2Former; they do not add up to one.
  """
  share = jax.nn.softmax(predicted.classes, axis=-1)[..., :-1]
  return jnp.einsum('bqk,bqyx->byxk', share, jax.nn.sigmoid(predicted.masks),
                    precision=_HIGHEST)


def semantic_at(predicted: Predicted, size: tuple[int, int]) -> Array:
  """`semantic` of masks that are resized to rows and columns of pixels first.

  Images go one after the other: masks of all pixels are many.
  """
  def of_image(predicted):
    large = resample.resize_linear(predicted.masks[..., None], size)[..., 0]
    return semantic(Predicted(predicted.classes[None], large[None]))[0]

  return sharding.by_rows(
      lambda predicted: jax.lax.map(of_image, predicted), predicted)


def allowed(masks: Array, opened: Array | None = None) -> Array:
  """[b, q, n] bool: patches that each query may look at.

  Args:
    masks: [b, q, n] logits at patches of the prediction before.
    opened: [b, q] bool, queries that may look at all patches.
  """
  inside = masks > 0
  return inside if opened is None else inside | opened[..., None]


def bias(patches: Array, num_tokens: int) -> Array:
  """[b, 1, t, t] bool: True where a token may look, of [b, q, n] for queries.

  Queries see all queries and the prefix, and all others see everything.
  """
  count = patches.shape[1]
  rows = jnp.pad(patches, (
      (0, 0), (0, num_tokens - count), (num_tokens - patches.shape[2], 0)),
                 constant_values=True)
  return rows[:, None]


def _upscaled(part: tree.Tree, x: Array) -> Array:
  """[b, 2 y, 2 x, d] of a map."""
  x = parts.grown(part['grow'], x)
  x = parts.depthwise(part['smooth'], layers.gelu(x))
  return normed(part['norm'], x, UPSCALE_EPSILON)


def normed(params: Mapping[str, Array], x: Array, epsilon: float) -> Array:
  """Layer norm over the last axis, in float32."""
  x = x.astype(jnp.float32)
  mean = jnp.mean(x, axis=-1, keepdims=True)
  variance = jnp.mean(jnp.square(x - mean), axis=-1, keepdims=True)
  lead = (None,) * (x.ndim - 1)
  return (x - mean) * jax.lax.rsqrt(variance + epsilon) * params['scale'][
      lead] + params['bias'][lead]


def norm_init(width: int) -> tree.Tree:
  """Parameters of a layer norm that changes nothing."""
  return {'scale': jnp.ones(width), 'bias': jnp.zeros(width)}
