"""Interface of a loss term to the step, to checks and to planning."""

import abc
from collections.abc import Iterator, Mapping
import dataclasses
from typing import Any, ClassVar

import jax

from dinojax.core import fields
from dinojax.models import network

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Forward:
  """Inputs of the terms, from a forward pass of student or teacher.

  Attributes:
    settings: the student's; those of all students in the teacher's pass.
    schedules: values at this step by name.
    rows: crops and masks, see step.network_rows.
    out: outputs of the network, see network.Network; of the teacher's pass
      also gram_patches of a Gram teacher with a backbone of its own.
    targets: targets by term, in the student's pass.
    centers: centres by term, in the teacher's pass with softmax centring.
  """

  settings: Any
  schedules: Mapping[str, Array]
  rows: Mapping[str, Any]
  out: Mapping[str, Any]
  targets: Mapping[str, Array] = dataclasses.field(default_factory=dict)
  centers: Mapping[str, Array] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Objective(abc.ABC):
  """A term of the loss: a section of the config, and what is made of it."""

  NAME: ClassVar[str]  # The section, and the term in metrics.
  # True if each of several students has its own.
  PER_STUDENT: ClassVar[bool] = True
  # True if a student learns features by it alone.
  SUFFICES: ClassVar[bool] = False

  loss_weight: fields.NonNegative = 1.0  # Weight in the sum of losses; 0: off.

  @property
  def is_on(self) -> bool:
    """True if the weight of the term is above 0."""
    return self.loss_weight > 0

  def mistakes(self, settings: Any) -> Iterator[str]:
    """Yields messages on settings that do not agree with this section."""
    del settings
    yield from ()

  def with_groups(self, group_images: int, largest: int) -> 'Objective':
    """The section with groups that follow the batch, where none are set.

    Args:
      group_images: train.group_images.
      largest: largest divisor of a micro-batch up to train.max_group_images.
    """
    del group_images, largest
    return self

  def images_together(self) -> int:
    """Images that a device, or a micro-batch of all, may not divide."""
    return 1

  def student_wants(self) -> frozenset[str]:
    """Outputs of the student beyond its heads': 'patches'."""
    return frozenset()

  def teacher_wants(self) -> frozenset[str]:
    """Outputs of the teacher beyond its heads': 'patches'."""
    return frozenset()

  def center_size(self, settings: Any) -> int | None:
    """Length of the centre that is part of the state; None: there is none."""
    del settings

  def targets(self, taught: Forward) -> tuple[Array | None, Array | None]:
    """Targets of the student, and the next centre; None: there are none."""
    del taught
    return None, None

  def rows_per_group(self, settings: Any) -> int:
    """Leading rows of its targets that a group of images has."""
    del settings
    return 1

  @abc.abstractmethod
  def terms(self, seen: Forward
            ) -> tuple[dict[str, tuple[Any, Array]], dict[str, Array]]:
    """(weight, value) by name, and what is counted, by metric."""

  def target_metrics(self, targets: Array) -> dict[str, Array]:
    """Metrics of the targets alone."""
    del targets
    return {}

  def loss_metrics(self, metrics: Mapping[str, Array],
                   targets: Mapping[str, Array]) -> dict[str, Array]:
    """Metrics of its values, given those of the whole batch."""
    del metrics, targets
    return {}

  def flops(self, settings: Any, masked_patches: int) -> float:
    """FLOPs beyond the backbone, of a student's forward and backward."""
    del settings, masked_patches
    return 0.0

  def teacher_flops(self, settings: Any, masked_patches: int,
                    teacher: network.NetworkConfig | None) -> float:
    """FLOPs beyond the teacher's backbone; `teacher` None: the EMA's."""
    del settings, masked_patches, teacher
    return 0.0
