"""Met: `met:DIR`, photographs of exhibits, searched in the museum's own.

DIR holds `ground_truth/` with `MET_database.json` (or `mini_MET_database.json`,
as `met_mini:DIR`), `valset.json` and `testset.json`, and `images/`, which their
paths are relative to. Rows of the database are {path, id}, those of queries
{path, MET_id}; a query without MET_id shows none of the exhibits.

Source: nikosips/met (datasets.py).
"""

import json
from typing import Any

import numpy as np

from dinojax.core import errors
from dinojax.evals.sets import image_files

_HAD = ('the Met dataset is at cmp.felk.cvut.cz/met: unpack its ground_truth '
        'and the four archives of images, these into images/')
_DATABASES = {'met': 'MET_database.json', 'met_mini': 'mini_MET_database.json'}
_QUERIES = ('valset.json', 'testset.json')
PARTS = ('database', 'validation', 'test')
DISTRACTOR = -1


class Met:
  """A database of exhibits, and two sets of queries.

  Attributes:
    spec: name of the set.
    digest: a text that differs where its lists do.
    images: database, validation and test queries, one after the other.
    labels: [n] exhibit of each image, DISTRACTOR for none.
  """

  def __init__(self, name: str, folder: str):
    """Reads the three lists.

    Args:
      name: 'met', or 'met_mini' with the small database.
      folder: see the module.

    Raises:
      UserError: a file that is missing or holds something else.
    """
    self.spec = f'{name}:{folder}'
    files = (_DATABASES[name], *_QUERIES)
    root = image_files.need(
        folder, ('images', *(f'ground_truth/{file}' for file in files)), _HAD)
    lists = [_rows(root / 'ground_truth' / file, 'id' if i == 0 else 'MET_id',
                   i == 0) for i, file in enumerate(files)]
    for paths, _ in lists:
      image_files.need(str(root / 'images'), paths[:1], _HAD)
    self.digest = image_files.digest(lists)
    self.images = image_files.Joined(self.spec, [
        image_files.Files(self.spec, str(root / 'images'), paths, labels=labels)
        for paths, labels in lists])
    self.labels = np.concatenate([labels for _, labels in lists])

  def __len__(self) -> int:
    return len(self.images)

  def parts(self) -> dict[str, np.ndarray]:
    """Places of the images of each of PARTS."""
    return dict(zip(PARTS, self.images.parts(), strict=True))


def _rows(path, key: str, is_database: bool) -> tuple[list[str], np.ndarray]:
  """Paths and exhibits of a list.

  Raises:
    UserError: no list of such rows.
  """
  try:
    rows: Any = json.loads(path.read_bytes().decode('utf-8-sig'))
    paths = [row['path'] for row in rows]
    if not all(isinstance(each, str) for each in paths):
      raise TypeError('a path that is no text')
    labels = [row[key] if is_database else row.get(key) for row in rows]
    numbers = np.array([DISTRACTOR if label in (None, '') else int(label)
                        for label in labels], np.int64)
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise errors.UserError(
        f'{path} is no list of rows with path and {key} '
        f'({type(error).__name__}: {error}); {_HAD}') from error
  if not paths:
    raise errors.UserError(f'{path} is empty: {_HAD}')
  return paths, numbers
