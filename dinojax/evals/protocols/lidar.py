"""LiDAR: how many directions tell images apart, in spite of their views.

Source: LiDAR (Thilak et al. 2023): effective rank of the matrix of a linear
  discriminant analysis whose classes are images and whose members are views.
Differs: views are crops and mirrors, drawn from the pixels of each image, so
  that they are the same on any mesh; no colours are changed.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any
import zlib

import numpy as np

from dinojax.core import errors
from dinojax.core import fields
from dinojax.data import crops
from dinojax.data import geometry
from dinojax.data import images as images_lib
from dinojax.data import parts
from dinojax.evals import protocol
from dinojax.evals.protocols import knn
from dinojax.features import preprocessing
from dinojax.features import spec
from dinojax.metrics import rank

TITLE = 'rank of what tells images apart, without labels'
COST = '1,000 images ten times'
ROLES = {'images': protocol.Role(
    'train', what='a source of images, such as folder:DIR')}
_CLS = spec.FeatureSpec()


@dataclasses.dataclass(frozen=True)
class Settings:
  """Effective rank of a linear discriminant analysis of views."""

  images: str | None = None  # Source; no labels are needed. None: data.train.
  max_images: fields.Positive = 1000  # Images that are read, evenly over it.
  views: fields.Positive = 10  # Views of each, two or more.
  # Least part of an image's area that a view has.
  min_scale: fields.Above0 = 0.25
  # Added to the scatter within images, along its diagonal.
  delta: fields.Above0 = 1e-4


@dataclasses.dataclass(frozen=True)
class Views(preprocessing.Preprocessing):
  """Random crops in the place of centres; `view` numbers them."""

  view: int = 0
  min_scale: float = 0.25

  def prepare(self, config: Any) -> Callable[[images_lib.Image], np.ndarray]:
    """An opened image to [y, x, c] uint8, for worker processes too."""
    del config
    return functools.partial(
        cut, crop_px=self.crop_px, view=self.view, min_scale=self.min_scale)


def cut(image: images_lib.Image, *, crop_px: int, view: int,
        min_scale: float) -> np.ndarray:
  """A random crop of an image, [y, x, c] uint8; its pixels are the seed."""
  pixels = image.decode()
  rng = np.random.default_rng((zlib.crc32(pixels.tobytes()), view))
  box = crops.random_box(image.size, (min_scale, 1.0), (3 / 4, 4 / 3), rng)
  return geometry.Geometry(
      box, (crop_px, crop_px), flip=bool(rng.random() < 0.5)).of_image(pixels)


def check(settings: Settings, config: Any):
  """Refuses views that are no crops, or a single one.

  Raises:
    UserError: a scale above 1, or fewer than two views.
  """
  del config
  if settings.min_scale > 1 or settings.views < 2:
    raise errors.UserError(
        f'lidar.views={settings.views} and lidar.min_scale='
        f'{settings.min_scale:g}: set views to 2 or more, and min_scale to a '
        'part of the area, such as 0.25')


def passes(settings: Settings, sizes: Mapping[str, int]) -> int:
  """Images that go through the backbone."""
  return settings.views * min(sizes['images'], settings.max_images)


def run(job: protocol.Job, settings: Settings) -> list[protocol.Measured]:
  """The rank, from 1 to the width of the features.

  Raises:
    UserError: no image can be read, or a single one.
  """
  source, = job.sets['images']
  name = source.spec
  source = parts.evenly(source, settings.max_images)
  several = [protocol.features(
      dataclasses.replace(job, sizes=Views(
          job.sizes.resize_px, job.sizes.crop_px, view, settings.min_scale)),
      source, {'cls': _CLS}, knn.cls) for view in range(settings.views)]
  views = np.stack([rows['cls'] for rows in several], axis=1)  # [r, v, d]
  if len(views) < 2:
    raise errors.UserError(
        f'{name} has one image that can be read, and a rank needs two or more')
  width = views.shape[2]
  return [protocol.Measured(
      name, {'index': several[0]['index'].astype(float)},
      lambda _: {'effective rank': rank.lidar(views, settings.delta)},
      {'width': width, 'most': min(width, len(views) - 1),
       'views': settings.views}, resamples=0)]
