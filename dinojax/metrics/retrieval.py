"""Retrieval: average precision of a ranking by similarity; numpy."""

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
