"""iBOT: what the teacher says of patches that the student does not see."""

from collections.abc import Iterator
import dataclasses
from typing import Any

import jax

from dinojax.losses import ibot
from dinojax.models import heads
from dinojax.train.objectives import objective
from dinojax.train.objectives import prototypes

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Ibot(prototypes.PrototypeLoss):
  """Cross-entropy of masked patches."""

  NAME = 'ibot'
  SUFFICES = True

  separate_head: bool = True  # A head of its own; False: that of dino.

  def mistakes(self, settings: Any) -> Iterator[str]:
    if self.is_on and not (self.separate_head or settings.dino.is_on):
      yield ('ibot.separate_head=False shares the head of dino, but '
             'dino.loss_weight is 0: set ibot.separate_head=True')

  def head_in(self, settings: Any) -> heads.HeadConfig:
    return self.head if self.separate_head else settings.dino.head

  def targets(self, taught: objective.Forward
              ) -> tuple[Array, Array | None]:
    return prototypes.teacher_targets(
        taught.out['ibot'], prototypes.mask_weight(taught.rows),  # [g, m, k]
        taught.centers.get('ibot'), taught.schedules['teacher_temperature'],
        taught.settings.teacher)

  def terms(self, seen: objective.Forward) -> tuple[dict, dict]:
    value = ibot.ibot(
        seen.out['ibot'], seen.targets['ibot'],
        prototypes.mask_weight(seen.rows),
        num_rows=seen.rows['crops']['global'].shape[0],
        student_temperature=self.student_temperature)
    return {'ibot': (self.loss_weight, value)}, {}

  def tokens(self, settings: Any, masked_patches: int) -> tuple[int, int]:
    del settings
    return masked_patches, masked_patches
