"""DINO: what a crop's CLS token says, another crop of the image foretells."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import einops
import jax

from dinojax.losses import dino
from dinojax.train import monitor
from dinojax.train.objectives import objective
from dinojax.train.objectives import prototypes

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Dino(prototypes.PrototypeLoss):
  """Cross-entropy of CLS tokens between crops."""

  NAME = 'dino'
  SUFFICES = True

  ignore_diagonal: bool = True  # A global crop is not compared with itself.

  def targets(self, taught: objective.Forward
              ) -> tuple[Array, Array | None]:
    logits = taught.out['dino']['global']
    views = taught.settings.crops.num_global
    return prototypes.teacher_targets(
        einops.rearrange(logits, '(b v) k -> b v k', v=views), None,
        taught.centers.get('dino'), taught.schedules['teacher_temperature'],
        taught.settings.teacher)

  def rows_per_group(self, settings: Any) -> int:
    return settings.train.group_images

  def terms(self, seen: objective.Forward) -> tuple[dict, dict]:
    crops, values = seen.settings.crops, {}
    views = {'global': crops.num_global, 'local': crops.num_local}
    weights = dict(zip(views, dino.dino_weights(
        *views.values(), self.ignore_diagonal), strict=True))
    weights['local'] *= seen.schedules['dino_local_weight']
    for kind, logits in seen.out['dino'].items():
      logits = einops.rearrange(logits, '(b v) k -> b v k', v=views[kind])
      values[f'dino_{kind}'] = (
          self.loss_weight * weights[kind],
          dino.dino(
              logits, seen.targets['dino'],
              student_temperature=self.student_temperature,
              ignore_diagonal=kind == 'global' and self.ignore_diagonal))
    return values, {}

  def target_metrics(self, targets: Array) -> dict[str, Array]:
    return monitor.target_metrics(targets)

  def loss_metrics(self, metrics: Mapping[str, Array],
                   targets: Mapping[str, Array]) -> dict[str, Array]:
    return monitor.loss_metrics(
        metrics['loss/dino_global'], monitor.mean_entropy(targets['dino']),
        self.num_prototypes)

  def tokens(self, settings: Any, masked_patches: int) -> tuple[int, int]:
    del masked_patches
    crops, images = settings.crops, settings.train.batch_size
    return (images * crops.num_global,
            images * (crops.num_global + crops.num_local))
