"""Short videos with a class each: files, or folders of their frames.

`clips:DIR` has a sub-folder a class, with videos or folders of frames in it.
`clips:FILE` is the common list of video sets: a path and the number of its
class a line, divided by a blank, or by `::` where paths have blanks.

Source: layout of UCF101 and K400 in class folders; lists of V-JEPA 2 and
  SlowFast.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import posixpath

from etils import epath
from PIL import Image

from dinojax.core import errors
from dinojax.core import lists
from dinojax.core import paths
from dinojax.data import frames as frames_lib
from dinojax.data import images
from dinojax.data import listing

EXAMPLE = ('clips:DIR, whose sub-folders are classes that hold videos or '
           'folders of frames, or clips:LIST with a path and a class a line')


@dataclasses.dataclass(frozen=True)
class Clip:
  """A video.

  Attributes:
    name: path within the set.
    label: number of its class.
    path: file, or folder of frames.
  """

  name: str
  label: int
  path: str

  def read(self, pick: Callable[[int], Sequence[int]]) -> list[Image.Image]:
    """Frames of the numbers that are picked, in that order; some may repeat.

    Args:
      pick: number of frames to the numbers that are wanted.

    Raises:
      BadImage: nothing can be read.
      UserError: nothing that reads videos is installed.
    """
    wanted: list[int] = []

    def once(total: int) -> list[int]:
      wanted[:] = pick(total)
      return sorted(set(wanted))

    if frames_lib.is_video(self.path):
      frames_lib.check_reader(self.path)
      try:
        got = frames_lib.choose(self.path, once)
      except errors.UserError as error:
        raise images.BadImage(str(error)) from error
    else:
      files = _frames(self.path)
      if not files:
        raise images.BadImage('the folder has no frames')
      got = [images.open_image((epath.Path(self.path) / files[i]).read_bytes()
                               ).decode() for i in once(len(files))]
    numbers = sorted(set(wanted))
    if len(got) < len(numbers):
      raise images.BadImage(f'{len(got)} of {len(numbers)} frames can be read')
    return [got[numbers.index(i)] for i in wanted]


@functools.lru_cache(maxsize=4096)
def _frames(folder: str) -> list[str]:
  """Names of the frames of a folder, in order."""
  return sorted(path.name for path in epath.Path(folder).iterdir()
                if path.suffix.lower() in listing.SUFFIXES)


class Clips:
  """The videos of a set in the order of their paths, or of the list."""

  def __init__(self, rest: str):
    """Lists them.

    Args:
      rest: folder or file, after the scheme.

    Raises:
      UserError: nothing there, or lines that are no paths with a class.
    """
    self.spec = f'clips:{rest}'
    root = epath.Path(paths.expand(rest))
    if root.is_file():
      self.classes, self._clips = _of_list(root)
    elif root.is_dir():
      self.classes, self._clips = _of_folder(root)
    else:
      raise errors.UserError(f'{self.spec} is not there: give {EXAMPLE}')
    if not self._clips:
      raise errors.UserError(f'{self.spec} holds no video: give {EXAMPLE}')

  def __len__(self) -> int:
    return len(self._clips)

  def __getitem__(self, index: int) -> Clip:
    return self._clips[index]

  def order(self, sizes: bool = False) -> list[str]:
    """Paths and labels in order."""
    del sizes
    return [f'{clip.name}\t{clip.label}' for clip in self._clips]

  def labels(self) -> list[int]:
    """Labels in order."""
    return [clip.label for clip in self._clips]


def open_set(spec: str) -> Clips:
  """Opens a set of videos by its spec, clips:DIR or clips:LIST.

  Raises:
    UserError: another scheme; see Clips.
  """
  scheme, _, rest = spec.partition(':')
  if scheme != 'clips':
    raise errors.UserError(f'{spec} is no set of videos: give {EXAMPLE}')
  return Clips(rest)


def _of_folder(root: epath.Path) -> tuple[tuple[str, ...], list[Clip]]:
  names = sorted(path.name for path in root.iterdir()
                 if path.is_dir() and not path.name.startswith('.'))
  clips = []
  for label, name in enumerate(names):
    for path in sorted((root / name).iterdir()):
      if not path.name.startswith('.') and (
          path.is_dir() or frames_lib.is_video(path.name)):
        clips.append(Clip(f'{name}/{path.name}', label, str(path)))
  return tuple(names), clips


def _of_list(file: epath.Path) -> tuple[tuple[str, ...], list[Clip]]:
  clips = []
  for number, line in enumerate(lists.lines(file), 1):
    path, _, label = line.rpartition('::' if '::' in line else ' ')
    if not path or not label.isdecimal():
      raise errors.UserError(
          f'{file}: line {number} is no path with the number of a class: '
          f'{line[:80]!r}; write PATH NUMBER')
    clips.append(Clip(path, int(label), posixpath.join(
        str(file.parent), path)))
  count = max((clip.label for clip in clips), default=-1) + 1
  return tuple(map(str, range(count))), clips
