"""Multiplications and additions that a training step needs, by formula.

What the model needs: without recomputation and without padding. A product of
[m, k] and [k, n] counts 2·m·k·n.
"""

from dinojax.models import heads
from dinojax.models import network
from dinojax.train import settings as settings_lib


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
  total = rows * teach.flops(
      s.crops.global_px // made_for * teach.token_px)
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
    kept = s.model.kept(s.train.group_images * count)
    total += b * count * (
        3 * s.model.flops(px, kept) - s.model.embedding_flops(px))
  if s.dino.loss_weight:
    total += 3 * head(_head_of(s, 'dino'), width, b * (
        s.crops.num_global + s.crops.num_local))
  if s.ibot.loss_weight:
    total += 3 * head(_head_of(s, 'ibot'), width, masked_patches)
  return total


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
    total += rows * s.model.flops(s.gram_px)
  return total
