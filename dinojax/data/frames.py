"""Frames of a video, by whichever reader of videos is installed."""

from collections.abc import Callable, Sequence
import importlib.util
import pathlib

import numpy as np
from PIL import Image

from dinojax.core import errors

SUFFIXES = ('.mp4', '.mov', '.m4v', '.avi', '.mkv', '.webm', '.mpg', '.mpeg')


def is_video(path: str) -> bool:
  """Tells whether a path is that of a video, by its name."""
  return path.lower().endswith(SUFFIXES)


def read(path: str, count: int) -> list[Image.Image]:
  """`count` frames, evenly over a video; fewer where it has fewer.

  Args:
    path: file.
    count: frames to read, at least 1.

  Raises:
    UserError: see `choose`.
  """
  return choose(path, lambda total: np.unique(np.linspace(
      0, total - 1, min(count, total)).round().astype(int)).tolist())


def choose(path: str, pick: Callable[[int], Sequence[int]]
           ) -> list[Image.Image]:
  """Frames of a video by their numbers, in the order of these.

  Args:
    path: file.
    pick: number of frames to the numbers that are wanted, each once.

  Raises:
    UserError: no such file, no reader of videos is installed, or it has no
      frame that can be read.
  """
  if not pathlib.Path(path).is_file():
    raise errors.UserError(f'{path} is not a file: check the path')
  check_reader(path)
  frames = (_by_av if importlib.util.find_spec('av') else _by_cv2)(path, pick)
  if not frames:
    raise errors.UserError(
        f'{path} has no frame that can be read: check that it plays, or give a '
        'folder of its frames')
  return frames


def check_reader(path: str):
  """Checks that something that reads videos is installed.

  Raises:
    UserError: nothing is.
  """
  if not any(map(importlib.util.find_spec, ('av', 'cv2'))):
    raise errors.UserError(
        f'{path} is a video, and nothing that reads one is installed: '
        '`pip install opencv-python-headless` (or `pip install av`, whose '
        'wheel holds codecs under the GPL), or give a folder of its frames')


def _by_av(path: str, pick: Callable[[int], Sequence[int]]
           ) -> list[Image.Image]:
  import av  # not in an extra: the user's choice
  try:
    with av.open(path) as video:
      total = sum(1 for _ in video.decode(video=0))
    wanted, frames = set(pick(total)) if total else set(), []
    with av.open(path) as video:
      for number, frame in enumerate(video.decode(video=0)):
        if number in wanted:
          # Telephones write how they were held; OpenCV turns by itself.
          image = frame.to_image().convert('RGB')
          frames.append(image.rotate(
              getattr(frame, 'rotation', 0), expand=True))
  except (av.FFmpegError, OSError, IndexError) as error:
    raise errors.UserError(f'{path} cannot be read as a video: {error}'
                           ) from error
  return frames


def _by_cv2(path: str, pick: Callable[[int], Sequence[int]]
            ) -> list[Image.Image]:
  import cv2  # not in an extra: the user's choice
  video = cv2.VideoCapture(path)
  total = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
  if total <= 0:  # as in streams, whose headers were written first
    total = 0
    while video.grab():
      total += 1
  video.release()
  wanted = pick(total) if total else []
  frames, seen = _frames_of(cv2, path, wanted) if wanted else ([], 0)
  if 0 < seen < total and len(frames) < len(wanted):
    # The header promised more than there is.
    frames, _ = _frames_of(cv2, path, pick(seen))
  return frames


def _frames_of(cv2, path: str, wanted: Sequence[int]
               ) -> tuple[list[Image.Image], int]:
  """Frames by number, and how many there are up to the last of them.

  They are read one after the other: a jump to a number is inexact in videos
  whose frames depend on each other.
  """
  video, frames, number = cv2.VideoCapture(path), [], 0
  while number <= wanted[-1] and video.grab():
    if number in wanted:
      is_read, frame = video.retrieve()
      if is_read:
        frames.append(Image.fromarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)))
    number += 1
  video.release()
  return frames, number
