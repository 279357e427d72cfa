"""NAVI: photographs of objects with depth and cameras, in pairs.

Source: `navi:DIR` reads the folders of navi_v1.x and the official list
  custom_splits/pairwise_pixel_correspondences/pairs-wild_set.txt; cameras and
  depth as its data_util does. `navi:DIR?pairs=multiview` reads the other list.
Differs: Probe3D draws pairs of its own from an unsorted listing.
"""

import dataclasses
import hashlib
import json

from etils import epath
import numpy as np
from PIL import Image

from dinojax.core import errors
from dinojax.core import lists
from dinojax.core import paths
from dinojax.evals.sets import tables

_WHERE = ('get navi_v1.5.tar.gz from github.com/google/navi, and name the '
          'folder that holds the objects and custom_splits')
_LISTS = 'custom_splits/pairwise_pixel_correspondences'
_DISPARITY = 655350.0  # of a stored number of 1, in millimetres
_MARGIN = 0.1  # around the object, as a part of its larger side


@dataclasses.dataclass(frozen=True)
class Surface:
  """An object in the square that holds it.

  Attributes:
    pixels: [side, side, 3] uint8.
    xyz: [cells, cells, 3] metres before the camera; z is 0 outside.
    intrinsics: [3, 3] of the pixels of the square.
    pose: [3, 4] from the object to the camera, in metres.
  """

  pixels: np.ndarray
  xyz: np.ndarray
  intrinsics: np.ndarray
  pose: np.ndarray


class Surfaces:
  """Pairs of photographs of an object."""

  kind = 'surfaces'

  def __init__(self, spec: str, root: epath.Path | None = None):
    """Reads the list of pairs.

    Args:
      spec: navi:DIR, with ?pairs=multiview for the other list.
      root: ignored, the spec may hold more than a folder.

    Raises:
      UserError: files that are missing, rows that are no pair.
    """
    del root
    self.spec, self.where = spec, _WHERE
    place, _, which = spec.removeprefix('navi:').partition('?pairs=')
    self._root = epath.Path(paths.expand(place))
    name = which or 'wild_set'
    file = self._root / _LISTS / f'pairs-{name}.txt'
    self.pairs, self._notes = [], {}
    numbers: dict[str, int] = {}
    for i, line in enumerate(lists.lines(file, _WHERE), 1):
      fields = line.replace(',', ' ').split()
      if len(fields) < 2:
        raise errors.UserError(f'{file}, line {i}: {line!r} is no pair: '
                               f'{_WHERE}')
      self.pairs.append(tuple(
          numbers.setdefault(field, len(numbers)) for field in fields[:2]))
    self.images = [_existing(self._root, image) for image in numbers]
    if not self.pairs:
      raise errors.UserError(f'{file} lists no pair: {_WHERE}')
    self.digest = hashlib.sha256(repr(
        (list(numbers), self.pairs)).encode()).hexdigest()[:8]
    self.note(0)

  def __len__(self) -> int:
    """Number of images."""
    return len(self.images)

  def _read(self, folder: epath.Path) -> dict[str, dict]:
    """The annotations of a scene by image."""
    file = folder / 'annotations.json'
    try:
      return {note['filename']: note
              for note in json.loads(lists.text(file, _WHERE))}
    except (ValueError, KeyError, TypeError) as error:
      if isinstance(error, errors.UserError):
        raise
      raise errors.UserError(
          f'{file} is no annotation of NAVI ({error!r}): {_WHERE}') from error

  def note(self, number: int) -> dict:
    """The annotation of an image.

    Raises:
      UserError: there is none.
    """
    path = self.images[number]
    scene = path.parent.parent if path.parent.name == 'images' else path.parent
    if scene not in self._notes:
      self._notes[scene] = self._read(scene)
    notes = self._notes[scene]
    if path.name not in notes:
      raise errors.UserError(
          f'{scene}/annotations.json has no {path.name}: {_WHERE}')
    return notes[path.name] | {'scene': scene}

  def surface(self, number: int, side: int, cells: int) -> Surface:
    """An image's object.

    Args:
      number: number of the image.
      side: side of the square, in pixels.
      cells: side of the grid of points.

    Raises:
      UserError: files that are missing, or an image without depth.
    """
    path, note = self.images[number], self.note(number)
    scene = note['scene']
    picture = tables.pixels(scene / 'images' / path.name, _WHERE)
    file = scene / 'depth' / f'{path.stem}.png'
    stored = tables.indices(file, _WHERE).astype(np.float64)
    depth = np.divide(_DISPARITY, stored, out=np.zeros_like(stored),
                      where=stored > 0) / 1000
    if depth.shape != picture.size[::-1]:
      raise errors.UserError(
          f'{file} has {depth.shape[1]} × {depth.shape[0]} pixels, and '
          f'{path.name} {picture.size[0]} × {picture.size[1]}: {_WHERE}')
    ys, xs = np.nonzero(depth)
    if not len(ys):
      raise errors.UserError(f'{file} has no depth anywhere: {_WHERE}')
    length = (1 + 2 * _MARGIN) * max(np.ptp(xs) + 1, np.ptp(ys) + 1)
    left = (xs.min() + xs.max() + 1 - length) / 2
    top = (ys.min() + ys.max() + 1 - length) / 2
    box = (left, top, left + length, top + length)
    square = picture.transform(
        (side, side), Image.Transform.EXTENT, box, Image.Resampling.BICUBIC)
    focal = float(note['camera']['focal_length'])
    centre = np.array([picture.size[0] // 2, picture.size[1] // 2])
    # Points of the grid: nearest pixels at the centres of its cells.
    at = (np.arange(cells) + 0.5) / cells * length
    u, v = np.floor(left + at).astype(int), np.floor(top + at).astype(int)
    inside = ((v >= 0) & (v < depth.shape[0]))[:, None] & (
        (u >= 0) & (u < depth.shape[1]))[None]
    z = depth[np.clip(v, 0, depth.shape[0] - 1)][
        :, np.clip(u, 0, depth.shape[1] - 1)] * inside
    xyz = np.stack([(u + 0.5 - centre[0])[None] / focal * z,
                    (v + 0.5 - centre[1])[:, None] / focal * z, z], -1)
    scale = side / length
    intrinsics = np.array([
        [focal * scale, 0, (centre[0] - left) * scale],
        [0, focal * scale, (centre[1] - top) * scale], [0, 0, 1]])
    return Surface(np.asarray(square), xyz, intrinsics, _pose(note))


def _existing(root: epath.Path, image: str) -> epath.Path:
  """The path of an image; scenes are multiview_00_x or multiview-00-x."""
  path = root / image
  parts = image.split('/')
  for old, new in (('-', '_'), ('_', '-')):
    if path.parent.exists() or len(parts) < 2:
      break
    scene = parts[1].replace(old, new)
    if (root / parts[0] / scene).is_dir():
      path = root.joinpath(parts[0], scene, *parts[2:])
  return path


def _pose(note: dict) -> np.ndarray:
  """[3, 4] from the object to the camera, in metres."""
  w, x, y, z = np.array(note['camera']['q'], float) / np.linalg.norm(
      note['camera']['q'])
  rotation = np.array([
      [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
      [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
      [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]])
  return np.concatenate([
      rotation, np.array(note['camera']['t'], float)[:, None] / 1000], 1)


def relative(source: np.ndarray, target: np.ndarray) -> np.ndarray:
  """[3, 4] from the source's camera to the target's, of their poses."""
  whole = lambda pose: np.concatenate([pose, [[0, 0, 0, 1]]])
  return (whole(target) @ np.linalg.inv(whole(source)))[:3]
