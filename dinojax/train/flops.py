"""Multiplications and additions that a training step needs, by formula.

What the model needs: without recomputation and without padding. A product of
[m, k] and [k, n] counts 2·m·k·n.
"""

from dinojax.models import draws
from dinojax.models import heads
from dinojax.models import vit
from dinojax.train import settings as settings_lib


def embedding(config: vit.ViTConfig, image_px: int) -> float:
  """FLOPs of an image's patch embedding."""
  patches = (image_px // config.patch_px) ** 2
  return 2.0 * patches * config.num_channels * config.patch_px ** 2 * (
      config.embed_dim)


def backbone(config: vit.ViTConfig, rows: int, image_px: int, *,
             kept: float = 1.0) -> float:
  """FLOPs of a forward pass.

  Args:
    config: of the ViT.
    rows: images.
    image_px: side.
    kept: share of the rows that a residual branch computes.
  """
  d, hidden = config.embed_dim, config.ffn_hidden or 4 * config.embed_dim
  patches = (image_px // config.patch_px) ** 2
  tokens = 1 + config.num_registers + patches
  products = 2 * tokens * d * (4 * d + (
      3 if config.ffn == 'swiglu' else 2) * hidden)
  attention = 4 * tokens * tokens * d
  return rows * (embedding(config, image_px)
                 + kept * config.depth * (products + attention))


def head(config: heads.HeadConfig, width: int, rows: int) -> float:
  """FLOPs of a forward pass of a head on [rows, width] tokens."""
  sizes = [width, *[config.hidden_dim] * (config.num_layers - 1),
           config.bottleneck_dim, config.num_prototypes]
  return sum(2.0 * rows * a * b
             for a, b in zip(sizes[:-1], sizes[1:], strict=True))


def step(settings: settings_lib.Settings, masked_patches: int) -> float:
  """FLOPs of a step: teacher forward, student forward and backward.

  Pixels get no gradient, so the patch embedding's backward is its weights'.

  Args:
    settings: what is trained.
    masked_patches: of the whole batch, whose targets iBOT predicts.
  """
  s, b = settings, settings.train.batch_size
  total = 0.0
  views = {'global': (s.crops.num_global, s.crops.global_px),
           'local': (s.crops.num_local, s.crops.local_px)}
  for kind, (count, px) in views.items():
    kept = _kept(s, s.train.group_images * count)
    total += 3 * backbone(s.model, b * count, px, kept=kept)
    total -= b * count * embedding(s.model, px)
    if kind == 'global':
      total += backbone(s.model, b * count, px)
  width = s.model.embed_dim
  if s.dino.loss_weight:
    student = b * (s.crops.num_global + s.crops.num_local)
    total += 3 * head(s.dino.head, width, student)
    total += head(s.dino.head, width, b * s.crops.num_global)
  if s.ibot.loss_weight:
    used = s.ibot.head if s.ibot.separate_head else s.dino.head
    total += 4 * head(used, width, masked_patches)
  return total + _gram(s)


def _kept(s: settings_lib.Settings, rows: int) -> float:
  """Share of a group's rows that stochastic depth leaves to compute."""
  # A rate that grows with depth weights rows instead of leaving them out.
  if not rows or not s.model.drop_path_rate or not s.model.drop_path_uniform:
    return 1.0
  return draws.num_kept(rows, s.model.drop_path_rate) / rows


def _gram(s: settings_lib.Settings) -> float:
  """Of Gram anchoring: similarities, and its teacher on the student's crops."""
  if not s.gram.loss_weight:
    return 0.0
  rows = s.train.batch_size * s.crops.num_global
  tokens = s.num_patches if s.gram.per_image else (
      s.num_patches * s.train.group_images * s.crops.num_global)
  # The student's similarities, their gradient as two products, the teacher's.
  total = 4 * 2.0 * rows * s.num_patches * tokens * s.model.embed_dim
  if s.gram.has_backbone:
    total += backbone(s.model, rows, s.crops.global_px)
  return total
