"""Gram anchoring: similarities of patches stay those of a Gram teacher."""

from collections.abc import Iterator
import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from dinojax.core import config as config_lib
from dinojax.core import fields
from dinojax.kernels import resample
from dinojax.losses import gram
from dinojax.models import network
from dinojax.parallel import sharding
from dinojax.train.objectives import objective

Array = jax.Array
Duration = config_lib.Duration
_PATCHES = frozenset({'patches'})


@dataclasses.dataclass(frozen=True)
class Gram(objective.Objective):
  """Patch similarities are held to those of a teacher; 0: they are not.

  The teacher is a backbone of its own ('frozen'), which sees the global crops
  undistorted at crops.gram_px pixels, or the EMA teacher itself ('ema'). Its
  own backbone comes from `source`, or is the EMA teacher of step `start`, and
  may be renewed from the EMA teacher at times. Nothing of it runs before.
  """

  NAME = 'gram'
  PER_STUDENT = False

  # Weight in the sum of losses, times schedules.gram_weight; 0: off.
  loss_weight: fields.NonNegative = 0.0
  # The Gram teacher: a frozen backbone, or the EMA teacher itself.
  teacher: Literal['frozen', 'ema'] = 'frozen'
  source: str | None = None  # Weights of the frozen teacher, as init.source.
  start: Duration = Duration(0, 'steps')  # When anchoring begins.
  normalize: bool = True  # Compares cosines, not dot products.
  per_image: bool = True  # Compares patches of one image, not of the batch.
  remove_negative: bool = False  # Negative similarities count as 0.
  # Negative similarities of the teacher count as 0 in both.
  remove_only_teacher_negative: bool = False
  # Patches that are compared.
  tokens: Literal['all', 'masked', 'unmasked'] = 'all'
  antialias: bool = False  # Smooths the teacher's map when it is reduced.
  log_masked: bool = False  # Also logs the loss of hidden and of seen patches.
  # Time between two renewals of the frozen teacher from the EMA; None: never.
  refresh_every: Duration | None = None
  refresh_start: Duration = Duration(0, 'steps')  # When renewals may begin.
  max_refreshes: fields.Natural | None = None  # Renewals; None: no limit.

  @property
  def has_backbone(self) -> bool:
    """True if the Gram teacher's own backbone is part of the state."""
    return self.is_on and self.teacher == 'frozen'

  def mistakes(self, settings: Any) -> Iterator[str]:
    if self.remove_negative and self.remove_only_teacher_negative:
      yield ('gram.remove_negative and gram.remove_only_teacher_negative '
             'exclude each other: set one to False')
    if self.tokens != 'all' and self.per_image:
      yield (f'gram.tokens={self.tokens!r} compares tokens of several images: '
             'set gram.per_image=False, or gram.tokens=all')
    begins = self.source or self.start.value or settings.init.source
    if self.has_backbone and not begins:
      yield (f'gram.loss_weight={self.loss_weight}: the Gram teacher has no '
             'weights to start from: set gram.source to a run or weights, '
             'gram.start_steps to the step whose EMA it is, or init.source; or '
             'gram.teacher=ema')
    if not settings.ibot.is_on and (self.tokens != 'all' or self.log_masked):
      yield (f'gram.tokens={self.tokens} and gram.log_masked='
             f'{self.log_masked} need the masks of iBOT, but ibot.loss_weight '
             'is 0: set gram.tokens=all and gram.log_masked=False')
    if self.teacher == 'ema' and self.source is not None:
      yield (f'gram.source={self.source} is for a teacher of its own, but '
             'gram.teacher is ema: set gram.teacher=frozen, or leave it unset')
    if self.teacher == 'ema' and self.refresh_every is not None:
      yield ('gram.refresh_every renews a teacher of its own, but '
             'gram.teacher is ema: leave it unset')

  def student_wants(self) -> frozenset[str]:
    return _PATCHES

  def teacher_wants(self) -> frozenset[str]:
    return frozenset() if self.has_backbone else _PATCHES

  def targets(self, taught: objective.Forward) -> tuple[Array, None]:
    """[r, p, d] patches of the Gram teacher on the student's grid.

    Source: DINOv3; the grids are square.
    """
    s = taught.settings
    patches = jax.lax.stop_gradient(
        taught.out['gram_patches' if self.has_backbone else 'patches'])
    if patches.shape[1] == s.num_patches:
      return patches, None
    grid = s.model.grid((s.crops.global_px,) * 2)
    return resample.resize_tokens(
        patches, grid, antialias=self.antialias), None

  def rows_per_group(self, settings: Any) -> int:
    return settings.train.group_images * settings.crops.num_global

  def terms(self, seen: objective.Forward) -> tuple[dict, dict]:
    loss = lambda patches, **options: self._loss(
        patches, seen.targets['gram'], seen.rows.get('masks', {}).get('global'),
        self.rows_per_group(seen.settings), **options)
    patches = seen.out['patches']
    values = {'gram': (
        self.loss_weight * seen.schedules['gram_weight'],
        loss(patches, tokens=self.tokens, per_image=self.per_image))}
    for tokens in ('masked', 'unmasked') if self.log_masked else ():
      values[f'gram_{tokens}'] = 0.0, loss(
          jax.lax.stop_gradient(patches), tokens=tokens, per_image=False)
    return values, {}

  def _loss(self, patches: Array, targets: Array, mask: Array | None,
            group_rows: int, *, tokens: str, per_image: bool) -> Array:
    """Gram loss of patches [r, p, d], per image or within groups of rows."""
    weight = None
    if tokens != 'all':
      chosen = mask if tokens == 'masked' else ~mask
      weight = chosen.astype(jnp.float32)
    if not per_image:
      patches, targets, weight = jax.tree.map(
          lambda x: sharding.group(x, group_rows),
          (patches, targets, weight))
    return gram.gram(
        patches, targets, weight=weight, normalize=self.normalize,
        per_image=per_image, remove_negative=self.remove_negative,
        remove_only_teacher_negative=self.remove_only_teacher_negative)

  def flops(self, settings: Any, masked_patches: int) -> float:
    """The student's similarities, their gradient's two products, and the
    teacher's.
    """
    del masked_patches
    rows = settings.train.batch_size * settings.crops.num_global
    patches = settings.num_patches
    others = patches * (1 if self.per_image else self.rows_per_group(settings))
    return 4 * 2.0 * rows * patches * others * settings.model.embed_dim

  def teacher_flops(self, settings: Any, masked_patches: int,
                    teacher: network.NetworkConfig | None) -> float:
    del masked_patches, teacher
    if not self.has_backbone:
      return 0.0
    rows = settings.train.batch_size * settings.crops.num_global
    return rows * settings.model.flops(settings.gram_px)
