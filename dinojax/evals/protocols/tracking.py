"""Segmentation of videos by labels handed on from the first frame: J and F.

Source: DINOv3's paper and notebook: the short side in three sizes, last
  layer, the first and the last seven frames, a circle of 12 patches; scores
  of DAVIS-2017, over all objects, the first and the last frame left out.
Differs: objects that first appear in a later frame are not followed.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np
from PIL import Image

from dinojax.core import errors
from dinojax.core import fields
from dinojax.core import text
from dinojax.evals import drawing
from dinojax.evals import items
from dinojax.evals import propagation
from dinojax.evals import protocol
from dinojax.evals.sets import videos
from dinojax.features import spec as spec_lib
from dinojax.metrics import video as video_lib

TITLE = 'masks of a video from that of its first frame'
COST = 'frames once for each of three sizes'
PIXELS = lambda settings: ''
ROLES = {'test': protocol.Role(opens=videos.open_set, what=(
    f'videos with masks, {videos.EXAMPLE}'))}
_SPEC = spec_lib.FeatureSpec(('map',))
_PICTURES, _SHOWN = 3, 5  # videos, and frames of each


@dataclasses.dataclass(frozen=True)
class Settings:
  """J&F of label propagation."""

  test: tuple[str, ...] = ()  # Sets of videos with masks.
  # Patches along the short side of a frame, one score each: the papers' S, M
  # and L, 480, 960 and 1440 pixels of patches of 16.
  short_patches: tuple[fields.Positive, ...] = (30, 60, 90)
  context: fields.Natural = 7  # Last frames that labels come from.
  radius: fields.Natural | None = 12  # Distance in patches; None: any.
  neighborhood: str = 'circle'  # Shape within the radius: circle or square.
  top_k: fields.Positive = 5  # Most similar patches that count.
  temperature: fields.Above0 = 0.2  # Divisor of cosines before the softmax.
  # Way that labels become pixels: v3, of the nearest patch; v1, linearly.
  output: str = 'v3'

  @property
  def rule(self) -> propagation.Rule:
    """How labels are handed on."""
    return propagation.Rule(self.context, self.radius, self.neighborhood,
                            self.top_k, self.temperature)


def check(settings: Settings, config: Any):
  """Refuses values that are not known.

  Raises:
    UserError: such a value.
  """
  del config
  for name, known in (('neighborhood', ('circle', 'square')),
                      ('output', ('v3', 'v1'))):
    if getattr(settings, name) not in known:
      raise errors.UserError(
          f'tracking.{name}={getattr(settings, name)} is not known: give '
          f'{" or ".join(known)}')
  if not settings.short_patches:
    raise errors.UserError(
        'tracking.short_patches=() are no sizes: give (30, 60, 90)')


def passes(settings: Settings, sizes: Mapping[str, int]) -> int:
  """Frames that go through the backbone."""
  return sizes['test'] * len(settings.short_patches)


def run(job: protocol.Job, settings: Settings) -> list[protocol.Measured]:
  """J and F of every object.

  Raises:
    UserError: frames or masks that cannot be read, or do not fit together.
  """
  model = items.on_own_devices(job.model)
  return [_measured(job, model, test, settings) for test in job.sets['test']]


def _measured(job: protocol.Job, model, test: videos.Videos,
              settings: Settings) -> protocol.Measured:
  """Rows of the objects of a set."""
  def measure(index: int):
    video, columns, strips = test[index], {}, []
    for patches in settings.short_patches:
      short = f'{patches * model.config.token_px} px'
      masks = follow(model, video, patches, settings, job.progress)
      for name, column in objects_scores(video, masks).items():
        columns[f'{name}, {short}'] = column
      if index < _PICTURES:
        strips.append(_strip(video, masks))
    columns['video'] = np.full(len(video.objects()), index)
    columns['object'] = np.array(video.objects())
    return columns, {f'{index}': drawing.grid(strips)} if strips else {}

  rows, pictures = items.rows(
      test.num_videos, measure, folder=items.place(job, test.spec),
      passed=lambda item: job.progress(
          len(test[item].frames) * len(settings.short_patches)))
  return protocol.Measured(
      test.spec, rows, score,
      facts={'videos': test.num_videos, 'context': settings.context,
             'neighborhood': settings.neighborhood,
             'radius': settings.radius, 'output': settings.output},
      pictures={items.name_of(text.printable(test[int(i)].name)): pixels
                for i, pixels in pictures.items()})


def score(rows: protocol.Rows) -> dict[str, float]:
  """Means over the objects of all videos, in per cent."""
  return protocol.means({
      name: column for name, column in rows.items() if ', ' in name})


def follow(model, video: videos.Video, patches: int, settings: Settings,
           progress=lambda count: None) -> np.ndarray:
  """[t, y, x] uint8 numbers of objects in all frames, the first as given."""
  width, height = video.size()
  objects, token = video.objects(), model.config.token_px
  scale = patches * token / min(width, height)
  # Whole patches, the long side rounded up.
  size = tuple(max(-(-round(n * scale) // token), 1) * token
               for n in (width, height))
  labels = video.labels(0, objects)
  # A power of two: videos of a size and nearly as many objects share a
  # program, and labels that nobody has win nowhere.
  kinds = 2 ** int(np.ceil(np.log2(len(objects) + 1)))
  out, state, at_once = [labels.astype(np.uint8)], None, model.mesh.size
  for begin in range(0, len(video.frames), at_once):
    numbers = range(begin, min(begin + at_once, len(video.frames)))
    frames = [np.asarray(video.frame(i).resize(
        size, Image.Resampling.BICUBIC)) for i in numbers]
    for features in items.read(model, frames, _SPEC):
      grid = features['map']
      if state is None:
        state = propagation.start(grid, propagation.one_hot(
            labels, kinds, grid.shape[:2]), settings.rule)
        continue
      state, shares = propagation.step(state, grid, settings.rule)
      mask = (propagation.hard(shares, (height, width))
              if settings.output == 'v3' else propagation.hard_v1(
                  shares, (height, width), token))
      out.append(np.asarray(mask).astype(np.uint8))
    progress(len(frames))
  return np.stack(out)


def objects_scores(video: videos.Video,
                   masks: np.ndarray) -> dict[str, np.ndarray]:
  """Columns [objects] of J, F and their statistics.

  Frames with a true mask count, but for the first, and the last of them where
  there are others.
  """
  objects = video.objects()
  known = [i for i, path in enumerate(video.masks) if path is not None][1:]
  known = known[:-1] or known
  truth = np.stack([video.labels(i, objects) for i in known])
  columns: dict[str, list[float]] = {}
  for number in range(1, len(objects) + 1):
    pair = truth == number, masks[known] == number
    j, f = (video_lib.statistics(measure(*pair))
            for measure in (video_lib.region, video_lib.contour))
    values = {'J&F': (j[0] + f[0]) / 2, 'J': j[0], 'F': f[0],
              'J recall': j[1], 'F recall': f[1], 'J decay': j[2],
              'F decay': f[2]}
    for name, value in values.items():
      columns.setdefault(name, []).append(value)
  return {name: np.array(values) for name, values in columns.items()}


def _strip(video: videos.Video, masks: np.ndarray) -> list[np.ndarray]:
  """Some frames with their masks, the first ones' given."""
  places = np.unique(np.linspace(
      0, len(masks) - 1, _SHOWN).round().astype(int))
  return [drawing.overlay(video.frame(i), masks[i]) for i in places]
