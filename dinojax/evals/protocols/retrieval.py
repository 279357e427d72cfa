"""Retrieval of images of the same group, by the cosine of CLS tokens."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np

from dinojax.core import errors
from dinojax.evals import protocol
from dinojax.evals.protocols import knn
from dinojax.features import spec
from dinojax.metrics import retrieval

TITLE = 'retrieval of images of the same group'
COST = 'database and queries once'
ROLES = {'database': protocol.Role(
    'test', what='a source whose sub-folders are groups, such as folder:DIR'),
         'query': protocol.Role(needed=False)}
_CLS = spec.FeatureSpec()


@dataclasses.dataclass(frozen=True)
class Settings:
  """Mean average precision of a ranking by similarity."""

  # Source that is searched, sub-folders are groups; None: data.test.
  database: str | None = None
  # Source of queries; None: every image of the database asks for the others
  # of its group.
  query: str | None = None


def check(settings: Settings, config: Any):
  """Every backbone has a CLS token."""
  del settings, config


def passes(settings: Settings, sizes: Mapping[str, int]) -> int:
  """Images that go through the backbone."""
  del settings
  return sizes['database'] + sizes['query']


def run(job: protocol.Job, settings: Settings) -> list[protocol.Measured]:
  """Average precision, and whether the first one is right, of every query.

  Raises:
    UserError: sources without groups, or no query with an answer.
  """
  database = protocol.labelled(
      job.sets['database'][0], 'retrieval.database')
  extract = lambda source: protocol.features(
      job, source, {'cls': _CLS}, knn.cls)
  found_in = extract(database)
  if job.sets['query']:
    query = protocol.labelled(job.sets['query'][0], 'retrieval.query')
    matching = protocol.matched(database, query, job.say)
    asked = extract(query)
    asked = protocol.in_common(
        asked, matching.of_test(asked['label']), query.spec)
    junk = None
  else:
    query, asked = database, found_in
    junk = np.eye(len(asked['label']), dtype=bool)  # not itself
  positive = asked['label'][:, None] == found_in['label'][None]
  if junk is not None:
    positive &= ~junk
  if not positive.any():
    raise errors.UserError(
        f'no query of {query.spec} has an image of its group in '
        f'{database.spec}: check the sub-folders')
  similarity = retrieval.similarities(asked['cls'], found_in['cls'])
  precision = retrieval.average_precision(similarity, positive, junk=junk)
  masked = similarity if junk is None else np.where(junk, -np.inf, similarity)
  first = positive[np.arange(len(positive)), masked.argmax(1)].astype(float)
  first[~positive.any(1)] = np.nan
  return [protocol.Measured(
      query.spec, {'mAP': precision, 'first': first}, protocol.means)]
