"""Retrieval: average precision of a ranking by similarity; numpy."""

from collections.abc import Sequence

import numpy as np


def similarities(query: np.ndarray, database: np.ndarray) -> np.ndarray:
  """[q, r] cosine similarities of [q, d] and [r, d] features."""
  unit = lambda x: x / np.maximum(
      np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
  return unit(np.asarray(query)) @ unit(np.asarray(database)).T


def average_precision(scores: np.ndarray, positive: np.ndarray, *,
                      junk: np.ndarray | None = None,
                      trapezoid: bool = False) -> np.ndarray:
  """[q] average precision of every query; NaN without a positive.

  Args:
    scores: [q, r] similarities.
    positive: [q, r] bool, what should be found.
    junk: [q, r] bool, what is taken out of the ranking, or None.
    trapezoid: the mean of the precisions before and at a positive, as the
      revisited Oxford and Paris benchmarks measure; else at it.
  """
  junk = np.zeros_like(positive) if junk is None else junk
  return np.array([
      _query(s[~j], p[~j], trapezoid)
      for s, p, j in zip(scores, positive, junk, strict=True)])


# Kinds of a database image for a query, in the revisited benchmarks.
NEGATIVE, EASY, HARD, JUNK = range(4)
_SETUPS = {'easy': ((EASY,), (HARD, JUNK)), 'medium': ((EASY, HARD), (JUNK,)),
           'hard': ((HARD,), (EASY, JUNK))}


def revisited(scores: np.ndarray, kinds: np.ndarray, setup: str,
              ks: Sequence[int] = (1, 5, 10)
              ) -> tuple[np.ndarray, np.ndarray]:
  """Average precision and precision at k of revisited Oxford and Paris.

  Args:
    scores: [q, r] similarities.
    kinds: [q, r] NEGATIVE, EASY, HARD or JUNK.
    setup: 'easy', 'medium' or 'hard'.
    ks: ranks; one beyond the last positive stands for that.

  Returns:
    [q], and [q, k]; NaN for queries without a positive.

  Source: filipradenovic/revisitop.
  """
  wanted, ignored = (np.isin(kinds, some) for some in _SETUPS[setup])
  precisions = []
  for score, positive, out in zip(scores, wanted, ignored, strict=True):
    ranked = positive[~out][np.argsort(-score[~out], kind='stable')]
    last = np.flatnonzero(ranked)[-1] + 1 if ranked.any() else 0
    precisions.append([
        ranked[:min(k, last)].mean() if last else np.nan for k in ks])
  return average_precision(scores, wanted, junk=ignored,
                           trapezoid=True), np.array(precisions)


def soft_votes(scores: np.ndarray, labels: np.ndarray, *, k: int,
               temperature: float) -> tuple[np.ndarray, np.ndarray]:
  """Predicted classes of queries, and how sure they are.

  Args:
    scores: [q, r] similarities.
    labels: [r] classes of the database.
    k: nearest images that vote; a class scores its best, never below 0.
    temperature: factor of scores before the softmax over all classes.

  Returns:
    [q] classes, and [q] probabilities.

  Source: nikosips/met.
  """
  classes, index = np.unique(labels, return_inverse=True)
  near = np.argsort(-scores, axis=1, kind='stable')[:, :k]
  best = np.zeros((len(scores), len(classes)))
  rows = np.broadcast_to(np.arange(len(scores))[:, None], near.shape)
  np.maximum.at(best, (rows, index[near]), np.take_along_axis(
      scores, near, axis=1))
  power = np.exp(temperature * (best - best.max(1, keepdims=True)))
  return classes[best.argmax(1)], (power / power.sum(1, keepdims=True)).max(1)


def global_average_precision(confidence: np.ndarray, right: np.ndarray,
                             has_answer: np.ndarray) -> float:
  """GAP: precision over all queries by falling confidence.

  Args:
    confidence: [q].
    right: [q] bool.
    has_answer: [q] bool, False for distractors, which are always wrong.
  """
  order = np.argsort(-confidence, kind='stable')
  hit = (right & has_answer)[order]
  precision = np.cumsum(hit) / np.arange(1, len(hit) + 1)
  return float(np.sum(precision * hit) / np.sum(has_answer))


def whitened(descriptors: np.ndarray, of: np.ndarray,
             dimensions: int) -> np.ndarray:
  """[r, e] descriptors on principal directions, of equal spread, unit length.

  Args:
    descriptors: [r, d].
    of: [n, d] descriptors whose mean and covariance are taken.
    dimensions: directions that are kept, e.
  """
  of = np.asarray(of, np.float64)
  centre = of.mean(0)
  values, vectors = np.linalg.eigh(np.cov((of - centre).T, bias=True))
  values, vectors = values[::-1][:dimensions], vectors[:, ::-1][:, :dimensions]
  out = (descriptors - centre) @ vectors / np.sqrt(values)
  return out / np.linalg.norm(out, axis=1, keepdims=True)


def mean(precisions: np.ndarray) -> float:
  """mAP over the queries that have a positive."""
  return float(np.nanmean(precisions))


def _query(scores: np.ndarray, positive: np.ndarray, trapezoid: bool) -> float:
  ranked = positive[np.argsort(-scores, kind='stable')]
  if not ranked.any():
    return float('nan')
  places = np.flatnonzero(ranked)  # ranks from 0
  hits = np.arange(len(places))
  at = (hits + 1) / (places + 1)
  if not trapezoid:
    return float(at.mean())
  before = np.where(places == 0, 1.0, hits / np.maximum(places, 1))
  return float(((before + at) / 2).mean())
