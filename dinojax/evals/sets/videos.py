"""Videos as folders of frames, with masks of objects: DAVIS, and any other.

Source: `davis:DIR` reads DAVIS-2017 as davis2017-evaluation does:
  JPEGImages/480p, Annotations/480p and the list ImageSets/2017/val.txt.
  `videos:DIR` reads JPEGImages/VIDEO and Annotations/VIDEO, as YouTube-VOS,
  MOSE and DAVIS-2016 have them.
"""

from collections.abc import Sequence
import dataclasses
import hashlib

from etils import epath
import numpy as np
from PIL import Image

from dinojax.core import errors
from dinojax.core import lists
from dinojax.data import listing
from dinojax.evals.sets import tables

EXAMPLE = ('davis:DIR, or videos:DIR with JPEGImages/VIDEO/*.jpg and '
           'Annotations/VIDEO/*.png, masks whose pixels are numbers of objects')
_DAVIS = ('get DAVIS-2017-trainval-480p.zip from davischallenge.org, and name '
          'the folder DAVIS that it holds')
_PLAIN = 'videos:DIR holds JPEGImages/VIDEO and Annotations/VIDEO'
_VOID = 255  # of palettes: no object; of masks without another number: it


@dataclasses.dataclass(frozen=True)
class Video:
  """A video.

  Attributes:
    name: name of its folders.
    frames: its images, in order.
    masks: mask of each frame; None: it has none.
  """

  name: str
  frames: tuple[epath.Path, ...]
  masks: tuple[epath.Path | None, ...]

  def objects(self) -> tuple[int, ...]:
    """Numbers of the objects in the first mask.

    Raises:
      UserError: there is none.
    """
    return objects_of(tables.indices(self.masks[0], _PLAIN), self.masks[0])

  def size(self) -> tuple[int, int]:
    """(width, height) of the first frame."""
    return tables.size(self.frames[0], _PLAIN)

  def frame(self, index: int) -> Image.Image:
    """A frame as RGB.

    Raises:
      UserError: it cannot be read.
    """
    return tables.pixels(self.frames[index], _PLAIN)

  def labels(self, index: int, objects: Sequence[int]) -> np.ndarray | None:
    """[y, x] int32 numbers from 1 in the order of `objects`; 0: none.

    Raises:
      UserError: the mask has another size than the frames.
    """
    if self.masks[index] is None:
      return None
    values = tables.indices(self.masks[index], _PLAIN)
    if values.shape != self.size()[::-1]:
      raise errors.UserError(
          f'{self.masks[index]} has {values.shape[1]} × {values.shape[0]} '
          f'pixels, and the frames {self.size()[0]} × {self.size()[1]}: masks '
          'are as large as their frames')
    out = np.zeros_like(values)
    for number, value in enumerate(objects, 1):
      out[values == value] = number
    return out


def objects_of(mask: np.ndarray, path: epath.Path) -> tuple[int, ...]:
  """The objects of a mask.

  Raises:
    UserError: there is none.
  """
  values = [int(value) for value in np.unique(mask) if value]
  objects = [value for value in values if value != _VOID] or values
  if not objects:
    raise errors.UserError(
        f'{path} is 0 everywhere: the first mask of a video shows the objects '
        'that are followed')
  return tuple(objects)


class Videos:
  """Videos in the order of their names, or of the official list."""

  def __init__(self, spec: str, videos: list[Video]):
    self.spec, self._videos = spec, videos
    self.digest = hashlib.sha256(repr([
        (video.name, len(video.frames)) for video in videos]).encode()
    ).hexdigest()[:8]

  @property
  def num_videos(self) -> int:
    return len(self._videos)

  def __len__(self) -> int:
    """Number of frames, which are what goes through a backbone."""
    return sum(len(video.frames) for video in self._videos)

  def __getitem__(self, index: int) -> Video:
    return self._videos[index]


def open_set(spec: str) -> Videos:
  """Opens a set of videos with masks.

  Args:
    spec: see EXAMPLE.

  Raises:
    UserError: another spec; a video without frames or without a first mask.
  """
  scheme = spec.partition(':')[0]
  if scheme not in ('davis', 'videos'):
    raise errors.UserError(
        f'{spec!r} is no set of videos with masks: give {EXAMPLE}')
  root = tables.folder(spec, scheme, EXAMPLE)
  where, inner = (_DAVIS, '480p') if scheme == 'davis' else (_PLAIN, '')
  folders = [root / kind / inner for kind in ('JPEGImages', 'Annotations')]
  for folder in folders:
    if not folder.is_dir():
      raise errors.UserError(f'{folder} is missing: {where}')
  if scheme == 'davis':
    names = lists.lines(root / 'ImageSets/2017/val.txt', where)
  else:
    names = sorted(x.name for x in folders[0].iterdir() if x.is_dir())
  if not names:
    raise errors.UserError(f'{folders[0]} holds no video: {where}')
  return Videos(spec, [_video(name, *folders, where) for name in names])


def _video(name: str, frames: epath.Path, masks: epath.Path,
           where: str) -> Video:
  """The frames of a video, each with the mask of its name.

  Raises:
    UserError: no frames, no first mask, or a mask without a frame.
  """
  def files(folder, suffixes):
    if not (folder / name).is_dir():
      raise errors.UserError(f'{folder / name} is missing: {where}')
    return {x.stem: x for x in sorted(
        (folder / name).iterdir(), key=lambda x: x.name)
            if x.suffix.lower() in suffixes}

  images, truth = files(frames, listing.SUFFIXES), files(masks, {'.png'})
  if not images:
    raise errors.UserError(f'{frames / name} holds no frames: {where}')
  strange = sorted(truth.keys() - images.keys())
  if strange:
    raise errors.UserError(
        f'{truth[strange[0]]} is the mask of no frame: {frames / name} has '
        f'no image of this name')
  first = next(iter(images))
  if first not in truth:
    raise errors.UserError(
        f'{masks / name}/{first}.png is missing: the first frame of a video '
        'needs a mask')
  if len(truth) < 2:
    raise errors.UserError(
        f'{masks / name} has a mask of the first frame alone, so nothing can '
        'be measured: give masks of later frames too')
  video = Video(name, tuple(images.values()),
                tuple(truth.get(stem) for stem in images))
  video.objects()
  sizes = [tables.size(path, where) for path in video.frames]
  for path, size in zip(video.frames, sizes, strict=True):
    if size != sizes[0]:
      raise errors.UserError(
          f'{path} has {size[0]} × {size[1]} pixels, and {first} '
          f'{sizes[0][0]} × {sizes[0][1]}: frames of a video have one size')
  return video
