"""Cross-entropy of masked patches, same crop and same position."""

import jax
import jax.numpy as jnp

from dinojax.losses import dino


def ibot(logits: jax.Array, targets: jax.Array, weight: jax.Array, *,
         num_rows: int, student_temperature: float = 0.1) -> jax.Array:
  """Σ weight · cross-entropy / num_rows; nats.

  Args:
    logits: [..., k] of the student at masked patches.
    targets: [..., k] of the teacher there.
    weight: [...] 1 / masked patches of the row; 0 for padding.
    num_rows: all global crops, those without a mask too.
    student_temperature: τ of the student.

  Source: iBOTPatchLoss.forward_masked of DINOv2 and DINOv3.
  """
  values = dino.cross_entropy(logits, targets, student_temperature)
  return jnp.sum(jnp.where(weight > 0, values * weight, 0.0)) / num_rows
