"""Weighted k-nearest-neighbour classification of frozen features."""

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.metrics import classification as metrics

_TEST_TILE, _TRAIN_TILE = 1024, 65536


def unit(features: jax.Array) -> jax.Array:
  """[r, d] rows of length one, float32."""
  features = features.astype(jnp.float32)
  norm = jnp.linalg.norm(features, axis=-1, keepdims=True)
  return features / jnp.maximum(norm, 1e-12)


def nearest(train: np.ndarray, test: np.ndarray,
            k: int) -> tuple[np.ndarray, np.ndarray]:
  """Cosine similarities and rows of the k nearest train features.

  Args:
    train: [r, d] features.
    test: [q, d] features.
    k: neighbours, at most r.

  Returns:
    [q, k] float32 by falling similarity, the earlier of equal ones first, and
    [q, k] int32.
  """
  train = unit(jnp.asarray(train))
  parts = []
  for start in range(0, len(test), _TEST_TILE):
    rows = unit(jnp.asarray(test[start:start + _TEST_TILE]))
    parts.append(_nearest(rows, train, k))
  similarity, index = (np.concatenate(p) for p in zip(*parts, strict=True))
  return similarity, index


def scores(train: np.ndarray, labels: np.ndarray, test: np.ndarray, *,
           ks: Sequence[int], temperature: float = 0.07, num_classes: int,
           skip_first: bool = False) -> dict[int, np.ndarray]:
  """Class scores of every test row, for several k from one search.

  Args:
    train: [r, d] features; normalised here.
    labels: [r] of the train features, 0..num_classes − 1; or [r, k], how much
      of each class a feature is (several labels, or soft ones).
    test: [q, d] features.
    ks: neighbours; each is cut to the number of train features.
    temperature: divisor of cosine similarities before the softmax.
    num_classes: classes.
    skip_first: leaves the nearest out, which is the row itself when `test` is
      part of `train`.

  Returns:
    {k: [q, num_classes] float32}, rows sum to the share of the k nearest.

  Source: evaluation of DINO, DINOv2 and DINOv3: softmax over the largest k,
    then the first k of it are summed by class.
  """
  first = int(skip_first)
  count = min(max(ks), len(train) - first)
  similarity, index = nearest(train, test, count + first)
  similarity, index = similarity[:, first:], index[:, first:]
  weight = np.exp((similarity - similarity[:, :1]) / temperature)
  weight = weight / weight.sum(1, keepdims=True)
  votes = np.asarray(labels)[index]
  out = {}
  for k in ks:
    if votes.ndim == 3:
      out[k] = np.einsum('qn,qnk->qk', weight[:, :k], votes[:, :k])
      continue
    total = np.zeros((len(test), num_classes), np.float32)
    rows = np.broadcast_to(np.arange(len(test))[:, None], votes[:, :k].shape)
    np.add.at(total, (rows, votes[:, :k]), weight[:, :k])
    out[k] = total
  return out


def _nearest(rows: jax.Array, train: jax.Array,
             k: int) -> tuple[np.ndarray, np.ndarray]:
  """Similarities and indices of the k nearest, tile by tile."""
  best = index = None
  for start in range(0, len(train), _TRAIN_TILE):
    tile = train[start:start + _TRAIN_TILE]
    near, where = _search(rows, tile, min(k, len(tile)))
    where = where + start
    if best is not None:
      near = jnp.concatenate([best, near], axis=1)
      where = jnp.concatenate([index, where], axis=1)
      near, order = jax.lax.top_k(near, min(k, near.shape[1]))
      where = jnp.take_along_axis(where, order, axis=1)
    best, index = near, where
  return np.asarray(best), np.asarray(index)


@functools.partial(jax.jit, static_argnums=2)
def _search(rows, tile, k):
  similarity = jnp.einsum('qd,rd->qr', rows, tile, precision='highest')
  return jax.lax.top_k(similarity, k)


def top1(train, train_labels, test, test_labels, *, k: int = 20,
         temperature: float = 0.07) -> float:
  """k-NN top-1 in per cent; labels are any integers."""
  classes = np.unique(np.concatenate([train_labels, test_labels]))
  result = scores(
      train, np.searchsorted(classes, train_labels), test, ks=(k,),
      temperature=temperature, num_classes=len(classes))
  labels = np.searchsorted(classes, test_labels)
  return 100.0 * metrics.accuracy(result[k], labels)
