"""Multiplications and additions that a training step needs, by formula.

What the model needs: without recomputation and without padding. A product of
[m, k] and [k, n] counts 2·m·k·n.
"""

import math

from dinojax.models import convnext
from dinojax.models import draws
from dinojax.models import heads
from dinojax.models import network
from dinojax.models import vit
from dinojax.train import settings as settings_lib

Backbone = vit.ViTConfig | convnext.ConvNeXtConfig


def embedding(config: Backbone, image_px: int) -> float:
  """FLOPs of what first sees the pixels of an image: these get no gradient."""
  if isinstance(config, convnext.ConvNeXtConfig):
    return _reduction(config, 0, image_px)
  patches = (image_px // config.patch_px) ** 2
  return 2.0 * patches * config.num_channels * config.patch_px ** 2 * (
      config.embed_dim)


def backbone(config: Backbone, rows: int, image_px: int, *,
             kept: float = 1.0) -> float:
  """FLOPs of a forward pass.

  Args:
    config: of the ViT or ConvNeXt.
    rows: images.
    image_px: side.
    kept: share of the rows that a residual branch computes.
  """
  if isinstance(config, convnext.ConvNeXtConfig):
    return rows * sum(_stage(config, i, image_px)
                      for i in range(len(config.depths)))
  d, hidden = config.embed_dim, config.ffn_hidden or 4 * config.embed_dim
  patches = (image_px // config.patch_px) ** 2
  tokens = 1 + config.num_registers + patches
  products = 2 * tokens * d * (4 * d + (
      3 if config.ffn == 'swiglu' else 2) * hidden)
  attention = 4 * tokens * tokens * d
  return rows * (embedding(config, image_px)
                 + kept * config.depth * (products + attention))


def _pixels(stage: int, image_px: int) -> int:
  """Of the map after a ConvNeXt's stage."""
  stride = math.prod(convnext.stride(i) for i in range(stage + 1))
  return (image_px // stride) ** 2


def _reduction(config: convnext.ConvNeXtConfig, stage: int,
               image_px: int) -> float:
  last = config.dims[stage - 1] if stage else config.num_channels
  return 2.0 * _pixels(stage, image_px) * last * (
      convnext.stride(stage) ** 2) * config.dims[stage]


def _stage(config: convnext.ConvNeXtConfig, stage: int,
           image_px: int) -> float:
  """FLOPs of an image: 7 × 7 depthwise, then two products of 4 × the width."""
  width = config.dims[stage]
  block = 2.0 * _pixels(stage, image_px) * width * (49 + 8 * width)
  return _reduction(config, stage, image_px) + config.depths[stage] * block


def head(config: heads.HeadConfig, width: int, rows: int) -> float:
  """FLOPs of a forward pass of a head on [rows, width] tokens."""
  sizes = [width, *[config.hidden_dim] * (config.num_layers - 1),
           config.bottleneck_dim, config.num_prototypes]
  return sum(2.0 * rows * a * b
             for a, b in zip(sizes[:-1], sizes[1:], strict=True))


def step(settings: settings_lib.Settings, masked_patches: int,
         teacher: network.NetworkConfig | None = None) -> float:
  """FLOPs of a step: teacher forward, students forward and backward.

  Pixels get no gradient, so the patch embedding's backward is its weights'.

  Args:
    settings: what is trained.
    masked_patches: of the whole batch, whose targets iBOT predicts.
    teacher: that is frozen; None: the student's EMA.
  """
  s, b = settings, settings.train.batch_size
  made_for = s.model.token_px
  teach = teacher.backbone if teacher else s.model
  rows = b * s.crops.num_global
  total = backbone(
      teach, rows, s.crops.global_px // made_for * teach.token_px)
  for name, used, count in (
      ('dino', s.dino.loss_weight, rows),
      ('ibot', s.ibot.loss_weight, masked_patches)):
    if used:
      config = (getattr(teacher, f'{name}_head') if teacher
                else _head_of(s, name))
      total += head(config, teach.embed_dim, count)
  for own in s.each.values():
    total += own.train.share * _student(own, masked_patches, made_for)
  return total + _gram(s)


def _head_of(s: settings_lib.Settings, name: str) -> heads.HeadConfig:
  """The head that a loss reads."""
  if name == 'ibot' and not s.ibot.separate_head:
    return s.dino.head
  return getattr(s, name).head


def _student(s: settings_lib.Settings, masked_patches: int,
             made_for: int) -> float:
  """FLOPs of a student's forward and backward on the whole batch.

  Args:
    s: its settings.
    masked_patches: of the whole batch.
    made_for: pixels of the side of a token, that crops are made for.
  """
  b, width, total = s.train.batch_size, s.model.embed_dim, 0.0
  views = {'global': (s.crops.num_global, s.crops.global_px),
           'local': (s.crops.num_local, s.crops.local_px)}
  for count, px in views.values():
    px = px // made_for * s.model.token_px
    kept = _kept(s, s.train.group_images * count)
    total += 3 * backbone(s.model, b * count, px, kept=kept)
    total -= b * count * embedding(s.model, px)
  if s.dino.loss_weight:
    total += 3 * head(_head_of(s, 'dino'), width, b * (
        s.crops.num_global + s.crops.num_local))
  if s.ibot.loss_weight:
    total += 3 * head(_head_of(s, 'ibot'), width, masked_patches)
  return total


def _kept(s: settings_lib.Settings, rows: int) -> float:
  """Share of a group's rows that stochastic depth leaves to compute."""
  # A rate that grows with depth weights rows instead of leaving them out.
  model = s.model
  if not rows or not isinstance(model, vit.ViTConfig) or not (
      model.drop_path_rate and model.drop_path_uniform):
    return 1.0
  return draws.num_kept(rows, s.model.drop_path_rate) / rows


def _gram(s: settings_lib.Settings) -> float:
  """Of Gram anchoring: similarities, and its teacher on its own crops."""
  if not s.gram.loss_weight:
    return 0.0
  rows = s.train.batch_size * s.crops.num_global
  tokens = s.num_patches if s.gram.per_image else (
      s.num_patches * s.train.group_images * s.crops.num_global)
  # The student's similarities, their gradient as two products, the teacher's.
  total = 4 * 2.0 * rows * s.num_patches * tokens * s.model.embed_dim
  if s.gram.has_backbone:
    total += backbone(s.model, rows, s.gram_px)
  return total
