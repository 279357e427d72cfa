"""Retrieval by the cosine of CLS tokens, without training.

Source: the revisited Oxford and Paris benchmark, Met and AmsterTime as DINO,
  DINOv2 and DINOv3 measure them; groups and lists of your own.
"""

from collections.abc import Iterator, Mapping
import dataclasses
from typing import Any

import numpy as np

from dinojax.core import errors
from dinojax.core import fields
from dinojax.evals import exhibits
from dinojax.evals import protocol
from dinojax.evals import ranking_picture
from dinojax.evals import whole
from dinojax.evals.protocols import knn
from dinojax.evals.sets import met
from dinojax.evals.sets import ranking
from dinojax.evals.sets import revisited
from dinojax.evals.sets import searched
from dinojax.features import spec
from dinojax.metrics import retrieval
from dinojax.parallel import processes

TITLE = 'retrieval of the same place, object or group (mAP; GAP on Met)'
COST = 'database and queries once'
PIXELS = lambda settings: settings.image_px or ''
ROLES = {'database': protocol.Role(
    'test', opens=searched.open_set, what=searched.WORDS),
         'query': protocol.Role(needed=False)}
_CLS = spec.FeatureSpec()
_BLOCK = 64  # queries whose cosines are held at a time


@dataclasses.dataclass(frozen=True)
class Settings:
  """Mean average precision of a ranking by similarity."""

  # Set that is searched: a source whose sub-folders are groups, or a benchmark
  # with queries of its own, such as roxford5k:DIR; None: data.test.
  database: str | None = None
  # Source of queries; None: every image of the database asks for the others
  # of its group, or the benchmark's own.
  query: str | None = None
  # Length of the long side of whole images, in pixels; None: squares, as of
  # the other protocols.
  image_px: fields.Positive | None = None
  # Factors of the size whose CLS tokens are averaged, such as (1.0, 0.7071,
  # 0.5), DINO's three.
  scales: tuple[fields.Part, ...] = whole.ONCE
  # Cuts queries of Oxford and Paris to their box, as the benchmark's example
  # does; DINO's evaluation takes them whole.
  crop_queries: bool = True
  # Directions kept of features that are whitened on Met's database; None: not
  # whitened.
  met_dimensions: fields.Positive | None = 512


def check(settings: Settings, config: Any):
  """Refuses images smaller than a patch, and no scale at all.

  Raises:
    UserError: they are.
  """
  whole.check(settings.image_px, config, 'retrieval.image_px')
  if not settings.scales:
    raise errors.UserError(
        'retrieval.scales=() has no scale: set retrieval.scales=(1.0,)')


def passes(settings: Settings, sizes: Mapping[str, int]) -> int:
  """Images that go through the backbone."""
  del settings
  return sizes['database'] + sizes['query']


def run(job: protocol.Job, settings: Settings) -> list[protocol.Measured]:
  """Average precision of every query, or its confidence on Met.

  Raises:
    UserError: sources without groups, no query with an answer, or queries
      beside a benchmark that has its own.
  """
  each = _opened(job, settings)
  rows = whole.features(
      job, each.images, {'cls': _CLS}, knn.cls, long_px=settings.image_px,
      scales=settings.scales)
  if isinstance(each, met.Met):
    return [exhibits.measured(each, rows, dimensions=settings.met_dimensions)]
  labels = np.full(len(each.images), -1)
  labels[rows['index']] = rows['label']
  return [_measured(each, task, rows) for task in each.tasks(labels)]


def _opened(job: protocol.Job, settings: Settings) -> Any:
  """The set that is searched, with its queries.

  Raises:
    UserError: see `run`.
  """
  each, query = job.sets['database'][0], job.sets['query']
  if not hasattr(each, 'images'):
    return ranking.Groups(each, query[0] if query else None, job.say)
  if query:
    raise errors.UserError(
        f'retrieval.query={query[0].spec} is given, and {each.spec} has '
        'queries of its own: leave retrieval.query out')
  if isinstance(each, revisited.Revisited) and not settings.crop_queries:
    return each.whole()
  return each


def _measured(each: ranking.Ranking, task: ranking.Task,
              rows: protocol.Rows) -> protocol.Measured:
  """Rows of the queries of a task, in order.

  Raises:
    UserError: none of its queries, or of what they search, can be read.
  """
  row_of = np.full(len(each.images), -1)
  row_of[rows['index']] = np.arange(len(rows['index']))
  asking = np.flatnonzero(row_of[task.query] >= 0)
  searched_in = np.flatnonzero(row_of[task.database] >= 0)
  if not len(asking) or not len(searched_in):
    raise errors.UserError(
        f'{each.spec} has no readable query, or nothing readable to search')
  columns: dict[str, list] = {}
  picture, shown = [], set(ranking_picture.chosen(len(asking)))
  blocks = _blocks(
      rows['cls'][row_of[task.query[asking]]],
      rows['cls'][row_of[task.database[searched_in]]])
  for number, (query, cosine) in enumerate(zip(asking, blocks, strict=True)):
    kinds = task.kinds(int(query))[searched_in]
    for name, value in _scores(task, cosine, kinds).items():
      columns.setdefault(name, []).append(value)
    if number in shown:
      picture.append((int(task.query[query]), _answers(
          task, cosine, kinds, task.database[searched_in])))
  lost = len(task.query) - len(asking), len(task.database) - len(searched_in)
  facts = each.facts() | {name: count for name, count in zip(
      ('unreadable queries', 'unreadable images'), lost, strict=True) if count}
  pictures = {'ranking': ranking_picture.draw(each.images, picture)} if (
      processes.is_first()) else {}
  return protocol.Measured(
      each.spec + (f', {task.title}' if task.title else ''),
      {name: np.array(column) for name, column in columns.items()},
      protocol.means, facts, pictures=pictures)


def _blocks(query: np.ndarray, database: np.ndarray) -> Iterator[np.ndarray]:
  """[r] cosines of each query; a block of queries is computed at a time."""
  query, database = retrieval.unit(query), retrieval.unit(database)
  for start in range(0, len(query), _BLOCK):
    yield from query[start:start + _BLOCK] @ database.T


def _scores(task: ranking.Task, cosine: np.ndarray,
            kinds: np.ndarray) -> dict[str, float]:
  """Scores of a query by name, NaN where it has no answer."""
  out = {}
  for name, (wanted, ignored) in task.setups.items():
    positive, junk = (np.isin(kinds, some)[None] for some in (wanted, ignored))
    scores, suffix = cosine[None], f' {name}' if name else ''
    out[f'mAP{suffix}'] = float(retrieval.average_precision(
        scores, positive, junk=junk, trapezoid=task.trapezoid)[0])
    ks = task.ks or (1,)
    at = retrieval.precisions_at(scores, positive, junk, ks)[0]
    if task.ks:
      out |= {f'mP@{k}{suffix}': float(value)
              for k, value in zip(ks, at, strict=True)}
    else:
      out['first'] = float(at[0])
  return out


def _answers(task: ranking.Task, cosine: np.ndarray, kinds: np.ndarray,
             places: np.ndarray) -> list[ranking_picture.Answer]:
  """Answers that are ranked first, without those that are left out."""
  wanted, ignored = list(task.setups.values())[len(task.setups) // 2]
  order = np.argsort(-np.where(np.isin(kinds, ignored), -np.inf, cosine),
                     kind='stable')[:ranking_picture.FIRST]
  return [ranking_picture.Answer(
      int(places[i]), bool(np.isin(kinds[i], wanted)), float(cosine[i]))
          for i in order if not np.isin(kinds[i], ignored)]
