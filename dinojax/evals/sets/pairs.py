"""Pairs of images with places that belong together.

Source: `spair:DIR` reads SPair-71k as its loaders and Probe3D do: the test
  pairs of PairAnnotation, PCK by the larger side of the target's box.
  `navi:DIR` is in navi.py.
"""

from collections.abc import Sequence
import dataclasses
import hashlib
import itertools
import json

from etils import epath
import numpy as np

from dinojax.core import errors
from dinojax.core import lists
from dinojax.evals.sets import navi
from dinojax.evals.sets import tables

EXAMPLE = ('keypoints:FILE.csv with image,part,x,y in pixels, '
           'homographies:FILE.csv with image1,image2,homography, spair:DIR or '
           'navi:DIR')
_SPAIR = ('get SPair-71k.tar.gz from cvlab.postech.ac.kr, and name the folder '
          'that holds JPEGImages and PairAnnotation')


@dataclasses.dataclass(frozen=True)
class Pair:
  """Two images, and places (x, y) of one that have a place in the other.

  Attributes:
    source: number of an image.
    target: number of another.
    group: class, or sequence; scores of keypoints are means over these.
    source_places: [r, 2] keypoints in pixels; None: there is a homography.
    target_places: [r, 2] the same in the target.
    scale: length that errors are a part of, in pixels of the target.
    part: number of the part of the set, such as the difference of viewpoints.
    homography: [3, 3] from pixels of the source to those of the target, whose
      centres are at whole numbers; None: there are keypoints.
  """

  source: int
  target: int
  group: str
  source_places: np.ndarray | None = None
  target_places: np.ndarray | None = None
  scale: float = 1.0
  part: int = -1
  homography: np.ndarray | None = None


class Pairs:
  """Pairs of images, in order.

  Attributes:
    kind: 'keypoints' or 'homographies'.
    images: paths of the images.
    pairs: pairs of their numbers.
    part: word for the parts of the set; '': it has none.
  """

  def __init__(self, spec: str, kind: str, images: Sequence[epath.Path],
               pairs: Sequence[Pair], where: str, part: str = ''):
    self.spec, self.kind, self.part, self.where = spec, kind, part, where
    self.images, self.pairs = list(images), list(pairs)
    if not self.pairs:
      raise errors.UserError(f'{spec} has no pair of images: {where}')
    self.digest = hashlib.sha256(repr([
        (pair.source, pair.target, pair.scale, str(pair.homography))
        for pair in self.pairs]).encode()).hexdigest()[:8]

  def __len__(self) -> int:
    """Number of images."""
    return len(self.images)

  def chosen(self, most: int | None) -> list[Pair]:
    """At most so many pairs of a group, evenly over its order."""
    groups: dict[str, list[int]] = {}
    for i, pair in enumerate(self.pairs):
      groups.setdefault(pair.group, []).append(i)
    kept = []
    for members in groups.values():
      if most is None or len(members) <= most:
        kept += members
      else:
        places = np.linspace(0, len(members) - 1, most).round().astype(int)
        kept += [members[i] for i in places]
    return [self.pairs[i] for i in sorted(kept)]


def open_set(spec: str) -> Pairs | navi.Surfaces:
  """Opens a set of pairs of images.

  Args:
    spec: see EXAMPLE.

  Raises:
    UserError: another spec; files that are missing; places outside images.
  """
  scheme = spec.partition(':')[0]
  opens = {'keypoints': _keypoints, 'homographies': _homographies,
           'spair': _spair, 'navi': navi.Surfaces}.get(scheme)
  if opens is None:
    raise errors.UserError(
        f'{spec!r} is no set of pairs of images: give {EXAMPLE}')
  return opens(spec, tables.folder(
      spec.partition('?')[0] if scheme == 'navi' else spec, scheme, EXAMPLE))


def _keypoints(spec: str, path: epath.Path) -> Pairs:
  """A CSV of a keypoint a row; all images of a group are paired.

  Errors are parts of the larger side of x0,y0,x1,y1, the object's box, or of
  the image where the table has no such columns.
  """
  rows = lists.rows(path, ('image', 'part', 'x', 'y'))
  corners = ('x0', 'y0', 'x1', 'y1')
  has_boxes = all(name in rows[0] for name in corners)
  where = f'images are named as seen from {path.parent}'
  parts: dict[str, dict[str, np.ndarray]] = {}
  groups: dict[str, list[str]] = {}
  scales: dict[str, float] = {}
  sizes: dict[str, tuple[int, int]] = {}
  for line, row in enumerate(rows, 2):
    name, place = row['image'], tables.numbers(row, ('x', 'y'), path, line)
    if name not in sizes:
      sizes[name] = tables.size(path.parent / name, where)
      groups.setdefault(row.get('group') or '', []).append(name)
    if not (0 <= place[0] <= sizes[name][0] and
            0 <= place[1] <= sizes[name][1]):
      raise errors.UserError(
          f'{path}, row {line}: {place[0]:g}, {place[1]:g} is not within '
          f'{name}, which has {sizes[name][0]} × {sizes[name][1]} pixels: '
          'give pixels of the file itself')
    scales[name] = max(sizes[name])
    if has_boxes:
      box = tables.numbers(row, corners, path, line)
      scales[name] = max(box[2] - box[0], box[3] - box[1])
    parts.setdefault(name, {})[row['part']] = place
  numbers = {name: i for i, name in enumerate(parts)}
  pairs = []
  for group, names in groups.items():
    for a, b in itertools.permutations(names, 2):
      shared = [part for part in parts[a] if part in parts[b]]
      if shared:
        pairs.append(Pair(
            numbers[a], numbers[b], group,
            np.stack([parts[a][part] for part in shared]),
            np.stack([parts[b][part] for part in shared]), scales[b]))
  return Pairs(spec, 'keypoints', [path.parent / name for name in parts],
               pairs, 'images of a group have parts in common')


def _homographies(spec: str, path: epath.Path) -> Pairs:
  """A CSV of a pair a row, with the file of its 3 × 3 matrix."""
  names: dict[str, int] = {}
  pairs, where = [], f'files are named as seen from {path.parent}'
  for row in lists.rows(path, ('image1', 'image2', 'homography')):
    images = [row['image1'], row['image2']]
    for name in images:
      if name not in names:
        tables.size(path.parent / name, where)
        names[name] = len(names)
    file = path.parent / row['homography']
    try:
      matrix = np.array([
          [float(x) for x in line.replace(',', ' ').split()]
          for line in lists.lines(file, where)])
    except ValueError as error:
      if isinstance(error, errors.UserError):
        raise
      matrix = np.zeros(0)
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or (
        abs(np.linalg.det(matrix)) < 1e-12):
      raise errors.UserError(
          f'{file} is no homography: it holds three rows of three numbers, '
          'which map pixels (x, y, 1) of the first image to the second')
    pairs.append(Pair(
        *(names[name] for name in images),
        row.get('sequence') or row.get('group') or '', homography=matrix))
  return Pairs(spec, 'homographies', [path.parent / name for name in names],
               pairs, 'a row is a pair')


def _spair(spec: str, root: epath.Path) -> Pairs:
  """The test pairs, in the order of the names of their files."""
  folder = root / 'PairAnnotation/test'
  if not folder.is_dir():
    raise errors.UserError(f'{folder} is missing: {_SPAIR}')
  names: dict[tuple[str, str], int] = {}
  pairs = []
  for file in sorted(folder.glob('*.json'), key=lambda x: x.name):
    try:
      note = json.loads(lists.text(file, _SPAIR))
      group = note['category']
      images = [names.setdefault((group, note[key]), len(names))
                for key in ('src_imname', 'trg_imname')]
      box = note['trg_bndbox']
      places = [np.array(note[key], float).reshape(-1, 2)
                for key in ('src_kps', 'trg_kps')]
      pairs.append(Pair(
          *images, group, *places, float(max(box[2] - box[0], box[3] - box[1])),
          int(note['viewpoint_variation'])))
    except (ValueError, KeyError, TypeError, IndexError) as error:
      if isinstance(error, errors.UserError):
        raise
      raise errors.UserError(
          f'{file} is no pair of SPair-71k ({error!r}): {_SPAIR}') from error
    if len(places[0]) != len(places[1]):
      raise errors.UserError(
          f'{file} has {len(places[0])} keypoints in one image and '
          f'{len(places[1])} in the other: {_SPAIR}')
  paths = [root / 'JPEGImages' / group / name for group, name in names]
  for path in paths[:1]:
    tables.size(path, _SPAIR)
  return Pairs(spec, 'keypoints', paths, pairs, _SPAIR, 'viewpoint')
