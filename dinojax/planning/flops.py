"""Multiplications and additions that a training step needs, by formula.

Counts what the model needs, without recomputation and padding. A product of
[m, k] and [k, n] counts 2·m·k·n.
"""

from dinojax.models import network
from dinojax.train import settings as settings_lib


def step(settings: settings_lib.Settings, masked_patches: int,
         teacher: network.NetworkConfig | None = None) -> float:
  """FLOPs of a step: teacher forward, students forward and backward.

  Pixels get no gradient: the patch embedding's backward is for weights only.

  Args:
    settings: settings of the run, with all its students.
    masked_patches: number of patches in the batch that iBOT predicts.
    teacher: config of a frozen teacher; None: the student's EMA teaches.
  """
  s = settings
  made_for = s.model.token_px
  teach = teacher.backbone if teacher else s.model
  rows = s.train.batch_size * s.crops.num_global
  total = rows * teach.flops(
      s.crops.global_px // made_for * teach.token_px)
  for term in s.objectives:
    total += term.teacher_flops(s, masked_patches, teacher)
  for student in s.each.values():
    total += student.train.share * _student(student, masked_patches, made_for)
  return total


def _student(s: settings_lib.Settings, masked_patches: int,
             made_for: int) -> float:
  """FLOPs of a student's forward and backward on the whole batch.

  Args:
    s: settings of the student.
    masked_patches: number of patches in the batch that iBOT predicts.
    made_for: side in pixels of the tokens that crops are made for.
  """
  images, total = s.train.batch_size, 0.0
  views = {'global': (s.crops.num_global, s.crops.global_px),
           'local': (s.crops.num_local, s.crops.local_px)}
  for count, px in views.values():
    px = px // made_for * s.model.token_px
    kept = s.model.kept(s.train.group_images * count)
    total += images * count * (
        3 * s.model.flops(px, kept) - s.model.embedding_flops(px))
  return total + sum(term.flops(s, masked_patches) for term in s.objectives)
