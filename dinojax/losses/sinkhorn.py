"""Teacher targets by Sinkhorn-Knopp: rows are samples, columns prototypes."""

import jax
import jax.numpy as jnp

# A prototype that no sample uses has mass 0, where the references divide 0 by
# 0. With this floor its factor is 1e30 and its share 0 · 1e30 = 0. It is far
# below e^-50, the least mass of unit-norm logits at τ = 0.04, and far enough
# above the least float32 for a sum of 2^18 such factors.
_TINY = 1e-30


def sinkhorn_knopp(logits: jax.Array, *, temperature: jax.Array,
                   weight: jax.Array | None = None,
                   num_iterations: int = 3) -> jax.Array:
  """Soft assignments of samples to prototypes with balanced prototypes.

  Args:
    logits: [..., k]; all leading axes are samples.
    temperature: τ of the teacher.
    weight: [...] 0 for padding, which takes no part and may hold anything.
    num_iterations: prototype and sample normalisations; samples come last.

  Returns: [..., k] float32, rows sum to 1 (0 where padding); no gradient.

  Source: DINOv2's and DINOv3's sinkhorn_knopp_teacher. Differs: exp(logits/τ)
    is scaled by a factor per row and column, never rewritten; no 0/0.
  """
  logits = jax.lax.stop_gradient(logits).astype(jnp.float32) / temperature
  if weight is not None:
    # Padding times 0 would still be NaN where it holds inf.
    logits = jnp.where(weight[..., None] > 0, logits, 0.0)
  # A row's own maximum goes into its factor: exp never overflows, and the
  # first sums are those of exp(logits − the global maximum).
  row_peak = logits.max(-1)
  valid = (jnp.ones_like(row_peak) if weight is None
           else (weight > 0).astype(jnp.float32))
  peak = jnp.where(valid > 0, row_peak, -jnp.inf).max()
  row = jnp.where(valid > 0, jnp.exp(row_peak - peak), 0.0)
  column = jnp.ones(logits.shape[-1:], jnp.float32)
  samples = tuple(range(logits.ndim - 1))
  lead = (1,) * len(samples)
  kernel = lambda: jnp.exp(logits - row_peak[..., None])  # rebuilt, not kept
  for _ in range(num_iterations):
    used = jnp.sum(kernel() * row[..., None], axis=samples)
    column = 1 / jnp.maximum(used, _TINY)
    mass = jnp.sum(kernel() * column.reshape(*lead, -1), axis=-1)
    row = valid / jnp.maximum(mass, _TINY)
  return kernel() * row[..., None] * column.reshape(*lead, -1)
