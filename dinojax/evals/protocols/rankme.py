"""RankMe: the effective rank of CLS tokens, which needs no labels.

Source: RankMe (Garrido et al. 2023), of 25,600 images or all.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from dinojax.core import errors
from dinojax.core import fields
from dinojax.data import parts
from dinojax.evals import protocol
from dinojax.evals.protocols import knn
from dinojax.features import spec
from dinojax.metrics import rank

TITLE = 'effective rank of CLS tokens, without labels'
COST = 'up to 25,600 images'
ROLES = {'images': protocol.Role(
    'train', what='a source of images, such as folder:DIR')}
_CLS = spec.FeatureSpec()


@dataclasses.dataclass(frozen=True)
class Settings:
  """Effective rank of CLS tokens."""

  images: str | None = None  # Source; no labels are needed. None: data.train.
  max_images: fields.Positive = 25600  # Images that are read, evenly over it.


def check(settings: Settings, config: Any):
  """Every backbone has a CLS token."""
  del settings, config


def passes(settings: Settings, sizes: Mapping[str, int]) -> int:
  """Images that go through the backbone."""
  return min(sizes['images'], settings.max_images)


def run(job: protocol.Job, settings: Settings) -> list[protocol.Measured]:
  """The rank, from 1 to the width of the features.

  Raises:
    UserError: no source, or fewer than two images.
  """
  source, = job.sets['images']
  name = source.spec
  rows = protocol.features(job, parts.evenly(source, settings.max_images),
                           {'cls': _CLS}, knn.cls)
  if len(rows['index']) < 2:
    raise errors.UserError(
        f'{name} has one image that can be read, and a rank needs two or more')
  width = rows['cls'].shape[1]
  return [protocol.Measured(
      name, {'index': rows['index'].astype(float)},
      lambda _: {'effective rank': rank.rankme(rows['cls'])},
      {'width': width, 'most': min(width, len(rows['index']) - 1)},
      resamples=0)]
