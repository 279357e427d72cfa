"""Retrieval: average precision of a ranking by similarity; numpy."""

from collections.abc import Sequence

import numpy as np

_LEAST = 1e-9  # variance of a direction, as a part of the largest


def similarities(query: np.ndarray, database: np.ndarray) -> np.ndarray:
  """[q, r] cosine similarities of [q, d] and [r, d] features."""
  return unit(query) @ unit(database).T


def unit(features: np.ndarray) -> np.ndarray:
  """[r, d] features of length one."""
  features = np.asarray(features)
  return features / np.maximum(
      np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


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
# Kinds that are to be found, and those that are taken out of the ranking.
SETUPS = {'easy': ((EASY,), (HARD, JUNK)), 'medium': ((EASY, HARD), (JUNK,)),
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
  wanted, ignored = (np.isin(kinds, some) for some in SETUPS[setup])
  return (average_precision(scores, wanted, junk=ignored, trapezoid=True),
          precisions_at(scores, wanted, ignored, ks))


def precisions_at(scores: np.ndarray, positive: np.ndarray, junk: np.ndarray,
                  ks: Sequence[int]) -> np.ndarray:
  """[q, k] precision of the first k, see `revisited`; NaN: no positive."""
  out = np.full((len(scores), len(ks)), np.nan)
  for i, (score, right, ignored) in enumerate(zip(
      scores, positive, junk, strict=True)):
    ranked = right[~ignored][np.argsort(-score[~ignored], kind='stable')]
    if ranked.any():
      last = np.flatnonzero(ranked)[-1] + 1
      out[i] = [ranked[:min(k, last)].mean() for k in ks]
  return out


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
  near = np.argsort(-scores, axis=1, kind='stable')[:, :k]
  classes, index = np.unique(labels, return_inverse=True)
  best, sure = votes_of_nearest(
      np.take_along_axis(scores, near, axis=1), index[near],
      num_classes=len(classes), temperature=temperature)
  return classes[best], sure


def votes_of_nearest(scores: np.ndarray, classes: np.ndarray, *,
                     num_classes: int, temperature: float
                     ) -> tuple[np.ndarray, np.ndarray]:
  """`soft_votes` of the neighbours alone, for databases of many classes.

  Args:
    scores: [q, k] similarities of the nearest images, falling.
    classes: [q, k] their classes, from 0.
    num_classes: classes of the database; those without a neighbour score 0.
    temperature: factor of scores before the softmax.

  Returns:
    [q] classes, the first of equal ones, and [q] probabilities.
  """
  out = np.zeros(len(scores), np.int64), np.zeros(len(scores))
  for i, (score, number) in enumerate(zip(scores, classes, strict=True)):
    # The first of each class is its best, as scores fall.
    present, first = np.unique(number, return_index=True)
    best = np.maximum(score[first].astype(np.float64), 0.0)
    top = best.max()
    total = np.exp(temperature * (best - top)).sum() + (
        num_classes - len(present)) * np.exp(-temperature * top)
    out[0][i] = present[best.argmax()] if top > 0 else 0
    out[1][i] = 1.0 / total
  return out


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
    dimensions: directions that are kept, e; fewer where `of` has fewer.
  """
  of = np.asarray(of, np.float64)
  centre = of.mean(0)
  values, vectors = np.linalg.eigh(np.cov((of - centre).T, bias=True))
  kept = min(dimensions, int((values > _LEAST * values.max()).sum()))
  values, vectors = values[::-1][:kept], vectors[:, ::-1][:, :kept]
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


_CHUNK = 512  # images that meet all texts at a time


def ranks(image: np.ndarray, text: np.ndarray, owner: np.ndarray
          ) -> tuple[np.ndarray, np.ndarray]:
  """Places, from 0, of what belongs together among all.

  Others that are as similar come before: what is the same for all is last.

  Args:
    image: [r, d] of length one.
    text: [n, d] of length one.
    owner: [n] the image of every text.

  Returns:
    [r] place of the best of an image's texts among all texts, the number of
    texts where it has none; and [n] place of a text's image among all images.
  """
  right = np.einsum('nd,nd->n', image[owner], text)
  by_image, before = np.empty(len(image), np.int64), np.zeros(
      len(text), np.int64)
  for start in range(0, len(image), _CHUNK):
    rows = np.arange(start, min(start + _CHUNK, len(image)))
    scores = image[rows] @ text.T
    belongs = owner[None] == rows[:, None]
    # One product for all: what belongs is compared with itself exactly.
    scores[belongs] = np.broadcast_to(right, scores.shape)[belongs]
    best = np.max(scores, axis=1, where=belongs, initial=-np.inf)
    by_image[rows] = np.sum((scores >= best[:, None]) & ~belongs, axis=1)
    before += np.sum((scores >= right[None]) & ~belongs, axis=0)
  return by_image, before
