"""Retrieval sets: images, who asks for which, and what counts as an answer."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any, Protocol

import numpy as np

from dinojax.core import errors
from dinojax.core import lists
from dinojax.data import classes as classes_lib
from dinojax.data import listing
from dinojax.data import record as record_lib
from dinojax.evals.sets import image_files
from dinojax.metrics import retrieval

_PLAIN = {'': ((retrieval.EASY,), (retrieval.JUNK,))}
RELEVANCE = 'relevance.csv'
_COLUMNS = ('query', 'database', 'relevance')


@dataclasses.dataclass(frozen=True)
class Task:
  """Queries of a set, and what they search.

  Attributes:
    title: said behind the name of the set; '' where there is one task.
    query: [q] places among the images of the set.
    database: [r] places.
    kinds: number of a query to [r] kinds of metrics.retrieval.
    setups: kinds that are to be found, and those that are left out, by name.
    trapezoid: see metrics.retrieval.average_precision.
    ks: ranks at which precision is measured.
  """

  title: str
  query: np.ndarray
  database: np.ndarray
  kinds: Callable[[int], np.ndarray]
  setups: Any = dataclasses.field(default_factory=lambda: dict(_PLAIN))
  trapezoid: bool = False
  ks: tuple[int, ...] = ()


class Ranking(Protocol):
  """A set that is searched.

  Attributes:
    spec: name of the set.
    digest: a text that differs where its lists do.
    images: all of them, queries too.
  """

  spec: str
  digest: str
  images: record_lib.Source

  def __len__(self) -> int:
    """Number of images."""

  def tasks(self, labels: np.ndarray) -> Sequence[Task]:
    """Its tasks; `labels` [n] are those of the images, -1 for none."""

  def facts(self) -> dict[str, Any]:
    """More about the numbers."""


class Groups:
  """Sub-folders are groups: every image asks for the others of its own.

  With queries of their own, these ask for the images of their group, by the
  name of the sub-folder.
  """

  def __init__(self, database: record_lib.Source,
               query: record_lib.Source | None = None,
               say: Callable[[str], None] = print):
    """Compares the groups of both.

    Args:
      database: images that are searched.
      query: images that ask; None: all of the database.
      say: gets sentences on groups that only one side has.

    Raises:
      UserError: no groups, or none in common.
    """
    for name, source in (('database', database), ('query', query)):
      if source is not None and not source.classes:
        raise errors.UserError(
            f'retrieval.{name}={source.spec} has no groups: put the images of '
            'each into a sub-folder of its own')
    self.spec = (query or database).spec
    self.digest = ''
    self._matching = None
    self.images = database
    if query is not None:
      self._matching = classes_lib.match(
          database, query, train_key='retrieval.database',
          test_key='retrieval.query')
      for note in self._matching.notes:
        say(note)
      self.images = image_files.Joined(self.spec, (database, query))

  def __len__(self) -> int:
    return len(self.images)

  def tasks(self, labels: np.ndarray) -> list[Task]:
    """The task of all queries in a group.

    Raises:
      UserError: no query has an answer.
    """
    places = np.arange(len(self))
    database, query, of = places, places, labels
    if self._matching is not None:
      database, query = self.images.parts()
      of = np.concatenate([labels[database],
                           self._matching.of_test(labels[query])])
    query = query[of[query] >= 0]  # no label, no question
    database = database[of[database] >= 0] if self._matching else database

    def kinds(i: int) -> np.ndarray:
      out = np.where(of[database] == of[query[i]], retrieval.EASY,
                     retrieval.NEGATIVE)
      out[database == query[i]] = retrieval.JUNK  # not itself
      return out

    if not any((kinds(i) == retrieval.EASY).any() for i in range(len(query))):
      raise errors.UserError(
          f'no query of {self.spec} has another image of its group: check the '
          'sub-folders')
    return [Task('', query, database, kinds)]

  def facts(self) -> dict[str, Any]:
    """Nothing more."""
    return {}


class Relevance:
  """The plain layout: query/, database/ and relevance.csv.

  Lines `query,database,relevance` name files below the two folders: 1 is an
  answer, 0 is none, -1 is left out of the ranking; pairs without a line are
  no answers.
  """

  def __init__(self, folder: str):
    """Reads relevance.csv.

    Raises:
      UserError: a file that is missing, or a line that is none.
    """
    self.spec = f'relevance:{folder}'
    root = image_files.need(
        folder, (RELEVANCE, 'query', 'database'),
        'a set of your own has query/, database/ and relevance.csv with the '
        'columns query,database,relevance (docs/evaluate.md)')
    names = {part: listing.look(str(root / part)).paths
             for part in ('query', 'database')}
    for part, some in names.items():
      if not some:
        raise errors.UserError(f'{root / part} holds no images')
    self._kinds = _read(root / RELEVANCE, names)
    self._sizes = tuple(len(some) for some in names.values())
    self.digest = image_files.digest(names, self._kinds)
    self.images = image_files.Joined(self.spec, [
        image_files.Files(self.spec, str(root / part), some)
        for part, some in names.items()])

  def __len__(self) -> int:
    return len(self.images)

  def tasks(self, labels: np.ndarray) -> list[Task]:
    """The one task, of queries with a line in the list."""
    del labels
    asking = np.array(sorted(self._kinds))

    def kinds(i: int) -> np.ndarray:
      out = np.full(self._sizes[1], retrieval.NEGATIVE)
      for place, kind in self._kinds[int(asking[i])].items():
        out[place] = kind
      return out

    return [Task('', asking, self._sizes[0] + np.arange(self._sizes[1]), kinds)]

  def facts(self) -> dict[str, Any]:
    """Queries that nobody gives an answer for."""
    return {'queries without a line': self._sizes[0] - len(self._kinds)}


_OF_NUMBER = {'1': retrieval.EASY, '0': retrieval.NEGATIVE,
              '-1': retrieval.JUNK}


def _read(path, names: dict[str, list[str]]) -> dict[int, dict[int, int]]:
  """Kinds of database images by query, both by their numbers.

  Raises:
    UserError: other columns, a file that is not there, another relevance, or
      no answer at all.
  """
  places = {part: {name: i for i, name in enumerate(some)}
            for part, some in names.items()}
  out: dict[int, dict[int, int]] = {}
  for number, row in enumerate(lists.rows(path, _COLUMNS), 1):
    where = f'{path}, row {number}'
    for part in ('query', 'database'):
      if row[part] not in places[part]:
        raise errors.UserError(
            f'{where}: {row[part]} is no image of {part}/: check the name, '
            f'which is relative to {part}/')
    if row['relevance'] not in _OF_NUMBER:
      raise errors.UserError(
          f'{where}: the relevance {row["relevance"]} is none of 1, 0 and -1')
    out.setdefault(places['query'][row['query']], {})[
        places['database'][row['database']]] = _OF_NUMBER[row['relevance']]
  if not any(retrieval.EASY in kinds.values() for kinds in out.values()):
    raise errors.UserError(
        f'{path} has no line of relevance 1: no query has an answer')
  return out
