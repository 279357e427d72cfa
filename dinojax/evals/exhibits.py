"""Met: exhibits of queries by k-nearest neighbours, with a confidence.

Source: nikosips/met (knn_eval.py): descriptors are whitened on the database;
  K and the temperature are those of the best GAP on validation queries.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np

from dinojax.core import errors
from dinojax.evals import protocol
from dinojax.evals.sets import met
from dinojax.features import nearest as nearest_lib
from dinojax.metrics import retrieval

KS = (1, 2, 3, 5, 7, 10, 15, 20, 50)
TEMPERATURES = (0.01, 0.1, 1.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 50.0, 100.0,
                500.0)


@dataclasses.dataclass(frozen=True)
class Queries:
  """Neighbours of queries: cosines and classes [q, k], and true exhibits [q].

  Classes count the exhibits of the database from 0.
  """

  cosines: np.ndarray
  classes: np.ndarray
  exhibits: np.ndarray


def measured(each: met.Met, rows: protocol.Rows, *, dimensions: int | None
             ) -> protocol.Measured:
  """GAP, GAP without distractors, and accuracy of the test queries.

  Args:
    each: the set.
    rows: `cls` and `index` of its readable images.
    dimensions: directions that are kept of whitened features; None: features
      as they are.

  Raises:
    UserError: no readable image in one of its three parts, or no query that
      has an answer.
  """
  by_part = _by_part(each, rows)
  features, exhibits = by_part['database']
  known = np.unique(exhibits)
  change = (lambda x: x) if dimensions is None else (
      lambda x: retrieval.whitened(x, features, dimensions).astype(np.float32))
  database = change(features)
  k = min(max(KS), len(database))

  def near(part: str) -> Queries:
    asked, labels = by_part[part]
    cosine, index = nearest_lib.nearest(database, change(asked), k)
    return Queries(cosine, np.searchsorted(known, exhibits[index]), labels)

  best = tuned(near('validation'), known)
  test = near('test')
  columns = answers(test, known, *best[1:])
  return protocol.Measured(each.spec, columns, scores, {
      'k': best[1], 'temperature': best[2],
      'validation GAP': 100.0 * best[0],
      'dimensions': database.shape[1] if dimensions else 'not whitened',
      'exhibits': len(known)})


def tuned(queries: Queries, known: np.ndarray) -> tuple[float, int, float]:
  """The best GAP, and the k and temperature that reach it first."""
  best = (-1.0, 0, 0.0)
  for k in KS:
    if k > queries.cosines.shape[1]:
      break
    for temperature in TEMPERATURES:
      gap = scores(answers(queries, known, k, temperature))['GAP'] / 100
      if gap > best[0]:
        best = gap, k, temperature
  return best


def answers(queries: Queries, known: np.ndarray, k: int,
            temperature: float) -> protocol.Rows:
  """Confidence, correctness, and whether there is an answer, by query."""
  best, sure = retrieval.votes_of_nearest(
      queries.cosines[:, :k], queries.classes[:, :k], num_classes=len(known),
      temperature=temperature)
  return {'confidence': sure,
          'right': (known[best] == queries.exhibits).astype(float),
          'has answer': (queries.exhibits != met.DISTRACTOR).astype(float)}


def scores(rows: protocol.Rows) -> dict[str, float]:
  """GAP with and without distractors, and accuracy, in per cent."""
  known = rows['has answer'] > 0
  if not known.any():
    return {}
  right = rows['right'] > 0
  gap = retrieval.global_average_precision
  sure = rows['confidence']
  return {'GAP': 100 * gap(sure, right, known),
          'GAP-': 100 * gap(sure[known], right[known], known[known]),
          'accuracy': 100 * float(right[known].mean())}


def _by_part(each: met.Met, rows: protocol.Rows
             ) -> Mapping[str, tuple[Any, Any]]:
  """Features and exhibits of each part."""
  out = {}
  for part, places in each.parts().items():
    inside = np.isin(rows['index'], places)
    labels = each.labels[rows['index'][inside]]
    if not inside.any() or (labels == met.DISTRACTOR).all():
      raise errors.UserError(
          f'{each.spec} has no readable image of an exhibit in its {part}: '
          'check images/')
    out[part] = rows['cls'][inside], labels
  return out
