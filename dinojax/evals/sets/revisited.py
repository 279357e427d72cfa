"""Revisited Oxford and Paris: `roxford5k:DIR`, `rparis6k:DIR`.

DIR holds `jpg/` with all images of the archives side by side, and
`gnd_roxford5k.pkl` or `gnd_rparis6k.pkl`; or it holds a folder of the set's
name that does.

Source: filipradenovic/revisitop (download.py, dataset.py).
"""

import copy
from typing import Any

from etils import epath
import numpy as np

from dinojax.core import errors
from dinojax.core import paths
from dinojax.data import images as images_lib
from dinojax.evals.sets import image_files
from dinojax.evals.sets import ranking
from dinojax.evals.sets import restricted
from dinojax.metrics import retrieval

_HAD = ('the ground truth and the addresses of the images are at '
        'github.com/filipradenovic/revisitop; unpack all images into jpg/, '
        'without sub-folders')
_SEEN = {'roxford5k': (70, 4993), 'rparis6k': (70, 6322)}
_KINDS = {'easy': retrieval.EASY, 'hard': retrieval.HARD,
          'junk': retrieval.JUNK}


class Revisited:
  """A set of queries with easy, hard and junk images.

  Queries are cut to their box, as the benchmark's own example does; DINO's
  evaluation takes them whole.
  """

  def __init__(self, name: str, folder: str):
    """Reads the ground truth, and the sizes of the queries.

    Args:
      name: 'roxford5k' or 'rparis6k'.
      folder: see the module.

    Raises:
      UserError: a file that is missing or holds something else.
    """
    self.spec = f'{name}:{folder}'
    pickle = f'gnd_{name}.pkl'
    inner = epath.Path(paths.expand(folder)) / name
    root = image_files.need(str(inner) if (inner / pickle).exists() else folder,
                       (pickle, 'jpg'), _HAD)
    truth = restricted.load((root / pickle).read_bytes(), str(root / pickle))
    self._database, queries, truth = _checked(truth, str(root / pickle))
    self._truth, self._jpg = truth, str(root / 'jpg')
    self._queries = [f'{each}.jpg' for each in queries]
    image_files.need(
        self._jpg, (f'{self._database[0]}.jpg', *self._queries), _HAD)
    boxes = [tuple(float(x) for x in each['bbx']) for each in truth]
    for file, box in zip(self._queries, boxes, strict=True):
      data = (root / 'jpg' / file).read_bytes()
      image_files.within(box, images_lib.open_image(data).size, file)
    self.digest = image_files.digest(self._database, queries, boxes, truth)
    self.images = self._joined(boxes)
    self._notes = _odd(name, len(queries), len(self._database))

  def _joined(self, boxes: list[tuple] | None) -> image_files.Joined:
    files = [f'{each}.jpg' for each in self._database]
    return image_files.Joined(self.spec, [
        image_files.Files(self.spec, self._jpg, files, mends=True),
        image_files.Files(self.spec, self._jpg, self._queries, boxes=boxes,
                     mends=True)])

  def whole(self) -> 'Revisited':
    """The same set with queries that are not cut."""
    other = copy.copy(self)
    other.images = other._joined(None)
    return other

  def __len__(self) -> int:
    return len(self.images)

  def tasks(self, labels: np.ndarray) -> list[ranking.Task]:
    """The task, with its three set-ups."""
    del labels
    database, query = self.images.parts()
    return [ranking.Task('', query, database, self._kinds, retrieval.SETUPS,
                         True, (1, 5, 10))]

  def _kinds(self, query: int) -> np.ndarray:
    out = np.full(len(self._database), retrieval.NEGATIVE)
    for name, kind in _KINDS.items():
      out[np.asarray(self._truth[query][name], np.int64)] = kind
    return out

  def facts(self) -> dict[str, Any]:
    """Files without an end, and a size that is not the published one."""
    short = image_files.Files('', self._jpg, [
        f'{each}.jpg' for each in self._database]).cut_short()
    return {'files cut short, which are read': short, **self._notes}


def _odd(name: str, queries: int, database: int) -> dict[str, Any]:
  """A note where the counts are not those of the published set."""
  if _SEEN.get(name) == (queries, database):
    return {}
  return {'counts': f'{queries} queries and {database} images, where the '
                    'published set has {} and {}'.format(*_SEEN[name])}


def _checked(truth: Any, path: str) -> tuple[list[str], list[str], list[dict]]:
  """Names of the database, of the queries, and what is known of each query.

  Raises:
    UserError: it is no ground truth of the revisited sets.
  """
  lacks = [key for key in ('imlist', 'qimlist', 'gnd')
           if not isinstance(truth, dict) or key not in truth]
  if lacks:
    raise errors.UserError(
        f'{path} has no {", ".join(lacks)}: it is no ground truth of a '
        f'revisited set; {_HAD}')
  database, queries = ([str(x) for x in truth[key]]
                       for key in ('imlist', 'qimlist'))
  gnd = list(truth['gnd'])
  if len(gnd) != len(queries):
    raise errors.UserError(
        f'{path} has {len(queries)} queries and ground truth of {len(gnd)}; '
        f'{_HAD}')
  for i, each in enumerate(gnd):
    lacks = [key for key in ('bbx', *_KINDS)
             if not isinstance(each, dict) or key not in each]
    if lacks:
      raise errors.UserError(
          f'{path}: query {i} ({queries[i]}) has no {", ".join(lacks)}; {_HAD}')
    for key in _KINDS:
      index = np.asarray(each[key])
      if len(index) and not (index.dtype.kind in 'iu' and (
          0 <= index.min() and index.max() < len(database))):
        raise errors.UserError(
            f'{path}: `{key}` of query {i} ({queries[i]}) is not of the '
            f'{len(database)} images of imlist; {_HAD}')
    box = np.asarray(each['bbx'])
    if box.shape != (4,) or box.dtype.kind not in 'iuf' or not (
        box[0] < box[2] and box[1] < box[3]):
      raise errors.UserError(
          f'{path}: the box {each["bbx"]} of query {i} ({queries[i]}) is not '
          f'(left, top, right, bottom); {_HAD}')
  return database, queries, gnd
