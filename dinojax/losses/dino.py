"""Cross-entropy between the CLS tokens of crops of one image."""

import jax
import jax.numpy as jnp


def cross_entropy(logits: jax.Array, targets: jax.Array,
                  temperature: float) -> jax.Array:
  """−Σ_k t log softmax(s/τ) of [..., k]; targets need not sum to one."""
  logits = logits.astype(jnp.float32) / temperature
  targets = targets.astype(jnp.float32)
  normalizer = jax.nn.logsumexp(logits, axis=-1)
  return normalizer * targets.sum(-1) - jnp.sum(targets * logits, axis=-1)


def dino(logits: jax.Array, targets: jax.Array, *,
         student_temperature: float = 0.1,
         ignore_diagonal: bool = False) -> jax.Array:
  """Mean cross-entropy over images and pairs of crops; nats.

  Args:
    logits: [b, s, k] of the student's crops.
    targets: [b, t, k] of the teacher's crops.
    student_temperature: τ of the student.
    ignore_diagonal: leaves out the pairs (i, i): the same crop.

  Source: DINOv3's DINOLoss; DINOv2's is the sum over pairs.
  """
  b, s, _ = logits.shape
  t = targets.shape[1]
  # Every student crop meets the sum of its targets: pairs are never formed.
  total = targets.astype(jnp.float32).sum(1, keepdims=True)
  total = jnp.broadcast_to(total, logits.shape)
  pairs = s * t
  if ignore_diagonal:
    same = min(s, t)
    own = targets[:, :same].astype(jnp.float32)
    own = jnp.pad(own, ((0, 0), (0, s - same), (0, 0)))
    total, pairs = total - own, pairs - same
  return jnp.sum(cross_entropy(logits, total, student_temperature)) / (
      b * pairs)


def dino_weights(num_global: int, num_local: int,
                 ignore_diagonal: bool) -> tuple[float, float]:
  """Shares of the global and the local part: every pair weighs the same."""
  pairs_global = num_global * (num_global - (1 if ignore_diagonal else 0))
  pairs_local = num_global * num_local
  total = pairs_global + pairs_local
  return pairs_global / total, pairs_local / total
