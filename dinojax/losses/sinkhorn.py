"""Teacher targets by Sinkhorn-Knopp: rows are samples, columns prototypes."""

import jax
import jax.numpy as jnp

# A prototype that no sample uses, or a sample that none fits: factors stay
# within 1e±30, so that products of two neither overflow nor vanish.
_TINY = 1e-30


def sinkhorn_knopp(logits: jax.Array, *, temperature: jax.Array,
                   weight: jax.Array | None = None,
                   num_iterations: int = 3) -> jax.Array:
  """Soft assignments of samples to prototypes with balanced prototypes.

  Scaling form: exp(logits/τ) is never rewritten, only a factor per row and
  per prototype is kept; a row's own maximum goes into its factor, so that no
  logit overflows and no row vanishes.

  Args:
    logits: [..., k]; all leading axes are samples.
    temperature: τ of the teacher.
    weight: [...] 1 for samples, 0 for padding; padding takes no part.
    num_iterations: prototype and sample normalisations; samples come last.

  Returns:
    [..., k] float32, rows sum to 1 (0 where padding); no gradient.

  Source: DINOv2's and DINOv3's sinkhorn_knopp_teacher.
  """
  logits = jax.lax.stop_gradient(logits).astype(jnp.float32) / temperature
  valid = (jnp.ones(logits.shape[:-1], jnp.float32) if weight is None
           else weight.astype(jnp.float32))
  samples = tuple(range(logits.ndim - 1))
  row_peak = logits.max(-1)
  peak = jnp.where(valid > 0, row_peak, -jnp.inf).max()
  kernel = lambda: jnp.exp(logits - row_peak[..., None])
  row = valid * jnp.exp(row_peak - peak)
  column = jnp.ones(logits.shape[-1:], jnp.float32)
  lead = (1,) * len(samples)
  for _ in range(num_iterations):
    used = jnp.sum(kernel() * row[..., None], axis=samples)
    column = 1 / jnp.maximum(used, _TINY)
    mass = jnp.sum(kernel() * column.reshape(*lead, -1), axis=-1)
    row = valid / jnp.maximum(mass, _TINY)
  return kernel() * row[..., None] * column.reshape(*lead, -1)
