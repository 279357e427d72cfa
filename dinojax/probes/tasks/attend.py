"""Classification of videos by attention over the tokens of their frames.

A learned query attends to all patches of all frames, after blocks in which
these attend to each other; a linear layer answers.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools

import einops
import jax
import jax.numpy as jnp
import optax

from dinojax.core import tree
from dinojax.features import spec
from dinojax.probes import task as task_lib

Array = jax.Array
CHOICE = 'frames'
_WEIGHT_STD = 0.02
_EPSILON = 1e-5
_QUERIES = 512  # tokens that attend at a time: all at once fill the memory


@dataclasses.dataclass(frozen=True)
class Attend:
  """An attentive probe.

  Batches have image [b, v, y, x, c] of v frames, target [b] int32, and weight
  [b], 0 for rows that are padding.

  Attributes:
    num_classes: classes, k.
    num_heads: heads of attention; they divide the width.
    depth: blocks, the last of which is the one of the query.
    mlp_ratio: hidden width of a block over its width.

  Source: attentive probe of V-JEPA 2, which DINOv3 follows.
  Differs: times of frames enter as fixed sines and cosines.
  """

  num_classes: int
  num_heads: int = 16
  depth: int = 4
  mlp_ratio: float = 4.0

  @functools.cached_property
  def choices(self) -> Mapping[str, spec.FeatureSpec]:
    """Patches of the last block, after the final norm."""
    return {CHOICE: spec.FeatureSpec(('patches',), 1, 'normed')}

  def init(self, key: Array, widths: Sequence[int],
           choice: str) -> task_lib.Head:
    """Small random weights, no biases."""
    del choice
    width, = widths
    keys = iter(jax.random.split(key, 8))
    hidden = int(width * self.mlp_ratio)

    def linear(rows, columns, *lead):
      return {'kernel': _WEIGHT_STD * jax.random.truncated_normal(
          next(keys), -2, 2, (*lead, rows, columns)),
              'bias': jnp.zeros((*lead, columns))}

    norm = lambda *lead: {'scale': jnp.ones((*lead, width)),
                          'bias': jnp.zeros((*lead, width))}
    inner = self.depth - 1
    params = {
        'query': _WEIGHT_STD * jax.random.truncated_normal(
            next(keys), -2, 2, (1, width)),
        'cross': {'norm1': norm(), 'q': linear(width, width),
                  'kv': linear(width, 2 * width), 'norm2': norm(),
                  'fc1': linear(width, hidden), 'fc2': linear(hidden, width)},
        'linear': linear(width, self.num_classes)}
    if inner:
      keys = iter(jax.random.split(jax.random.fold_in(key, 1), 4))
      params['blocks'] = {
          'norm1': norm(inner), 'qkv': linear(width, 3 * width, inner),
          'proj': linear(width, width, inner), 'norm2': norm(inner),
          'fc1': linear(width, hidden, inner),
          'fc2': linear(hidden, width, inner)}
    return {'params': params, 'stats': {}}

  def prepare(self, batch: tree.Tree, key: Array) -> tree.Tree:
    """Nothing is changed."""
    del key
    return batch

  def draw(self, key: Array, step: Array, batch: tree.Tree) -> tree.Tree:
    """Nothing is random."""
    return {}

  def outputs(self, head: task_lib.Head, features: task_lib.Features,
              batch: tree.Tree, draws: tree.Tree | None
              ) -> tuple[Array, tree.Tree]:
    """[b, k] logits, float32."""
    del batch, draws
    patches = features[-1]['patches'].astype(jnp.float32)  # [b, v, p, d]
    times = sines(*patches.shape[1::2])
    tokens = einops.rearrange(
        patches + times[None, :, None], 'b v p d -> b (v p) d')
    params = head['params']
    pooled = pool(params, tokens, self.num_heads)[:, 0]
    return _linear(params['linear'], pooled), head['stats']

  def loss(self, outputs: Array, batch: tree.Tree,
           draws: tree.Tree | None) -> Array:
    """Mean cross-entropy over the rows that count."""
    del draws
    each = optax.softmax_cross_entropy_with_integer_labels(
        outputs, batch['target'])
    weight = batch['weight'].astype(jnp.float32)
    return jnp.sum(each * weight) / jnp.maximum(jnp.sum(weight), 1.0)

  def taken(self, backbone: tree.Tree) -> tree.Tree:
    """Nothing is of the backbone."""
    del backbone
    return {}

  def settle(self, params: tree.Tree) -> tree.Tree:
    """There are no limits."""
    return params


def pool(params: tree.Tree, tokens: Array, num_heads: int) -> Array:
  """[b, q, d] what the queries gather of tokens [b, n, d].

  Args:
    params: query [q, d]; blocks, stacked, if any; cross, with the norms and
      the MLP of a whole block, or q and kv alone.
    tokens: [b, n, d].
    num_heads: heads of attention.

  Source: AttentivePooler of V-JEPA 2: the query's attention has no output
    projection, and the query is not normalised.
  """
  if 'blocks' in params:
    def block(x, layer):
      qkv = _linear(layer['qkv'], _norm(layer['norm1'], x))
      q, k, v = einops.rearrange(
          qkv, 'b n (three h d) -> three b n h d', three=3, h=num_heads)
      x = x + _linear(layer['proj'], _attend(q, k, v))
      return _mlp(layer, x), None
    tokens, _ = jax.lax.scan(jax.checkpoint(block), tokens, params['blocks'])
  cross = params['cross']
  is_whole = 'norm1' in cross
  query = jnp.broadcast_to(
      params['query'][None], (len(tokens), *params['query'].shape))
  split = lambda x: einops.rearrange(x, 'b n (h d) -> b n h d', h=num_heads)
  k, v = jnp.split(_linear(cross['kv'], _norm(
      cross['norm1'], tokens) if is_whole else tokens), 2, axis=-1)
  out = _attend(*map(split, (_linear(cross['q'], query), k, v)))
  return _mlp(cross, query + out) if is_whole else out


def sines(length: int, width: int) -> Array:
  """[v, d] sines and cosines of the places of frames."""
  rates = 1e4 ** (-jnp.arange(0, width, 2) / width)
  angles = jnp.arange(length)[:, None] * rates[None]
  return jnp.concatenate(
      [jnp.sin(angles), jnp.cos(angles)], axis=1)[:, :width]


def averaged(logits: Array, of: str = 'probabilities') -> Array:
  """[b, k] the answer of several views [b, w, k].

  Args:
    logits: logits of each view.
    of: 'probabilities', which are averaged; or 'logits'.

  Source: the papers average scores, and do not say which.
  """
  scores = {'probabilities': jax.nn.softmax, 'logits': lambda x: x}[of]
  return scores(logits).mean(axis=1)


def _attend(q: Array, k: Array, v: Array) -> Array:
  """[b, n, d] attention of [b, n, h, e] to [b, m, h, e], a part at a time."""
  count = q.shape[1]
  size = min(_QUERIES, count)
  padded = jnp.pad(q, ((0, 0), (0, -count % size), (0, 0), (0, 0)))
  parts = einops.rearrange(padded, 'b (l n) h e -> l b n h e', n=size)
  part = jax.checkpoint(lambda x: jax.nn.dot_product_attention(x, k, v))
  out = jax.lax.map(part, parts)
  # One pair at a time: rows are split over devices.
  out = einops.rearrange(out, 'l b n h e -> l b n (h e)')
  return einops.rearrange(out, 'l b n d -> b (l n) d')[:, :count]


def _mlp(layer: tree.Tree, x: Array) -> Array:
  hidden = _linear(layer['fc1'], _norm(layer['norm2'], x))
  return x + _linear(layer['fc2'], jax.nn.gelu(hidden, approximate=False))


def _linear(layer: tree.Tree, x: Array) -> Array:
  return jnp.einsum('...i,ij->...j', x, layer['kernel'],
                    precision='highest') + _row(layer['bias'], x)


def _norm(layer: tree.Tree, x: Array) -> Array:
  x = x - x.mean(-1, keepdims=True)
  variance = jnp.square(x).mean(-1, keepdims=True)
  return x * jax.lax.rsqrt(variance + _EPSILON) * _row(
      layer['scale'], x) + _row(layer['bias'], x)


def _row(vector: Array, like: Array) -> Array:
  return vector.reshape(*[1] * (like.ndim - 1), -1)
