"""Places of an image, looked for in another by the cosine of patches.

Source: DINOv3's paper after Probe3D: keypoints of SPair-71k by PCK, surfaces
  of NAVI by recall in metres and pixels; homographies are ours.
Differs: patches are at their centres. `places='corners'` is Probe3D's form,
  half a patch off; figures of the two are not comparable.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from dinojax.core import errors
from dinojax.core import fields
from dinojax.evals import drawing
from dinojax.evals import items
from dinojax.evals import protocol
from dinojax.evals import transfer
from dinojax.evals.sets import pairs

TITLE = 'places of an image in another: keypoints, surfaces, homographies'
COST = 'test once, a few images more than once'
PIXELS = lambda settings: ''
ROLES = {'test': protocol.Role(opens=pairs.open_set, what=(
    f'pairs of images, {pairs.EXAMPLE}'))}
_PICTURES = 6


@dataclasses.dataclass(frozen=True)
class Settings:
  """PCK of keypoints, recall of surfaces and of homographies."""

  test: tuple[str, ...] = ()  # Sets of pairs of images.
  # Patches along the longer side of an image with keypoints: 896 pixels of
  # patches of 14, 1024 of 16.
  keypoint_patches: fields.Positive = 64
  # Patches along the longer side of other images: 448 of 14, 512 of 16.
  patches: fields.Positive = 32
  # Most pairs of a group (class, sequence), evenly over its order; None: all.
  max_pairs: fields.Positive | None = 200
  # Errors of keypoints below which they count, as parts of the object's size.
  alpha: tuple[fields.Above0, ...] = (0.1, 0.05, 0.01)
  # Errors in pixels of the target below which matches count.
  px: tuple[fields.Above0, ...] = (5.0, 25.0, 50.0)
  # Errors on surfaces below which matches count, in centimetres.
  cm: tuple[fields.Above0, ...] = (1.0, 2.0, 5.0)
  matches: fields.Positive = 1000  # Matches of surfaces that are kept.
  # Places of patches: centres, or corners as Probe3D has it.
  places: str = 'centres'


def check(settings: Settings, config: Any):
  """Refuses places that are not known.

  Raises:
    UserError: such a value.
  """
  del config
  if settings.places not in ('centres', 'corners'):
    raise errors.UserError(
        f'correspondence.places={settings.places} is not known: give centres '
        'or corners')


def passes(settings: Settings, sizes: Mapping[str, int]) -> int:
  """Images that go through the backbone."""
  del settings
  return sizes['test']


def run(job: protocol.Job, settings: Settings) -> list[protocol.Measured]:
  """Matches of every pair that are right.

  Raises:
    UserError: an image that cannot be read.
  """
  model = items.on_own_devices(job.model)
  return [_measured(job, model, test, settings) for test in job.sets['test']]


def _measured(job: protocol.Job, model, test: transfer.Test,
              settings: Settings) -> protocol.Measured:
  """Rows of the pairs of a set."""
  kinds = {'keypoints': transfer.Keypoints,
           'homographies': transfer.Homographies,
           'surfaces': transfer.Surfaces}
  work = kinds[test.kind](model, test, settings, job.progress)
  # Some that are spread over the set are drawn.
  drawn = set(range(0, work.count, max(work.count // _PICTURES, 1)))
  drawn = set(sorted(drawn)[:_PICTURES])

  def measure(index: int):
    columns, picture = work.measure(index, index in drawn)
    return columns, {} if picture is None else {f'{index:06d}': picture}

  rows, pictures = items.rows(
      work.count, measure, folder=items.place(job, test.spec))
  sheet = [pictures[name] for name in sorted(pictures)]
  facts = {'pairs': work.count, 'places': settings.places,
           'side px': work.side, 'max_pairs': settings.max_pairs}
  return protocol.Measured(
      test.spec, rows, work.score, facts=facts,
      pictures={'matches': drawing.grid(_in_twos(sheet))} if sheet else {})


def _in_twos(sheet: Sequence) -> list[Sequence]:
  return [sheet[i:i + 2] for i in range(0, len(sheet), 2)]
