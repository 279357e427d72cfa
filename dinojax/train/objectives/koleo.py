"""KoLeo: CLS features keep away from their nearest neighbours."""

from collections.abc import Iterator
import dataclasses
from typing import Any

import einops
import jax

from dinojax.core import fields
from dinojax.losses import koleo
from dinojax.parallel import sharding
from dinojax.train.objectives import objective

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Koleo(objective.Objective):
  """Spread of the CLS features; groups may span devices."""

  NAME = 'koleo'

  loss_weight: fields.NonNegative = 0.1  # Weight in the sum of losses; 0: off.
  # Images among which a neighbour is looked for; None: train.group_images.
  group_images: fields.Positive | None = None
  topk: fields.Positive = 1  # Nearest neighbours that repel an image.

  def mistakes(self, settings: Any) -> Iterator[str]:
    if not self.is_on:
      return
    group, train = self.group_images, settings.train
    images = round(train.batch_size * train.share)
    if group < 2:
      yield (f'koleo.group_images={group}: an image needs a neighbour; '
             'set it, or train.batch_size where it follows that, to 2 or '
             'more, or koleo.loss_weight to 0')
    elif images % group:
      yield (f'{images} images a step (train.batch_size × train.share) are '
             f'not divisible by koleo.group_images={group}')
    if self.topk >= group:
      yield (f'koleo.topk={self.topk} needs more neighbours than '
             f'koleo.group_images={group} has')

  def with_groups(self, group_images: int, largest: int) -> 'Koleo':
    # One image has no neighbour.
    follows = group_images if group_images > 1 else largest
    return dataclasses.replace(
        self, group_images=self.group_images or follows)

  def images_together(self) -> int:
    return self.group_images

  def terms(self, seen: objective.Forward) -> tuple[dict, dict]:
    views = seen.settings.crops.num_global
    groups = _groups(seen.out['cls']['global'], views, self.group_images)
    value = koleo.koleo(groups, topk=self.topk)
    return ({'koleo': (self.loss_weight * views, value)},
            {'koleo/duplicates': koleo.duplicates(groups)})


def _groups(cls: Array, views: int, group_images: int) -> Array:
  """[(b v), d] as [(g v), n, d]: groups of images, each view by itself."""
  cls = einops.rearrange(cls, '(b v) d -> b v d', v=views)
  groups = sharding.group(cls, group_images)  # [g, n, v, d]
  return einops.rearrange(groups, 'g n v d -> (g v) n d')
