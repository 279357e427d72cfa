"""Copy detection: descriptors, their whitening, average precision.

Source: facebookresearch/dino, eval_copy_detection.py.
"""

import jax
import jax.numpy as jnp
import numpy as np


def descriptors(cls: jax.Array, patches: jax.Array, *, power: float = 4.0,
                floor: float = 1e-6) -> jax.Array:
  """[b, 2 d] CLS and the generalised mean of the patches, float32.

  Args:
    cls: [b, d].
    patches: [b, p, d].
    power: exponent of the mean.
    floor: the least value of a patch, as powers of negative ones are none.
  """
  clipped = jnp.maximum(patches.astype(jnp.float32), floor)
  mean = jnp.mean(clipped ** power, axis=1) ** (1.0 / power)
  return jnp.concatenate([cls.astype(jnp.float32), mean], axis=1)


def whitened(descriptors: np.ndarray, of: np.ndarray,
             floor: float = 1e-5) -> np.ndarray:
  """[r, d] descriptors of equal spread in all directions, of length one.

  Args:
    descriptors: [r, d].
    of: [n, d] descriptors whose mean is taken off, and whose second moments
      are taken as they are.
    floor: the least eigenvalue, as a part of the largest.

  Differs: from a usual whitening, as the reference does: the moments are not
    centred.
  """
  of = np.asarray(of, np.float64)
  values, vectors = np.linalg.eigh(of.T @ of / len(of))
  values = np.maximum(values, floor * values.max())
  out = (descriptors - of.mean(0)) @ vectors / np.sqrt(values)
  return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)


def average_precision(scores: np.ndarray, positive: np.ndarray,
                      top: int = 20) -> np.ndarray:
  """[q] area under precision and recall of the first `top`, by trapezoids.

  Args:
    scores: [q, r] similarities.
    positive: [q, r] bool, the originals of each query.
    top: length of the ranking that is looked at; what comes later is missed.

  Returns:
    NaN for queries without an original.
  """
  out = np.full(len(scores), np.nan)
  for i, (score, right) in enumerate(zip(scores, positive, strict=True)):
    if not right.any():
      continue
    places = np.flatnonzero(
        right[np.argsort(-score, kind='stable')[:top]])  # ranks from 0
    hits = np.arange(len(places))
    before = np.where(places == 0, 1.0, hits / np.maximum(places, 1))
    at = (hits + 1) / (places + 1)
    out[i] = (before + at).sum() / 2 / right.sum()
  return out
