"""Cross-entropy between the CLS tokens of crops of one image."""

import jax
import jax.numpy as jnp


def cross_entropy(logits: jax.Array, targets: jax.Array,
                  temperature: float) -> jax.Array:
  """−Σ_k t log softmax(s/τ) of [..., k]; float32, nats.

  Targets need not sum to one; the logits' normaliser is counted as often.
  """
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

  Raises:
    ValueError: no pair is left.

  Source: DINOv3's DINOLoss; DINOv2's is this times `num_pairs`.
  """
  s, t = logits.shape[1], targets.shape[1]
  pairs = num_pairs(s, t, ignore_diagonal)
  # Every student crop meets the sum of its targets: pairs are never formed.
  targets = targets.astype(jnp.float32)
  total = targets.sum(1, keepdims=True)
  total = jnp.broadcast_to(total, logits.shape)
  if ignore_diagonal:
    same = min(s, t)
    total -= jnp.pad(targets[:, :same], ((0, 0), (0, s - same), (0, 0)))
  values = cross_entropy(logits, total, student_temperature)
  return jnp.sum(values) / (logits.shape[0] * pairs)


def num_pairs(num_student: int, num_teacher: int,
              ignore_diagonal: bool) -> int:
  """Pairs of crops that `dino` averages over.

  Raises:
    ValueError: there is none.
  """
  pairs = num_student * num_teacher
  pairs -= min(num_student, num_teacher) if ignore_diagonal else 0
  if pairs < 1:
    raise ValueError(
        f'{num_student} student and {num_teacher} teacher crops make no pair'
        f'{" of different crops" if ignore_diagonal else ""}: use at least '
        'two global crops (crops.num_global)')
  return pairs


def dino_weights(num_global: int, num_local: int,
                 ignore_diagonal: bool) -> tuple[float, float]:
  """Shares of the global and the local part: every pair weighs the same.

  Loss = global share · global mean + ω · local share · local mean; ω is a
  schedule and, as in DINOv3, does not change the shares.

  Raises:
    ValueError: no pair of global crops.
  """
  pairs_global = num_pairs(num_global, num_global, ignore_diagonal)
  pairs_local = num_global * num_local
  total = pairs_global + pairs_local
  return pairs_global / total, pairs_local / total
