"""Cross-entropy of masked patches, same crop and same position."""

import jax
import jax.numpy as jnp

from dinojax.losses import dino


def ibot(logits: jax.Array, targets: jax.Array, weight: jax.Array, *,
         num_rows: int, student_temperature: float = 0.1) -> jax.Array:
  """Σ weight · cross-entropy / num_rows; nats.

  Args:
    logits: [..., k] of the student at masked patches, [g, m, k]; or at all
      patches of all crops, [r, p, k].
    targets: [..., k] of the teacher there.
    weight: [...] 1 / masked patches of the crop, see `mask_weight`; 0 for
      padding, which may hold anything, inf and NaN too.
    num_rows: all global crops, those without a mask too.
    student_temperature: τ of the student.

  Source: iBOTPatchLoss.forward_masked of DINOv2 and DINOv3, and their dense
    forward.
  """
  valid = weight > 0
  # Before the loss, not after: 0 times the gradient of NaN is NaN.
  clean = lambda x: jnp.where(valid[..., None], x.astype(jnp.float32), 0.0)
  values = dino.cross_entropy(
      clean(logits), clean(targets), student_temperature)
  return jnp.sum(values * weight.astype(jnp.float32)) / num_rows


def mask_weight(masks: jax.Array) -> jax.Array:
  """[r, p] masks to weights: 1 / masked patches of the crop, else 0."""
  masks = masks.astype(jnp.float32)
  return masks / jnp.maximum(masks.sum(-1, keepdims=True), 1.0)
