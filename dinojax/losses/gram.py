"""Gram anchoring: the patches' similarities stay those of a teacher."""

import jax
import jax.numpy as jnp

from dinojax.losses import unit

_EPSILON = 1e-12


def gram(student: jax.Array, teacher: jax.Array, *,
         weight: jax.Array | None = None, normalize: bool = True,
         per_image: bool = True, remove_negative: bool = False,
         remove_only_teacher_negative: bool = False) -> jax.Array:
  """Mean squared difference of the Gram matrices, diagonal included.

  Args:
    student, teacher: [..., b, n, d] patches, the teacher's already resized;
      axes before b are groups, averaged.
    weight: [..., b, n] 0 for tokens left out; with per_image=False only.
    normalize: tokens to length one.
    per_image: a matrix [n, n] per image; else [(b n), (b n)] per group.
    remove_negative, remove_only_teacher_negative: similarities < 0 count as
      0, of both or of the teacher alone.

  Raises: ValueError, where shapes differ or options exclude each other.
  Source: DINOv3's GramLoss, on each device; here on each group.
  """
  _check(student, teacher, weight, per_image, remove_negative,
         remove_only_teacher_negative)
  teacher = jax.lax.stop_gradient(teacher)
  student, teacher = (
      similarities(x, normalize=normalize, per_image=per_image)
      for x in (student, teacher))
  positive = lambda x: jnp.where(x < 0, 0.0, x)
  if remove_negative:
    student = positive(student)
  if remove_negative or remove_only_teacher_negative:
    teacher = positive(teacher)
  square = (student - teacher) ** 2
  if weight is None:
    return jnp.mean(square)
  used = (weight > 0).astype(jnp.float32)
  used = used.reshape(*used.shape[:-2], -1)  # [..., (b n)]
  pairs = used[..., :, None] * used[..., None, :]
  square = jnp.where(pairs > 0, square, 0.0)
  return jnp.mean(square.sum((-2, -1)) / jnp.maximum(pairs.sum((-2, -1)), 1.0))


def similarities(x: jax.Array, *, normalize: bool,
                 per_image: bool) -> jax.Array:
  """Gram matrices of [..., b, n, d]: [..., b, n, n] or [..., (b n), (b n)]."""
  x = unit.normalize(x, _EPSILON) if normalize else x.astype(jnp.float32)
  if not per_image:
    x = x.reshape(*x.shape[:-3], -1, x.shape[-1])
  return jnp.einsum(
      '...nd,...md->...nm', x, x, precision=jax.lax.Precision.HIGHEST)


def _check(student, teacher, weight, per_image, remove_negative,
           remove_only_teacher_negative):
  if student.shape != teacher.shape:
    raise ValueError(
        f'Gram of student patches {student.shape} and teacher patches '
        f'{teacher.shape}: resize the teacher to the student\'s grid first')
  if weight is not None and per_image:
    raise ValueError(
        'Gram over some of the tokens needs one matrix per batch: set '
        'per_image=False, or use all tokens')
  if remove_negative and remove_only_teacher_negative:
    raise ValueError(
        'remove_negative and remove_only_teacher_negative exclude each '
        'other: set one of them')
