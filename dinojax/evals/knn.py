"""Weighted k-nearest-neighbour classification of frozen features."""

from collections.abc import Sequence

import jax
import numpy as np

from dinojax.features import nearest as nearest_lib
from dinojax.metrics import classification as metrics


def scores(train: np.ndarray, labels: np.ndarray, test: np.ndarray, *,
           ks: Sequence[int], temperature: float = 0.07, num_classes: int,
           skip_first: bool = False, mesh: jax.sharding.Mesh | None = None
           ) -> dict[int, np.ndarray]:
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
    mesh: see nearest.

  Returns:
    {k: [q, num_classes] float32}, rows sum to the share of the k nearest.

  Source: evaluation of DINO, DINOv2 and DINOv3: softmax over the largest k,
    then the first k of it are summed by class.
  """
  first = int(skip_first)
  count = min(max(ks), len(train) - first)
  similarity, index = nearest_lib.nearest(train, test, count + first, mesh)
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


def top1(train, train_labels, test, test_labels, *, k: int = 20,
         temperature: float = 0.07) -> float:
  """k-NN top-1 in per cent; labels are any integers."""
  classes = np.unique(np.concatenate([train_labels, test_labels]))
  result = scores(
      train, np.searchsorted(classes, train_labels), test, ks=(k,),
      temperature=temperature, num_classes=len(classes))
  labels = np.searchsorted(classes, test_labels)
  return 100.0 * metrics.accuracy(result[k], labels)
