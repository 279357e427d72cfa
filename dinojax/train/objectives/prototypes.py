"""Losses on prototypes: a head, and targets balanced over the prototypes."""

import abc
from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from dinojax.core import fields
from dinojax.losses import centering
from dinojax.losses import sinkhorn
from dinojax.models import heads
from dinojax.models import network
from dinojax.parallel import sharding
from dinojax.train.objectives import objective

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class PrototypeLoss(objective.Objective):
  """A loss on prototypes and the head it reads."""

  num_prototypes: fields.Positive = 65536  # Prototypes, K.
  hidden_dim: fields.Positive = 2048  # Width of the head's hidden layers.
  bottleneck_dim: fields.Positive = 256  # Width before the prototypes.
  num_layers: fields.Positive = 3  # Layers of the head's MLP.
  weight_norm: bool = False  # Learned norms of prototypes, as DINOv2 has them.
  student_temperature: fields.Above0 = 0.1  # Divisor of the student's logits.

  @property
  def head(self) -> heads.HeadConfig:
    """The sizes of the section's head."""
    names = {f.name for f in dataclasses.fields(heads.HeadConfig)}
    values = {f.name: getattr(self, f.name)
              for f in dataclasses.fields(self) if f.name in names}
    return heads.HeadConfig(**values)

  def head_in(self, settings: Any) -> heads.HeadConfig:
    """The sizes of the head that is read."""
    del settings
    return self.head

  def center_size(self, settings: Any) -> int | None:
    if settings.teacher.centering != 'softmax':
      return None
    return self.head_in(settings).num_prototypes

  @abc.abstractmethod
  def tokens(self, settings: Any, masked_patches: int) -> tuple[int, int]:
    """Tokens of a batch that the head of teacher and student reads."""

  def flops(self, settings: Any, masked_patches: int) -> float:
    _, tokens = self.tokens(settings, masked_patches)
    return 3 * self.head_in(settings).flops(settings.model.embed_dim, tokens)

  def teacher_flops(self, settings: Any, masked_patches: int,
                    teacher: network.NetworkConfig | None) -> float:
    tokens, _ = self.tokens(settings, masked_patches)
    if teacher is None:
      return self.head_in(settings).flops(settings.model.embed_dim, tokens)
    return getattr(teacher, f'{self.NAME}_head').flops(
        teacher.backbone.embed_dim, tokens)


def teacher_targets(logits: Array, weight: Array | None, mean: Array | None,
                    temperature: Array,
                    teacher: Any) -> tuple[Array, Array | None]:
  """Targets from teacher logits, and the next centre.

  Args:
    logits: [..., k] of the teacher.
    weight: [g, m] 0 for padding, or None.
    mean: [k] the centre; None with Sinkhorn-Knopp.
    temperature: divisor of the logits.
    teacher: sections.Teacher.

  Returns:
    [..., k] targets, and the centre of the next step (None with
    Sinkhorn-Knopp).
  """
  valid = None if weight is None else (weight > 0).astype(jnp.float32)
  if teacher.centering == 'sinkhorn_knopp':
    return sinkhorn.sinkhorn_knopp(
        logits, temperature=temperature, weight=valid,
        num_iterations=teacher.num_iterations), None
  mean = sharding.as_columns(mean)
  targets = centering.softmax_center(logits, mean, temperature)
  seen = (logits.mean((0, 1)) if weight is None
          else centering.group_mean(logits, valid))
  return targets, centering.update_center(
      mean, seen, teacher.center_momentum)


def mask_weight(rows: Mapping[str, Any]) -> Array:
  """[g, m] weights of masked patches, split over devices as logits are."""
  return sharding.beside_columns(rows['mask_weight'])
