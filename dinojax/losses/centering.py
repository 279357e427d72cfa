"""Teacher targets by softmax with a running centre."""

import jax
import jax.numpy as jnp


def softmax_center(logits: jax.Array, center: jax.Array,
                   temperature: jax.Array) -> jax.Array:
  """softmax((logits − center)/τ) of [..., k]; float32, no gradient.

  Source: DINOv2's softmax_center_teacher.
  """
  logits = jax.lax.stop_gradient(logits).astype(jnp.float32)
  center = center.reshape((1,) * (logits.ndim - 1) + (-1,))
  return jax.nn.softmax((logits - center) / temperature, axis=-1)


def update_center(center: jax.Array, mean: jax.Array,
                  momentum: float = 0.9) -> jax.Array:
  """The centre of the next step, [k].

  Source: the references fold a step's mean in at the start of the next call;
    keeping the result for the next step is the same.
  Differs: nothing is pending when a checkpoint is taken, so nothing is lost.
  """
  return center * momentum + mean.astype(jnp.float32) * (1 - momentum)


def row_mean(logits: jax.Array) -> jax.Array:
  """Mean of [..., k] over all rows, [k]; float32: the CLS tokens' mean.

  Source: DINOv2 averages all ranks' CLS logits.
  """
  return jnp.mean(
      logits.astype(jnp.float32), axis=tuple(range(logits.ndim - 1)))


def group_mean(logits: jax.Array, valid: jax.Array) -> jax.Array:
  """Mean over groups of each group's mean over its valid rows, [k].

  Args:
    logits: [g, m, k] of masked patches; padding may hold anything.
    valid: [g, m], 0 for padding.

  Source: DINOv2 averages each rank's own masked tokens, then the ranks.
  Differs: a group without a masked token counts as zeros, not NaN.
  """
  valid = valid > 0
  logits = jnp.where(valid[..., None], logits.astype(jnp.float32), 0.0)
  count = jnp.maximum(valid.sum(1), 1)
  return jnp.mean(logits.sum(1) / count[:, None], axis=0)
